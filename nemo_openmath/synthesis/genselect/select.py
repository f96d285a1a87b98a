"""Ask a model which candidate is right, for training data and for inference alike (paper sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nemo_openmath.chat import Message, Transcript, load_template
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
    that names no candidate has no answer.

    Candidates that are longer than the context, or that the engine refuses, leave a generation that says so, and
    evaluation counts their problem apart. For training data (``keep_correct``) they are dropped.
    """

    kind = "genselect.select"
    version = 3  # 3: candidates that do not fit leave a generation; the judgment stands behind the thinking
    Config = GenSelectConfig
    ports = {"groups": "groups of candidates"}
    takes = {"groups": "Group"}
    record = Generation

    def __init__(self, config: GenSelectConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template("genselect", config.prompt)

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
                    group.id, Mode.GENSELECT, self._engine.model, self._template.digest, shape, context.seed, sample
                )
                rounds[group.problem_id] = rounds.get(group.problem_id, -1) + 1
                yield key, (group, rounds[group.problem_id])

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        note_untried(context)

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
            return Result([self._generation(group, turn, seed, empty, 0 if group.members else None)], asked=False)
        outcome = await roll_out(
            self._engine, self._tokenizer, messages, self.config, seed=seed, key=f"{group.id}:{turn}"
        )
        index = judgment_of(outcome.transcript.summary or "") if outcome.finish is Finish.STOP else None
        chosen = index if index is not None and index < len(group.members) else None
        if self.config.keep_correct and (chosen is None or not group.correct[chosen]):
            reason = "no valid judgment" if chosen is None else "chose an incorrect candidate"
            return Result(drops=[Drop(reason, outcome.transcript.text[-200:])])
        return Result([self._generation(group, turn, seed, outcome, chosen)])

    def refused(self, key: str, unit: tuple[Group, int], error: Refused, context: StageContext) -> Result:
        if self.config.keep_correct:
            return super().refused(key, unit, error, context)
        group, turn = unit
        outcome = Outcome.untried(self._messages(group), self._tokenizer, error)
        generation = self._generation(group, turn, derive_seed(context.seed, "select", group.id, turn), outcome, None)
        return Result([generation.with_(extra=generation.extra | {"untried": str(error)})])

    def _messages(self, group: Group) -> tuple[Message, ...]:
        listing = "\n\n".join(f"Solution {i}:\n{summary}" for i, summary in enumerate(group.summaries))
        return self._template.messages(
            num_solutions=len(group.members), max_idx=len(group.members) - 1, problem=group.problem, solutions=listing
        )

    def _generation(self, group: Group, turn: int, seed: int, outcome: Outcome, chosen: int | None) -> Generation:
        transcript = outcome.transcript if self._keep_ids else outcome.transcript.without_ids()
        verdict, reason = Verdict.NOT_EQUAL, "no valid judgment"
        if outcome.finish in UNTRIED:
            verdict, reason = Verdict.UNKNOWN, NOT_TRIED
        elif chosen is not None:
            verdict, reason = Verdict.EQUAL if group.correct[chosen] else Verdict.NOT_EQUAL, "of the chosen candidate"
        return Generation(
            id=Generation.make_id(group.id, Mode.GENSELECT, self._engine.model, self._template.digest, {}, seed, turn),
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
            extra=Selection(group.id, None if chosen is None else group.members[chosen], group.k, turn).to_extra(),
        )
