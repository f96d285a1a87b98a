"""Whole contests with everything that can go wrong, in simulated time: ``python -m tests.competition.chaos``.

Each contest draws its settings and its accidents from its seed: an engine that hangs, fails, breaks off, restarts or
ignores cancellation; a sandbox that is dead, hangs, or does not close; a grader that an answer kills; a clock that
jumps ahead or is set back. Held against each of them:

- An answer is there by its deadline; where the clock jumped over it, at the first moment after the jump; where it was
  set back, later by no more than that.
- The contest does not outlast its total, but for what the clock jumped.
- Every problem has one submission, and nothing is allowed more than the bank has.
- Nothing runs on: no request, no session, no task.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.solver import Answer, Solver, SolverSettings
from nemo_openmath.competition.stage import Compete, CompeteConfig
from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.grader import Grade
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.sandbox import SandboxError
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.grading import compare
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import FOREVER, Say, TimedEngine, TimedGrader, TimedSandbox
from tests.support.services import Lent, stage_context
from tests.support.virtual_time import VirtualClock, VirtualLoop, in_virtual_time

SLACK = 1e-3  # seconds: steps of the simulated clock
STUBBORN = 8.0  # seconds for which something ignores its cancellation; a contest waits 10 for it at its end


class ChaosGrader(TimedGrader):
    """A grader that hangs over one answer, in votes and in verdicts."""

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        if self.kills is not None and predicted == self.kills:
            await asyncio.sleep(FOREVER)
        return compare(predicted, expected)


class ChaosSandbox(TimedSandbox):
    """A sandbox that dies and comes back."""

    rng: random.Random

    async def session(self, limits: Any = None) -> Any:
        if self.rng.random() < 0.1:
            raise SandboxError("the worker died", retryable=True)
        return await super().session(limits)


@dataclass
class ChaosContest:
    """One contest: its accidents, and what was seen of it."""

    seed: int
    tokenizer: ChatTokenizer
    solved: list[tuple[float, float, float]] = field(default_factory=list)
    """(begin, seconds allowed, end) of each problem, by the loop's time."""
    jumps: list[tuple[float, float]] = field(default_factory=list)
    """(time after it, seconds) of each jump of the clock; below 0 where it was set back."""
    answered: int = 0

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
            stubborn=rng.choice([0, 0, 0, STUBBORN]),
        )
        self.sandbox.rng = rng
        grader = ChaosGrader(
            seconds=rng.choice([0.0, 0.0, 0.5, 20.0]),
            kills=rng.choice([None, None, "41", "42"]),
            raises=rng.choice([None, None, None, OSError("no worker")]),
        )
        self.config = self._draw_config(rng)
        stage, self.clock = Compete(self.config), VirtualClock()
        stage.clock = self.clock
        lent = Lent(engine=self.engine, tokenizer=self.tokenizer, sandbox=self.sandbox)
        lent._grading = grader  # type: ignore[assignment]
        context = stage_context({"problems": [folder / "problems"]}, folder / "out", services=lent)
        ended = "finished"
        try:
            in_virtual_time(self._watched(stage, context))
        except (EngineError, SandboxError):  # all solutions of the first problems were lost: said by name
            ended = "engine or sandbox gone"
        if ended == "finished":
            self._check_records(folder / "out")
        else:
            assert not self.answered
        self._check_times()
        assert self.engine.running == 0, "requests run on"
        assert self.sandbox.opened == self.sandbox.closed, "sessions are open"
        return ended

    def _draw_config(self, rng: random.Random) -> CompeteConfig:
        batch = rng.randint(1, 8)
        solver = SolverSettings(
            batch=batch,
            agree=rng.randint(1, batch),
            rule=rng.choice(["votes", "bayes"]),  # type: ignore[arg-type]
            stragglers=rng.randint(0, min(2, batch - 1)),
            second=rng.choice([0, 3]),
            second_seconds=rng.choice([0.0, 20.0]),
            partial_weight=rng.choice([0.0, 0.5]),
            entropy_weight=rng.choice([0.0, 1.0]),
            final=rng.choice(["vote", "genselect"]),  # type: ignore[arg-type]
            select_seconds=rng.choice([1.0, 10.0]),
            select_reserved=rng.random() < 0.5,
            select_samples=3,
            answers=rng.choice([AnswerRule(), AnswerRule(integers=True, most=999, modulo=1000)]),
            closing_seconds=rng.choice([0.5, 5.0]),
            grading_seconds=rng.choice([2.0, 10.0]),
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
        say = Say(text, rng.expovariate(1 / 15), rng.choice([0.0, 0.0, 3.0]), logprob=-rng.random())
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
        solve, loop, contest = Solver.solve, asyncio.get_running_loop(), self

        async def seen(self: Solver, problem: str, *, seconds: float, seed: int) -> Answer:
            began = loop.time()
            answer = await solve(self, problem, seconds=seconds, seed=seed)
            contest.solved.append((began, seconds, loop.time()))
            contest.answered += answer.finished > 0
            return answer

        Solver.solve = seen  # type: ignore[method-assign]
        try:
            await stage.run(context)
        finally:
            Solver.solve = solve  # type: ignore[method-assign]
            accidents.cancel()

    async def _move_the_clock(self) -> None:
        """Let the clock jump now and then, in half of the contests."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        while self.seed % 2:
            await asyncio.sleep(self.rng.expovariate(1 / 40))
            if self.rng.random() < 0.7:
                seconds = self.rng.choice([1.0, 30.0, 300.0])
                loop.jump(seconds)
            else:
                seconds = -self.rng.choice([0.5, 3.0])
                self.clock.offset += seconds
            self.jumps.append((loop.time(), seconds))

    def _check_times(self) -> None:
        for began, seconds, end in self.solved:
            mine = [(at, by) for at, by in self.jumps if began <= at <= end]
            back = -sum(by for _, by in mine if by < 0)
            latest = max([began + seconds, *(at for at, by in mine if by > 0)]) + back
            assert end <= latest + SLACK, f"{end - latest:.3f} s late: {began=} {seconds=} {end=} {mine}"
        if self.solved:
            total = self.config.total_seconds or self.config.base_seconds * len(self.problems)
            moved = sum(abs(by) for _, by in self.jumps)
            used = sum(end - began for began, _, end in self.solved)
            assert used <= total + moved + SLACK * len(self.solved), f"{used} s of {total}, jumps {moved}"

    def _check_records(self, folder: Path) -> None:
        records = list(read_records(folder, Generation))
        submissions = [r for r in records if r.mode == Mode.COMPETITION]
        assert [s.problem_id for s in submissions] == [p.id for p in self.problems]
        most = self.config.base_seconds + self.config.bank_seconds
        for submission in submissions:
            note = Submission.of(submission)
            assert 0 <= (note.allowed or 0) <= most + SLACK
            mine = [r for r in records if submission.id in r.parents]
            answers = {r.predicted_answer for r in mine}
            assert submission.predicted_answer is None or submission.predicted_answer in answers
            if note.details["reason"] != "time" and any(r.finished and r.predicted_answer for r in mine):
                assert submission.predicted_answer is not None, "there was an answer"


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
        ends["answers"] += len(contest.solved)
        ends["clock jumps"] += len(contest.jumps)
        ends[f"accident: {contest.accident}"] += 1
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
