"""Ask a model which candidate is right, for training data and for inference alike (paper sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from nemo_openmath.chat import Message, Template, Transcript, load_template
from nemo_openmath.chat.blocks import judgment_of
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Drop, Generation, Group, Mode
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.types import NOT_TRIED, UNTRIED
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.inference.rollout import Outcome, StoredRolloutSettings, roll_out
from nemo_openmath.inference.rollout.metrics import note_untried

UNREADABLE = "no valid judgment"
OUT_OF_RANGE = "judgment out of range"


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a comparison chose: the place of a candidate, or why there is none."""

    chosen: int | None
    reason: str = ""

    @classmethod
    def of(cls, outcome: Outcome, candidates: int) -> Judgment:
        """Read what a model wrote about so many candidates. One that was cut off chose nothing."""
        index = judgment_of(outcome.transcript.summary or "") if outcome.finish is Finish.STOP else None
        if index is None:
            return cls(None, UNREADABLE)
        return cls(index) if index < candidates else cls(None, OUT_OF_RANGE)


class Verdicts(NamedTuple):
    """The verdict of a selection, and its reason."""

    verdict: Verdict
    reason: str

    @classmethod
    def of(cls, finish: Finish, correct: bool | None, nothing: str) -> Verdicts:
        """Return the verdict of what was chosen. ``correct``: None where nothing was, and ``nothing`` says why."""
        if finish in UNTRIED:
            return cls(Verdict.UNKNOWN, NOT_TRIED)
        if correct is None:
            return cls(Verdict.NOT_EQUAL, nothing)
        return cls(Verdict.EQUAL if correct else Verdict.NOT_EQUAL, "of the chosen candidate")


def comparison_messages(template: Template, problem: str, solutions: Sequence[str]) -> tuple[Message, ...]:
    """Return the question which of the solutions is right."""
    return template.messages(
        num_solutions=len(solutions),
        max_idx=len(solutions) - 1,
        problem=problem,
        solutions=template.listing(solutions),
    )


def note_judgments(context: StageContext) -> None:
    """Count the judgments of this process that name no candidate, and those of them that name one out of range."""
    counts = dict.fromkeys((UNREADABLE, OUT_OF_RANGE), 0)
    for file in context.own_files():
        for line in file.open("rb") if file.exists() else ():
            for reason in counts:
                counts[reason] += b'"verdict_reason":"%s"' % reason.encode() in line
    context.metrics |= {"judgments_unreadable": counts[UNREADABLE], "judgments_out_of_range": counts[OUT_OF_RANGE]}
    if any(counts.values()):
        context.progress.log(
            f"{counts[UNREADABLE]} judgments could not be read, {counts[OUT_OF_RANGE]} name no candidate of theirs"
        )


@dataclass(frozen=True)
class GenSelectConfig(StoredRolloutSettings):
    """Settings of ``genselect.select``: how a judgment is sampled, and which judgments are kept."""

    engine: str = "teacher"
    """The model that selects: ``teacher``, the name of a stage that made a model, or a model folder."""
    max_tokens: PositiveInt = 2048
    """Longest judgment, in tokens. One that is cut off there selects nothing."""
    samples: PositiveInt = 1
    """Judgments of each group."""
    keep_correct: bool = False
    """For training data: keep only judgments that select a correct candidate. Paper section 4.2."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Judgments in flight at once. It changes the speed alone."""


class GenSelect(UnitStage[GenSelectConfig, tuple[Group, int]]):
    """Select one candidate of each group, as a generation of mode genselect.

    The generation has the answer and the verdict of the selected candidate; its ``extra`` is a Selection. A judgment
    that names no candidate has no answer: one that cannot be read and one of a number that no candidate has are counted
    apart.

    Candidates that are longer than the context, or that the engine refuses, leave a generation that says so, and
    evaluation counts their problem apart. For training data (``keep_correct``) they are dropped.
    """

    kind = "genselect.select"
    version = 4  # 4: the selection says which prompt was asked; judgments out of range have a reason of their own
    Config = GenSelectConfig
    ports = {"groups": "groups of candidates"}
    takes = {"groups": "Group"}
    record = Generation

    def __init__(self, config: GenSelectConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self.template = load_template("genselect", config.prompt)

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)
        self._keep_ids = self.config.keeps_ids(context, self._tokenizer)

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Group, int]]]:
        shape = {k: v for k, v in asdict(self.config).items() if k in ("temperature", "top_p", "max_tokens")}
        rounds: dict[str, int] = {}
        for group in context.read("groups", Group):
            for sample in range(self.config.samples):
                key = Generation.make_id(
                    group.id, Mode.GENSELECT, self._engine.model, self.template.digest, shape, context.seed, sample
                )
                rounds[group.problem_id] = rounds.get(group.problem_id, -1) + 1
                yield key, (group, rounds[group.problem_id])

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        note_untried(context)
        note_judgments(context)

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Count each group once, though it is judged ``samples`` times."""
        super().check_sum(context, offered // self.config.samples)

    async def process(self, unit: tuple[Group, int], context: StageContext) -> Result:
        group, turn = unit
        seed = derive_seed(context.seed, "select", group.id, turn)
        messages = self._messages(group)
        if len(group.members) < 2:  # nothing to choose among
            empty = Outcome(
                Transcript(messages, tokenizer=self._tokenizer.fingerprint),
                group.untried or Finish.STOP,
            )
            return Result(
                [self._generation(group, turn, seed, empty, Judgment(0 if group.members else None))], asked=False
            )
        outcome = await roll_out(
            self._engine, self._tokenizer, messages, self.config, seed=seed, key=f"{group.id}:{turn}"
        )
        judgment = Judgment.of(outcome, len(group.members))
        if self.config.keep_correct and (judgment.chosen is None or not group.correct[judgment.chosen]):
            reason = judgment.reason or "chose an incorrect candidate"
            return Result(drops=[Drop(reason, outcome.transcript.text[-200:])])
        return Result([self._generation(group, turn, seed, outcome, judgment)])

    def refused(self, key: str, unit: tuple[Group, int], error: Refused, context: StageContext) -> Result:
        if self.config.keep_correct:
            return super().refused(key, unit, error, context)
        group, turn = unit
        outcome = Outcome.untried(self._messages(group), self._tokenizer, error)
        seed = derive_seed(context.seed, "select", group.id, turn)
        generation = self._generation(group, turn, seed, outcome, Judgment(None))
        return Result([generation.with_(extra=generation.extra | {"untried": str(error)})])

    def _messages(self, group: Group) -> tuple[Message, ...]:
        return comparison_messages(self.template, group.problem, group.summaries)

    def _generation(self, group: Group, turn: int, seed: int, outcome: Outcome, judgment: Judgment) -> Generation:
        transcript = outcome.transcript if self._keep_ids else outcome.transcript.without_ids()
        chosen = judgment.chosen
        correct = None if chosen is None else group.correct[chosen]
        verdict, reason = Verdicts.of(outcome.finish, correct, judgment.reason or "no candidate")
        selection = Selection(
            group.id,
            None if chosen is None else group.members[chosen],
            group.k,
            turn,
            group.mode,
            self.template.digest,
        )
        return Generation(
            id=Generation.make_id(group.id, Mode.GENSELECT, self._engine.model, self.template.digest, {}, seed, turn),
            parents=(group.id, *group.members),
            problem_id=group.problem_id,
            mode=Mode.GENSELECT,
            model=self._engine.model,
            sample=turn,
            transcript=transcript.to_json(),
            thinks=transcript.thinks,
            finish=outcome.finish,
            expected_answer=group.expected_answer,
            predicted_answer=None if chosen is None else group.answers[chosen],
            verdict=verdict,
            verdict_reason=reason,
            prompt_tokens=outcome.cost.prompt_tokens,
            completion_tokens=outcome.cost.completion_tokens,
            extra=selection.to_extra(),
        )
