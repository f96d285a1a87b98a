"""What the stages share that let a model choose among solutions: the question, the choice, and its generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from nemo_openmath.chat import Message, load_template
from nemo_openmath.chat.blocks import judgment_of
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.types import NOT_TRIED, UNTRIED
from nemo_openmath.core.stage import RUNTIME, StageContext, UnitStage
from nemo_openmath.inference.rollout import Outcome, StoredRolloutSettings, roll_out
from nemo_openmath.inference.rollout.metrics import note_untried

UNREADABLE = "no valid judgment"
OUT_OF_RANGE = "judgment out of range"
NO_CANDIDATE = "no candidate"


@dataclass(frozen=True)
class SelectingConfig(StoredRolloutSettings):
    """Settings of a stage that lets a model choose."""

    engine: str = "teacher"
    """The model that selects: ``teacher``, the name of a stage that made a model, or a model folder."""
    max_tokens: PositiveInt = 2048
    """Longest judgment, in tokens. One that is cut off there selects nothing."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Judgments in flight at once. It changes the speed alone."""


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


C = TypeVar("C", bound=SelectingConfig)
U = TypeVar("U")


class SelectingStage(UnitStage[C, U], Generic[C, U]):
    """A stage whose generations, of mode genselect, are a model's choices."""

    record = Generation

    def __init__(self, config: C):
        super().__init__(config)
        self.concurrency = config.concurrency
        self.template = load_template("genselect", config.prompt)

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)
        self._keep_ids = self.config.keeps_ids(context, self._tokenizer)

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        note_untried(context)

    def comparison(self, problem: str, solutions: Sequence[str]) -> tuple[Message, ...]:
        """Return the question which of the solutions is right."""
        return self.template.messages(
            num_solutions=len(solutions),
            max_idx=len(solutions) - 1,
            problem=problem,
            solutions=self.template.listing(solutions),
        )

    async def compare(self, problem: str, solutions: Sequence[str], *, seed: int, key: str) -> tuple[Outcome, Judgment]:
        """Ask which of the solutions is right. Raises EngineError."""
        messages = self.comparison(problem, solutions)
        outcome = await roll_out(self._engine, self._tokenizer, messages, self.config, seed=seed, key=key)
        return outcome, Judgment.of(outcome, len(solutions))

    def generation(
        self,
        name: str,
        problem_id: str,
        parents: tuple[str, ...],
        outcome: Outcome,
        selection: Selection,
        *,
        expected: str | None,
        predicted: str | None,
        correct: bool | None,
        nothing: str = NO_CANDIDATE,
    ) -> Generation:
        """Return the generation ``name`` of a choice. ``correct``: None where nothing was chosen, and ``nothing`` says
        why."""
        transcript = outcome.transcript if self._keep_ids else outcome.transcript.without_ids()
        verdict, reason = Verdict.NOT_EQUAL, nothing
        if outcome.finish in UNTRIED:
            verdict, reason = Verdict.UNKNOWN, NOT_TRIED
        elif correct is not None:
            verdict, reason = Verdict.EQUAL if correct else Verdict.NOT_EQUAL, "of the chosen candidate"
        return Generation(
            id=name,
            parents=parents,
            problem_id=problem_id,
            mode=Mode.GENSELECT,
            model=self._engine.model,
            sample=selection.turn,
            transcript=transcript.to_json(),
            thinks=transcript.thinks,
            finish=outcome.finish,
            expected_answer=expected,
            predicted_answer=predicted,
            verdict=verdict,
            verdict_reason=reason,
            prompt_tokens=outcome.cost.prompt_tokens,
            completion_tokens=outcome.cost.completion_tokens,
            extra=selection.to_extra(),
        )
