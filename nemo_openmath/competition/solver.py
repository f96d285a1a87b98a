"""One problem: many solutions at once under a deadline, ended as the policy says, and one answer.

The policy (``policy.py``) decides, this module does: it begins solutions, hears of their ends, lets the grader group
answers, and cuts off what the time does not suffice for. It trusts nothing to return:

- An engine's requests have a time of their own; what does not end by it is cancelled, and its text so far is searched.
- What ignores its cancellation is left behind (``waiting.Leftovers``), and the answer is given without it.
- A grader that does not answer in time is replaced by equal spelling, for the answers at hand.
- Where a selection fails or takes too long, the vote decides.

The last ``closing_seconds`` are divided: a third for requests to end by themselves, up to two thirds for cancelling, up
to nine tenths for grading what was found. So an answer is there before the deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.chat import Template, load_template
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.events import OnEvent, SamplingEnded, SolutionBegun, SolutionEnded, SolverEvent
from nemo_openmath.competition.grouping import Grouping, Vote
from nemo_openmath.competition.policy import (
    Begin,
    Ended,
    Pick,
    Policy,
    Reason,
    Stop,
    choose,
    decide,
    judged,
    selection,
)
from nemo_openmath.competition.selecting import Selectors
from nemo_openmath.competition.trials import Means, Trial, begin, settle
from nemo_openmath.competition.waiting import Leftovers, Stopwatch
from nemo_openmath.core.bounds import NonNegativeFloat, PositiveFloat
from nemo_openmath.core.clock import Clock
from nemo_openmath.core.engine import Engine, Finish
from nemo_openmath.core.sandbox import Sandbox
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.grading import Majority, majority
from nemo_openmath.inference.rollout import RolloutSettings
from nemo_openmath.inference.rollout.watch import Watch

log = logging.getLogger(__name__)

FINISHES = {Reason.TIME: Finish.TIME, Reason.FINISHED: Finish.FINISHED, Reason.STRAGGLERS: Finish.FINISHED}


@dataclass(frozen=True)
class SolverSettings(Policy):
    """How one problem is solved (paper section 6).

    At temperature 0 the solutions of a batch differ by their code budgets and by what the sandbox answers. Give a
    temperature where the engine decodes deterministically.
    """

    rollout: RolloutSettings = field(
        default_factory=lambda: RolloutSettings(temperature=0.0, budgets=(6, 6), code_seconds=2.0, output_chars=200)
    )
    """How each solution is sampled: temperature 0, 6 code calls of 2 seconds and 200 characters of output. Paper
    section 6."""
    answers: AnswerRule = field(default_factory=AnswerRule)
    """Which answers may be submitted."""
    selecting: RolloutSettings = field(default_factory=lambda: RolloutSettings(max_tokens=2048))
    """How a selection is sampled, where ``final`` is ``genselect``."""
    grading_seconds: PositiveFloat = 10.0
    """Seconds that the grader may take to group answers; after that answers are equal where they are written alike."""
    cancel_seconds: NonNegativeFloat = 2.0
    """Seconds that solutions which are no more needed may take to end; after that nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the solver found out about one problem."""

    answer: str | None
    """The answer with the most votes; None where no solution had one."""
    votes: int
    finished: int
    """Solutions that ended in time and were not lost: those that could vote."""
    finish: Finish
    """Why the batch ended: AGREEMENT, FINISHED (all of it) or TIME."""
    seconds: float
    completion_tokens: int
    failed: int = 0
    """Solutions that the engine or the sandbox lost."""
    last_error: Exception | None = None
    """The error that lost the last of them."""
    reason: Reason = Reason.FINISHED
    """Why sampling ended, in the words of the policy."""
    weight: float = 0.0
    """What the answer's votes weigh."""
    second: str | None = None
    """The answer with the next most weight, and that weight."""
    second_weight: float = 0.0
    selected: bool = False
    """Whether the model's own selections chose the answer."""
    partial: int = 0
    """Answers that were read in unfinished solutions."""
    became: dict[str, int] = field(default_factory=dict)
    """What became of the answers that were written: kept, reduced, out_of_range, not_integer, none."""
    grader_failures: int = 0
    """How often the grader did not answer, and spelling decided."""
    left_behind: int = 0
    """Tasks that did not end when they were cancelled."""
    trials: tuple[Trial, ...] = ()
    """All solutions."""


class Solver:
    """Solves problems, one at a time or side by side.

    - ``vote`` groups answers by meaning; by default this is done in this process, without limits.
    - ``leftovers`` gets the tasks that do not end when they are cancelled.
    - ``told``: is given the number of a solution and each text that it gets.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sandbox: Sandbox | None,
        template: Template,
        settings: SolverSettings,
        *,
        clock: Clock,
        vote: Vote | None = None,
        selecting_template: Template | None = None,
        leftovers: Leftovers | None = None,
        told: Any = None,
    ):
        self.means = Means(engine, tokenizer, sandbox, template, settings.rollout, clock)
        self.settings, self.vote, self.clock = settings, vote or _count_here, clock
        self.selectors = Selectors(self.means, settings.selecting, selecting_template or load_template("genselect"))
        self.leftovers = Leftovers() if leftovers is None else leftovers
        self.told = told

    async def solve(self, problem: str, *, seconds: float, seed: int, on_event: OnEvent | None = None) -> Answer:
        """Return the answer to a problem within ``seconds``. Cancelling cancels all that runs for it. ``on_event`` is
        told what happens meanwhile; it must return at once."""
        return await _Solving(self, problem, seconds, seed, on_event).run()


async def solve(
    engine: Engine,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    template: Template,
    problem: str,
    settings: SolverSettings,
    *,
    seconds: float,
    seed: int,
    clock: Clock,
    vote: Vote | None = None,
) -> Answer:
    """Return the answer to a problem within ``seconds``.

    Solutions that still run at the end are cancelled on the engine and in the sandbox; those that fail are counted and
    left out. ``vote`` counts answers; by default they are counted in this process.
    """
    solver = Solver(engine, tokenizer, sandbox, template, settings, clock=clock, vote=vote)
    return await solver.solve(problem, seconds=seconds, seed=seed)


class _Solving:
    """One problem that is being solved."""

    def __init__(self, solver: Solver, problem: str, seconds: float, seed: int, on_event: OnEvent | None = None):
        self._on_event = on_event
        self._solver, self._settings, self._means = solver, solver.settings, solver.means
        self._problem, self._deadline, self._seed = problem, max(0.0, seconds), seed
        self._time = Stopwatch(solver.clock)
        self._trials: list[Trial] = []
        self._grouping = Grouping()
        self._grading: asyncio.Task[Majority] | None = None
        self._graded: list[str | None] = []  # answers that are being grouped
        self._grading_until = 0.0
        self._grader_failures = 0
        self._stopped = 0.0, 0.0  # when sampling was stopped, and the seconds for what is to be done after that
        self._left_before = solver.leftovers.total

    async def run(self) -> Answer:
        try:
            reason = await self._sample()
            self._tell(SamplingEnded(str(reason), self._time.now()))
            await self._cut_off(Stop(reason).search)
            await self._group_all()
            pick, selected = await self._pick(reason)
        finally:  # also where this is cancelled
            tasks = [t.task for t in self._trials] + ([self._grading] if self._grading else [])
            for task in tasks:
                task.cancel()
            self._solver.leftovers.add(tasks)
        return self._answer(reason, pick, selected)

    def _tell(self, event: SolverEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # who looks on must not cost the answer
                log.warning("nobody was told of %r: %r", event, error)

    # -- sampling --------------------------------------------------------------------------------------------------

    async def _sample(self) -> Reason:
        """Do what the policy says until it says stop, and return why."""
        while True:
            self._hear()
            running = [t.sample for t in self._trials if not self._is_heard(t)]
            decision = decide(
                self._settings, now=self._time.now(), deadline=self._deadline, ended=self._ended(), running=running
            )
            if isinstance(decision, Stop):
                return decision.reason
            if isinstance(decision, Begin):
                for sample in decision.samples:
                    self._begin(sample)
                continue
            tasks: list[asyncio.Future[Any]] = [t.task for t in self._trials if t.at is None]
            until = decision.until
            if self._grading is not None:
                tasks.append(self._grading)
                until = min(until, self._grading_until)
            await self._time.any(tasks, until)

    def _begin(self, sample: int) -> None:
        told, policy = self._solver.told, self._settings
        # requests end by themselves a little after the policy has said that the time is over
        ends_at = policy.requests_end(self._deadline)
        watch = Watch(
            self._solver.clock,
            ends_at=self._time.began + ends_at,
            logprobs=policy.entropy_weight > 0,
            told=None if told is None else lambda text: told(sample, text),
        )
        self._trials.append(begin(self._means, self._problem, sample, seed=self._seed, watch=watch))
        self._tell(SolutionBegun(sample, self._time.now()))

    def _hear(self) -> None:
        """Take over the solutions whose tasks have ended, and keep the grader busy with their answers."""
        for trial in self._trials:
            if trial.at is None and trial.task.done():
                self._settle(trial, search=self._settings.partial_weight > 0)
        self._take_groups()
        if self._grading is None and not all(self._is_heard(t) for t in self._trials if t.at is not None):
            self._graded = [t.answer.answer for t in self._trials if t.at is not None and t.error is None]
            self._grading = asyncio.ensure_future(self._vote(self._graded))
            self._grading_until = self._time.now() + self._settings.grading_seconds

    async def _vote(self, answers: list[str | None]) -> Majority:
        return await self._solver.vote(answers)

    def _take_groups(self) -> None:
        """Take over the groups of the grader, where it has answered, or do without where it did not in time."""
        task = self._grading
        if task is None or (not task.done() and self._time.now() < self._grading_until):
            return
        self._grading = None
        error: BaseException | None = TimeoutError("it took too long")
        if task.done():
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._grouping.take(self._graded, task.result())
            return
        log.warning("the grader did not group the answers: %r; equal spelling decides", error)
        self._grader_failures += 1
        task.cancel()
        self._solver.leftovers.add([task])
        self._grouping.spell(self._graded)

    def _settle(self, trial: Trial, *, search: bool) -> None:
        settle(
            trial,
            self._means,
            self._settings.answers,
            now=self._time.now(),
            problem_began=self._time.began,
            search=search,
        )
        lost, at = trial.error is not None, trial.at or 0.0
        answer = None if lost else trial.answer.answer
        self._tell(SolutionEnded(trial.sample, at, answer, trial.tokens, trial.whole, lost))

    def _is_heard(self, trial: Trial) -> bool:
        """Tell whether a solution has ended and its answer has a group: until then it counts as one that runs."""
        return trial.at is not None and (trial.error is not None or self._grouping.knows(trial.answer.answer))

    def _ended(self) -> list[Ended]:
        return [t.ended(self._grouping.group(t.answer.answer)) for t in self._trials if self._is_heard(t)]

    # -- the end ---------------------------------------------------------------------------------------------------

    def _closing(self, share: float) -> float:
        """Return the time at which such a share of the time for the end is over."""
        began, length = self._stopped
        return began + share * length

    async def _cut_off(self, search: bool) -> None:
        """End all that runs. Where ``search``, requests whose time is over may end by themselves first."""
        now = self._time.now()
        left = max(0.0, self._deadline - now)
        self._stopped = now, min(left, self._settings.closing(self._deadline)) if search else left
        running: list[asyncio.Future[Any]] = [t.task for t in self._trials if t.at is None]
        if search and running:
            await self._time.all(running, self._closing(1 / 3))
        self._hear()
        running = [task for task in running if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await self._time.all(running, min(self._time.now() + self._settings.cancel_seconds, self._closing(2 / 3)))
        for trial in self._trials:
            if trial.at is None:
                self._settle(trial, search=search and self._settings.partial_weight > 0)

    async def _group_all(self) -> None:
        """Have all answers grouped, in the time that there is."""
        while not all(self._is_heard(t) for t in self._trials):
            self._hear()
            if self._grading is not None:
                self._grading_until = min(self._grading_until, self._closing(0.9))
                await self._time.all([self._grading], self._grading_until)

    async def _pick(self, reason: Reason) -> tuple[Pick, bool]:
        """Return the answer, and whether selections chose it."""
        policy, ended, now = self._settings, self._ended(), self._time.now()
        samples = selection(policy, reason=reason, now=now, deadline=self._deadline, ended=ended)
        outcomes = {t.sample: t.outcome for t in self._trials if t.sample in samples and t.outcome is not None}
        if not outcomes:
            return choose(policy, ended), False
        chosen = await self._solver.selectors.select(
            self._problem,
            outcomes,
            policy,
            seed=self._seed,
            time=self._time,
            until=min(now + policy.select_seconds, self._deadline - 0.1 * policy.closing(self._deadline)),
            leftovers=self._solver.leftovers,
        )
        return judged(policy, ended, chosen), any(sample is not None for sample in chosen)

    def _answer(self, reason: Reason, pick: Pick, selected: bool) -> Answer:
        trials, name = self._trials, self._grouping.answer
        lost = [t.error for t in trials if t.error is not None]
        return Answer(
            answer=name(pick.group),
            votes=pick.votes,
            finished=sum(t.error is None and not t.cut for t in trials),
            finish=FINISHES.get(reason, Finish.AGREEMENT),
            seconds=self._time.now(),
            completion_tokens=sum(t.tokens for t in trials),
            failed=len(lost),
            last_error=lost[-1] if lost else None,
            reason=reason,
            weight=pick.weight,
            second=name(pick.second),
            second_weight=pick.second_weight,
            selected=selected,
            partial=sum(not t.whole and t.answer.answer is not None for t in trials),
            became=dict(Counter(t.answer.became for t in trials if t.written is not None)),
            grader_failures=self._grader_failures,
            left_behind=self._solver.leftovers.total - self._left_before,
            trials=tuple(trials),
        )


async def _count_here(answers: Any) -> Majority:
    return majority(answers)
