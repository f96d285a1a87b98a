"""One solution under way: a rollout under watch, and what became of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from nemo_openmath.chat import Template
from nemo_openmath.competition.answers import AnswerRule, ReadAnswer
from nemo_openmath.competition.policy import Ended
from nemo_openmath.core.clock import Clock
from nemo_openmath.core.engine import Engine, Finish
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.records.notes import Timing
from nemo_openmath.core.sandbox import Sandbox
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.grading import extract_answer
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.inference.rollout.settings import draw_budget
from nemo_openmath.inference.rollout.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What solutions are made with."""

    engine: Engine
    tokenizer: Tokenizer
    sandbox: Sandbox | None
    template: Template
    rollout: RolloutSettings
    clock: Clock

    def ask(self, problem: str, sample_seed: int) -> tuple[tuple[Message, ...], int]:
        """Return the prompt of a solution, and how often it may call code."""
        if "total_code_executions" not in self.template.fields:
            return self.template.messages(problem=problem), 0
        budget = draw_budget(self.rollout, sample_seed)
        return self.template.messages(problem=problem, total_code_executions=budget), budget


@dataclass(slots=True)
class Trial:
    """One solution of the problem at hand."""

    sample: int
    seed: int
    budget: int
    messages: tuple[Message, ...]
    watch: Watch
    task: asyncio.Task[Outcome]
    at: float | None = None
    """Seconds since the problem began at which it ended; None while it runs."""
    outcome: Outcome | None = None
    error: Exception | None = None
    """What lost it."""
    cut: bool = False
    """Whether it was ended from outside."""
    written: str | None = None
    """Its answer, as it wrote it."""
    answer: ReadAnswer = ReadAnswer(None, "none")  # noqa: RUF009  # frozen
    """The same as the contest takes it."""
    timing: Timing | None = None

    @property
    def whole(self) -> bool:
        """Whether the model ended it by itself."""
        return not self.cut and self.outcome is not None and self.outcome.finish is Finish.STOP

    @property
    def tokens(self) -> int:
        """Tokens that the model wrote."""
        return 0 if self.outcome is None else self.outcome.cost.completion_tokens

    def ended(self, group: int | None) -> Ended:
        """Return it as the policy sees it. Its uncertainty is that of its answer's tokens; where they are not known,
        that of its last ones."""
        assert self.at is not None
        times = self.timing
        known = [] if times is None else [times.answer_surprise, times.tail_surprise]
        entropy = next((value for value in known if value is not None), None)
        return Ended(self.sample, self.at, group, self.tokens, entropy, self.whole, self.error is not None)


def begin(means: Means, problem: str, sample: int, *, seed: int, watch: Watch) -> Trial:
    """Begin a solution."""
    sample_seed = derive_seed(seed, problem, sample)
    messages, budget = means.ask(problem, sample_seed)
    rollout: Any = roll_out(
        means.engine,
        means.tokenizer,
        messages,
        means.rollout,
        seed=sample_seed,
        key=f"{sample_seed}",
        sandbox=means.sandbox,
        budget=budget,
        watch=watch,
    )
    return Trial(sample, sample_seed, budget, messages, watch, asyncio.ensure_future(rollout))


def settle(trial: Trial, means: Means, rule: AnswerRule, *, now: float, problem_began: float, search: bool) -> None:
    """Take over what became of a solution: of one whose task has ended, its outcome or its error; of any other what it
    has by now.

    ``search``: whether an unfinished one is searched for an answer. What the model wrote is searched, by the rule for
    finished ones; what its code printed last is no answer.
    """
    trial.at = now
    try:
        if trial.task.done() and not trial.task.cancelled():
            trial.outcome = trial.task.result()
        else:
            trial.cut, trial.outcome = True, trial.watch.outcome()
        if trial.outcome is None:
            return
        trial.cut = trial.cut or trial.outcome.finish is Finish.TIME
        if trial.whole or search:
            trial.written = extract_answer(trial.outcome.transcript.said).answer
            trial.answer = rule.read(trial.written)
        trial.timing = trial.watch.timing(
            means.tokenizer,
            answered=trial.written is not None,
            code_seconds=trial.outcome.cost.code_seconds,
            problem_began=problem_began,
            cut=trial.cut,
        )
    except Exception as error:  # whatever it is, the others have an answer to give
        log.warning("solution %d was lost: %r", trial.sample, error)
        trial.error = error
