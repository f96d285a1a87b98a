"""Whole contests with everything that can go wrong, in simulated time: ``python -m tests.competition.chaos``.

Each contest draws its settings and its accidents from its seed: an engine that hangs, fails, breaks off, restarts or
ignores cancellation; a sandbox that is dead, hangs, or does not close; a grader that an answer kills; a clock that
jumps ahead or is set back. Held against each of them:

- An answer is there by its deadline; where the clock jumped over it, at the first moment after the jump; where it was
  set back, later by no more than that. Where sampling ended before, it is there as soon as the bounds of cancelling,
  grading and selecting say, and a selection takes no longer than its own time.
- The contest does not outlast its total, but for what the clock jumped; each problem has its reserve, and leaves
  theirs to the others; verdicts hold the next problem up no longer than they may.
- Every problem has one submission, of an answer that the contest takes, and nothing is allowed more than the bank has.
  At the deadline every unfinished solution has the answer that stands in it.
- Nothing runs on: no request that was not cancelled, and at the end no request, no session, no task.

``python -m tests.competition.mutants`` breaks each of these, and sees this program fail.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.chat import ChatTokenizer, Transcript
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.events import SamplingEnded, SolverEvent
from nemo_openmath.competition.policy import Reason
from nemo_openmath.competition.selecting import Selectors
from nemo_openmath.competition.solver import Answer, Solver, SolverSettings
from nemo_openmath.competition.stage import CLOSING_SECONDS, Compete, CompeteConfig
from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.grader import Grade
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.sandbox import SandboxError
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.grading import extract_answer
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import FOREVER, Say, TimedEngine, TimedGrader, TimedSandbox
from tests.support.services import Lent, stage_context
from tests.support.virtual_time import VirtualClock, VirtualLoop, in_virtual_time

SLACK = 1e-3  # seconds: steps of the simulated clock
ROUNDED = 1e-2  # seconds: of sums of what records hold, in milliseconds
STUBBORN, STUBBORN_SESSION = 5.0, 4.0  # seconds for which requests and sessions ignore that they are cancelled; a
# contest waits 10 for both at its end
LATEST = 20_000.0  # seconds at which the clock has jumped for the last time, whatever still hangs
REACHED = ("selections", "selections that ran out of time", "left behind", "grader failures", "partial", "lost")
"""What has to happen in many contests, so that a bound on it is tried."""


class ChaosGrader(TimedGrader):
    """A grader that hangs over one answer, in votes and in verdicts."""

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        if self.kills is not None and predicted == self.kills:
            await asyncio.sleep(FOREVER)
        return await super().grade(predicted, expected)


class ChaosSandbox(TimedSandbox):
    """A sandbox that dies and comes back."""

    rng: random.Random

    async def session(self, limits: Any = None) -> Any:
        if self.rng.random() < 0.1:
            raise SandboxError("the worker died", retryable=True)
        return await super().session(limits)


@dataclass
class Solved:
    """One problem, by the loop's time."""

    began: float
    seconds: float
    """What it was allowed."""
    end: float
    stopped: float
    """When sampling ended."""
    answer: Answer


@dataclass
class ChaosContest:
    """One contest: its accidents, and what was seen of it."""

    seed: int
    tokenizer: ChatTokenizer
    solved: list[Solved] = field(default_factory=list)
    selected: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) of each round of selections."""
    jumps: list[tuple[float, float]] = field(default_factory=list)
    """(time after it, seconds) of each jump of the clock; below 0 where it was set back."""
    ended: float = 0.0
    """When the stage ended."""

    def run(self, folder: Path) -> str:
        """Run the contest and check it. Return how it ended. Raises AssertionError."""
        rng = self.rng = random.Random(self.seed)
        self.problems = [
            Problem.make(f"Problem {self.seed} {n}?", expected_answer="42") for n in range(rng.randint(2, 5))
        ]
        write_records(folder / "problems", self.problems)
        self.accident = rng.choice(["none", "hangs", "lost", "breaks", "stubborn", "restarts", "all"])
        self.engine = TimedEngine(self.tokenizer, self._say)
        self.sandbox = ChaosSandbox(
            seconds=rng.uniform(0, 2),
            dead=rng.random() < 0.1,
            hangs=rng.random() < 0.15,
            stubborn=rng.choice([0, 0, 0, STUBBORN_SESSION]),
        )
        self.sandbox.rng = rng
        self.grader = ChaosGrader(
            seconds=rng.choice([0.0, 0.0, 0.5, 20.0]),
            kills=rng.choice([None, None, "41", "42"]),
            raises=rng.choice([None, None, None, OSError("no worker")]),
        )
        self.config = self._draw_config(rng)
        self.pace = self.config.base_seconds * rng.choice([0.1, 0.4, 1.0])  # mean seconds of a completion
        stage, self.clock = Compete(self.config), VirtualClock()
        stage.clock = self.clock
        lent = Lent(engine=self.engine, tokenizer=self.tokenizer, sandbox=self.sandbox)
        lent._grading = self.grader  # type: ignore[assignment]
        context = stage_context({"problems": [folder / "problems"]}, folder / "out", services=lent)
        ended = "finished"
        try:
            in_virtual_time(self._watched(stage, context))
        except (EngineError, SandboxError):  # all solutions of the first problems were lost: said by name
            ended = "engine or sandbox gone"
        self._check_times()
        if ended == "finished":
            self._check_records(folder / "out")
            self._check_gaps()
        else:
            assert not any(solved.answer.finished for solved in self.solved)
        assert self.engine.running == 0, "requests run on"
        assert self.sandbox.opened == self.sandbox.closed, "sessions are open"
        return ended

    def _draw_config(self, rng: random.Random) -> CompeteConfig:
        batch = rng.randint(1, 8)
        solver = SolverSettings(
            batch=batch,
            agree=rng.choice([batch, rng.randint(1, batch)]),
            rule=rng.choice(["votes", "bayes"]),  # type: ignore[arg-type]
            stragglers=rng.randint(0, min(2, batch - 1)),
            second=rng.choice([0, 3]),
            second_seconds=rng.choice([0.0, 20.0]),
            partial_weight=rng.choice([0.0, 0.5]),
            entropy_weight=rng.choice([0.0, 1.0]),
            replace=rng.choice([0, 3, 16]),
            final=rng.choice(["vote", "genselect"]),  # type: ignore[arg-type]
            select_seconds=rng.choice([1.0, 10.0]),
            select_reserved=rng.random() < 0.5,
            select_samples=3,
            answers=rng.choice([AnswerRule(), AnswerRule(integers=True, most=999, modulo=1000)]),
            closing_seconds=rng.choice([0.5, 5.0]),
            grading_seconds=rng.choice([2.0, 10.0]),
            cancel_seconds=rng.choice([0.0, 2.0]),
            rollout=RolloutSettings(max_tokens=rng.choice([20, 200]), budgets=(1, 3), code_seconds=2.0),
        )
        base = rng.choice([5.0, 40.0])
        return CompeteConfig(
            engine="m",
            mode=rng.choice([Mode.COT, Mode.TIR]),  # type: ignore[arg-type]
            base_seconds=base,
            bank_seconds=rng.choice([0.0, 20.0]),
            total_seconds=rng.choice([None, base * len(self.problems) * rng.uniform(0.3, 1.5)]),
            reserve_seconds=rng.choice([0.0, 2.0]),
            solver=solver,
        )

    def _say(self, prompt: str, number: int) -> Say:
        rng, accident = self.rng, self.accident
        if accident == "all":
            accident = rng.choice(["none", "hangs", "lost", "breaks", "stubborn", "restarts"])
        if "Judgment" in prompt:
            text = f"<think>hm</think>Judgment: {rng.randint(0, 3)}"
        elif self.config.mode == Mode.TIR and CODE_END not in prompt.rpartition("Problem")[2] and rng.random() < 0.5:
            text = f"<think>so\n{CODE_START}\nprint(1)\n{CODE_END}"
        else:
            answer = rng.choice(["42", "42", "41", "1042", "no", "\\frac{1}{2"])
            text = rng.choice(["", "<think>or \\boxed{41}? "]) + f"so</think>It is \\boxed{{{answer}}}"
        say = Say(text, rng.expovariate(1 / self.pace), rng.choice([0.0, 0.0, 3.0]), logprob=-rng.random())
        if rng.random() < 0.5:
            return say
        now = asyncio.get_running_loop().time()
        match accident:
            case "hangs":
                return Say(text, say.seconds, hangs=True)
            case "lost":
                return Say(text, say.seconds, fails=EngineError("lost", retryable=False))
            case "breaks":
                return Say(text, say.seconds, fails=EngineError("broken off", retryable=True))
            case "stubborn":
                return Say(text, say.seconds * 4, hangs=rng.random() < 0.5, stubborn=STUBBORN)
            case "restarts" if now % 30 < 5:  # the engine is down for 5 of 30 seconds
                return Say(text, 0.1, fails=EngineError("connection refused", retryable=True))
        return say

    async def _watched(self, stage: Compete, context: Any) -> None:
        accidents = asyncio.ensure_future(self._move_the_clock())
        try:
            with self._looked_on():
                await stage.run(context)
        finally:
            self.ended = asyncio.get_running_loop().time()
            accidents.cancel()

    @contextmanager
    def _looked_on(self) -> Iterator[None]:
        """Note when problems and selections begin and end, and what runs on behind them."""
        solve, select, contest, loop = Solver.solve, Selectors.select, self, asyncio.get_running_loop()

        async def seen(self: Solver, problem: str, *, seconds: float, seed: int) -> Answer:
            began, stopped = loop.time(), list[float]()

            def hear(event: SolverEvent) -> None:
                if isinstance(event, SamplingEnded):
                    stopped.append(loop.time())
                raise RuntimeError("who looks on fails")

            answer = await solve(self, problem, seconds=seconds, seed=seed, on_event=hear)
            contest.solved.append(Solved(began, seconds, loop.time(), stopped[0], answer))
            for _ in range(20):  # what was cancelled hears of it
                await asyncio.sleep(0)
            assert contest.engine.running == contest.engine.held, "requests run on that nobody cancelled"
            return answer

        async def selecting(self: Selectors, *args: Any, **options: Any) -> list[int | None]:
            began = loop.time()
            chosen = await select(self, *args, **options)
            contest.selected.append((began, loop.time()))
            return chosen

        Solver.solve, Selectors.select = seen, selecting  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Solver.solve, Selectors.select = solve, select  # type: ignore[method-assign]

    async def _move_the_clock(self) -> None:
        """Let the clock jump now and then, in half of the contests."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        while self.seed % 2 and loop.time() < LATEST:
            await asyncio.sleep(self.rng.expovariate(1 / 40))
            if self.rng.random() < 0.7:
                seconds = self.rng.choice([1.0, 30.0, 300.0])
                loop.jump(seconds)
            else:
                seconds = -self.rng.choice([0.5, 3.0])
                self.clock.offset += seconds
            self.jumps.append((loop.time(), seconds))

    def _moved(self, began: float, end: float) -> float:
        """Return by how much the clock jumped in between, in either direction."""
        return sum(abs(by) for at, by in self.jumps if began <= at <= end)

    def _check_times(self) -> None:
        """A problem's deadline, and the bounds of what comes after sampling."""
        solver = self.config.solver
        after = solver.cancel_seconds + 2 * solver.grading_seconds  # answers that are graded, and those that came then
        for s in self.solved:
            mine = [(at, by) for at, by in self.jumps if s.began <= at <= s.end]
            back = -sum(by for _, by in mine if by < 0)
            latest = max([s.began + s.seconds, *(at for at, by in mine if by > 0)]) + back
            assert s.end <= latest + SLACK, f"{s.end - latest:.3f} s late: {s} {mine}"
            if s.answer.reason is not Reason.TIME:
                selecting = sum(end - began for began, end in self.selected if s.stopped <= began <= s.end)
                took = s.end - s.stopped - selecting - self._moved(s.stopped, s.end)
                assert took <= after + SLACK, f"{took:.3f} s from the end of sampling to the answer: {s}"
            assert len(s.answer.trials) <= solver.batch + solver.second + solver.replace, "too many solutions"
        for began, end in self.selected:
            took = end - began - self._moved(began, end)
            assert took <= solver.select_seconds + SLACK, f"selecting took {took:.3f} s"

    def _check_gaps(self) -> None:
        """Verdicts and the end of the stage do not hold up the contest."""
        for s, follows in itertools.pairwise([*(s.began for s in self.solved), self.ended]):
            end = next(other.end for other in self.solved if other.began == s)
            most = self.config.solver.grading_seconds + (CLOSING_SECONDS if follows == self.ended else 0.0)
            took = follows - end - self._moved(end, follows)
            assert took <= most + SLACK, f"{took:.3f} s until the next problem"

    def _check_records(self, folder: Path) -> None:
        records = list(read_records(folder, Generation))
        submissions = [r for r in records if r.mode == Mode.COMPETITION]
        assert [s.problem_id for s in submissions] == [p.id for p in self.problems]
        self._check_bank([Submission.of(s) for s in submissions])
        solver = self.config.solver
        for submission in submissions:
            note, mine = Submission.of(submission), [r for r in records if submission.id in r.parents]
            answers = {r.predicted_answer for r in mine}
            assert submission.predicted_answer is None or submission.predicted_answer in answers
            for answer in answers:
                assert solver.answers.read(answer).answer == answer, f"{answer} cannot be submitted"
            if note.details["reason"] != "time" and any(r.finished and r.predicted_answer for r in mine):
                assert submission.predicted_answer is not None, "there was an answer"
            if note.details["reason"] == "time" and solver.partial_weight:
                for attempt in mine:
                    said = Transcript.from_json(attempt.transcript, ids=False).said
                    there = solver.answers.read(extract_answer(said).answer).answer
                    assert attempt.predicted_answer == there, f"{there} stands in it"
        assert self.grader.calls or not any(r.predicted_answer for r in records), "answers are compared without limits"

    def _check_bank(self, notes: list[Submission]) -> None:
        """Return whether the bank keeps its promises, of what the records say."""
        config, spent = self.config, 0.0
        total = config.base_seconds * len(self.problems) if config.total_seconds is None else config.total_seconds
        for others, note in zip(reversed(range(len(notes))), notes, strict=True):
            assert note.allowed is not None
            assert note.spent is not None
            left = max(0.0, total - spent)
            kept = min(config.base_seconds, config.reserve_seconds, left / (others + 1))
            assert 0 <= note.allowed <= min(config.base_seconds + config.bank_seconds, left) + ROUNDED
            assert note.allowed >= kept - ROUNDED, f"{note.allowed} s, and {kept} s are reserved"
            assert left - note.allowed >= kept * others - ROUNDED, "no reserve is left to the others"
            spent += note.spent
        used, moved = sum(s.end - s.began for s in self.solved), sum(abs(by) for _, by in self.jumps)
        assert used <= total + moved + SLACK * len(self.solved), f"{used} s of {total}, jumps {moved}"

    def counts(self) -> dict[str, int]:
        """Return what happened in it."""
        answers, most = [s.answer for s in self.solved], self.config.solver.select_seconds
        return {
            "answers": len(answers),
            "clock jumps": len(self.jumps),
            "selections": len(self.selected),
            "selections that ran out of time": sum(end - began >= most - SLACK for began, end in self.selected),
            "left behind": sum(a.left_behind for a in answers),
            "grader failures": sum(a.grader_failures for a in answers),
            "partial": sum(a.partial for a in answers),
            "lost": sum(a.failed for a in answers),
            f"accident: {self.accident}": 1,
        }


def run(contests: int, seed: int, tokenizer: ChatTokenizer) -> collections.Counter[str]:
    """Run so many contests. Raises AssertionError naming the seed of the first that breaks a promise."""
    ends: collections.Counter[str] = collections.Counter()
    for number in range(contests):
        contest = ChaosContest(seed * 1_000_000 + number, tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            try:
                ends[contest.run(Path(folder))] += 1
            except BaseException as error:
                raise AssertionError(f"contest {contest.seed} ({contest.accident}): {error!r}") from error
        ends.update(contest.counts())
    missed = [name for name in REACHED if ends[name] < contests / 50]
    assert not missed, f"too seldom: {missed} in {dict(ends)}"
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from nemo_openmath.demo.corpus import documents, recipe_texts
    from nemo_openmath.demo.tokenizer import train_tokenizer

    logging.disable(logging.WARNING)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        texts = [*itertools.islice(documents(0), 400), *recipe_texts(0, 200)]
        ends = run(arguments.contests, arguments.seed, train_tokenizer(texts, folder))
    for name, count in sorted(ends.items()):
        print(f"{count:>7,} {name}")
    print(f"{arguments.contests} contests held, {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    sys.exit(main())
