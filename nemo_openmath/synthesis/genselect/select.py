"""Ask a model which candidate is right, for training data and for inference alike (paper sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from nemo_openmath.chat import Transcript
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Drop, Generation, Group, Mode
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.inference.rollout import Outcome
from nemo_openmath.synthesis.genselect.selecting import (
    NO_CANDIDATE,
    OUT_OF_RANGE,
    UNREADABLE,
    Judgment,
    SelectingConfig,
    SelectingStage,
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
class GenSelectConfig(SelectingConfig):
    """Settings of ``genselect.select``: how a judgment is sampled, and which judgments are kept."""

    samples: PositiveInt = 1
    """Judgments of each group."""
    keep_correct: bool = False
    """For training data: keep only judgments that select a correct candidate. Paper section 4.2."""


class GenSelect(SelectingStage[GenSelectConfig, tuple[Group, int]]):
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
        note_judgments(context)

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Count each group once, though it is judged ``samples`` times."""
        super().check_sum(context, offered // self.config.samples)

    async def process(self, unit: tuple[Group, int], context: StageContext) -> Result:
        group, turn = unit
        seed = derive_seed(context.seed, "select", group.id, turn)
        if len(group.members) < 2:  # nothing to choose among
            messages = self.comparison(group.problem, group.summaries)
            empty = Outcome(
                Transcript(messages, tokenizer=self._tokenizer.fingerprint),
                group.untried or Finish.STOP,
            )
            return Result(
                [self._generation(group, turn, seed, empty, Judgment(0 if group.members else None))], asked=False
            )
        outcome, judgment = await self.compare(group.problem, group.summaries, seed=seed, key=f"{group.id}:{turn}")
        if self.config.keep_correct and (judgment.chosen is None or not group.correct[judgment.chosen]):
            reason = judgment.reason or "chose an incorrect candidate"
            return Result(drops=[Drop(reason, outcome.transcript.text[-200:])])
        return Result([self._generation(group, turn, seed, outcome, judgment)])

    def refused(self, key: str, unit: tuple[Group, int], error: Refused, context: StageContext) -> Result:
        if self.config.keep_correct:
            return super().refused(key, unit, error, context)
        group, turn = unit
        outcome = Outcome.untried(self.comparison(group.problem, group.summaries), self._tokenizer, error)
        seed = derive_seed(context.seed, "select", group.id, turn)
        generation = self._generation(group, turn, seed, outcome, Judgment(None))
        return Result([generation.with_(extra=generation.extra | {"untried": str(error)})])

    def _generation(self, group: Group, turn: int, seed: int, outcome: Outcome, judgment: Judgment) -> Generation:
        chosen, prompt = judgment.chosen, self.template.digest
        member = None if chosen is None else group.members[chosen]
        return self.generation(
            Generation.make_id(group.id, Mode.GENSELECT, self._engine.model, prompt, {}, seed, turn),
            group.problem_id,
            (group.id, *group.members),
            outcome,
            Selection(group.id, member, group.k, turn, group.mode, prompt),
            expected=group.expected_answer,
            predicted=None if chosen is None else group.answers[chosen],
            correct=None if chosen is None else group.correct[chosen],
            nothing=judgment.reason or NO_CANDIDATE,
        )
