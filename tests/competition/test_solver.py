"""One problem under a deadline, in simulated time: with whatever hangs, the answer is there, and nothing runs on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import Answer, Solver, SolverSettings
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.policy import Reason, _agree
from nemo_openmath.competition.waiting import Leftovers
from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.grading import majority
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import LOST, Say, TimedEngine, TimedGrader, TimedSandbox, boxed
from tests.support.virtual_time import VirtualClock, in_virtual_time

SETTINGS: dict[str, Any] = {"replace": 0, "closing_seconds": 5.0}


class Bench:
    """One problem of ``seconds``, whose n-th request the model answers with ``says[n]``, or by a function."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        says: Sequence[Say] | Callable[[str, int], Say],
        *,
        sandbox: TimedSandbox | None = None,
        grader: TimedGrader | None = None,
        seconds: float = 100.0,
        deterministic: bool = False,
        **settings: Any,
    ):
        self.tokenizer, self.seconds = tokenizer, seconds
        told = says if callable(says) else lambda _, number: says[number]
        self.engine = TimedEngine(tokenizer, told, deterministic=deterministic)
        batch = settings.pop("batch", 4 if callable(says) else len(says))
        rollout = settings.pop("rollout", RolloutSettings(max_tokens=400, budgets=(2, 2)))
        self.settings = SolverSettings(**(SETTINGS | {"batch": batch, "rollout": rollout} | settings))
        self.sandbox, self.grader, self.leftovers = sandbox, grader or TimedGrader(), Leftovers()
        self.asked_at: list[float] = []

    def solve(self, *, close: float = 0.0) -> Answer:
        return in_virtual_time(self._solve(close))

    async def _solve(self, close: float) -> Answer:
        clock = VirtualClock()
        solver = Solver(
            self.engine,
            self.tokenizer,
            self.sandbox,
            load_template("tir" if self.sandbox else "cot"),
            self.settings,
            clock=clock,
            vote=self.grader.majority,
            leftovers=self.leftovers,
        )
        began = clock.now()
        answer = await solver.solve("What is 6 times 7?", seconds=self.seconds, seed=1)
        self.took = clock.now() - began
        if close:
            assert await self.leftovers.close(clock, close) == 0
        return answer


def says(*answers: str | None, step: float = 1.0) -> list[Say]:
    return [Say(boxed(answer), (n + 1) * step) for n, answer in enumerate(answers)]


NEVER = Say(boxed("9"), 1000.0)


@pytest.mark.parametrize(
    ("plan", "answer", "votes", "ended", "cancelled", "seconds"),
    [
        # The first three agree (1/2 is 0.5): the others are cancelled.
        ([*says("1/2", "0.5", "\\frac12"), NEVER, NEVER], None, 3, "agreement", 2, 3.0),
        # One of the first three differs: four equal ones are needed then.
        ([*says("1", "2", "1", "1", "1"), NEVER], "1", 4, "agreement", 1, 5.0),
        # Nobody agrees: all are heard, the majority wins.
        (says("1", "2", "2", "3"), "2", 2, "finished", 0, 4.0),
        # Failures are left out.
        ([Say("", fails=LOST), Say(boxed("2"), 2), Say("", fails=LOST)], "2", 1, "finished", 0, 2.0),
    ],
)
def test_agreement(
    tokenizer: ChatTokenizer,
    plan: list[Say],
    answer: str | None,
    votes: int,
    ended: str,
    cancelled: int,
    seconds: float,
) -> None:
    bench = Bench(tokenizer, plan, agree=3)
    result = bench.solve()
    assert (result.votes, result.finish, bench.engine.cancelled) == (votes, ended, cancelled)
    assert result.answer == answer or (answer is None and result.answer in ("1/2", "0.5", "\\frac12"))
    assert result.failed == sum(say.fails is not None for say in plan)
    assert bench.took == pytest.approx(seconds, abs=1e-3), "what runs is cancelled at once"
    assert {request.time_limit for request in bench.engine.requests} == {95.5}, "and would have ended by itself"


def test_at_the_deadline_unfinished_solutions_are_searched(tokenizer: ChatTokenizer) -> None:
    late = Say(f"<think>Perhaps \\boxed{{7}}. But {'wait ' * 40}</think>\\boxed{{9}}", 300.0)
    bench = Bench(tokenizer, [*says(None), late, late, NEVER])
    result = bench.solve()
    assert (result.answer, result.finish, result.partial, result.votes) == ("7", "time", 2, 2)
    assert result.weight == 1.0, "half a vote each"
    assert 95.0 <= bench.took < 100.0
    assert [t.watch.outcome() is not None and t.cut for t in result.trials] == [False, True, True, True]
    assert Bench(tokenizer, [*says(None), late, late, NEVER], partial_weight=0.0).solve().answer is None


def test_no_answer_at_all(tokenizer: ChatTokenizer) -> None:
    result = Bench(tokenizer, [NEVER], agree=1).solve()
    assert (result.answer, result.votes, result.finish) == (None, 0, "time")
    assert Bench(tokenizer, [NEVER], agree=1, seconds=0.0).solve().answer is None, "without any time nothing is asked"


def test_stragglers_a_second_round_and_what_was_lost(tokenizer: ChatTokenizer) -> None:
    bench = Bench(tokenizer, [*says("1", "2", "2"), NEVER], agree=4, stragglers=1)
    assert (bench.solve().reason, bench.engine.cancelled) == (Reason.STRAGGLERS, 1)
    bench = Bench(tokenizer, says("1", "2", "3", "3"), batch=2, agree=2, second=2, second_seconds=20.0)
    result = bench.solve()
    assert (result.answer, len(result.trials), result.reason) == ("3", 4, Reason.FINISHED)
    assert [round(t.watch.began - result.trials[0].watch.began) for t in result.trials] == [0, 0, 2, 2]
    assert result.trials[3].timing is not None
    assert result.trials[3].timing.began == pytest.approx(2.0)
    plan = [Say("", 1.0, fails=LOST), Say(boxed("5"), 9.0), Say(boxed("5"), 1.0)]
    result = Bench(tokenizer, plan, batch=2, agree=2, replace=1, replace_pause=3.0).solve()
    assert (result.answer, result.failed, result.votes, round(result.seconds)) == ("5", 1, 2, 9)


def test_a_stream_that_breaks_off_is_asked_for_again(tokenizer: ChatTokenizer) -> None:
    plan = [Say(boxed("1"), 3.0, fails=EngineError("the server is gone", retryable=True)), Say(boxed("5"), 1.0)]
    bench = Bench(tokenizer, plan, batch=1, agree=1)
    result = bench.solve()
    assert (result.answer, result.failed, len(bench.engine.requests)) == ("5", 0, 2)
    assert bench.engine.requests[0].sampling == bench.engine.requests[1].sampling, "with the same seed"


CODE = f"<think>I compute.\n{CODE_START}\nprint(6*7)\n{CODE_END}"


def code_then(answer: str) -> Callable[[str, int], Say]:
    return lambda prompt, _: Say(f"</think>\\boxed{{{answer}}}", 1.0) if "6*7" in prompt else Say(CODE, 1.0)


def test_times_of_a_solution_with_code(tokenizer: ChatTokenizer) -> None:
    sandbox = TimedSandbox(seconds=0.5)
    bench = Bench(tokenizer, code_then("42"), sandbox=sandbox, batch=2, agree=2, entropy_weight=1.0)
    result = bench.solve()
    assert (result.answer, sandbox.closed) == ("42", 2)
    assert result.weight == pytest.approx(2 * 2.718281828**-0.5), "each token had log-probability -0.5"
    timing = result.trials[0].timing
    assert timing is not None
    (zero, _), (first, n1), (second, n2), (last, n3) = timing.points
    assert (zero, round(first, 6), round(second, 6), round(last, 6)) == (0.0, 1.0, 1.5, 2.5)
    assert n1 == n2 < n3 == result.trials[0].tokens
    assert (timing.code_seconds, timing.answer_surprise) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("sandbox", "answer", "lost", "left"),
    [
        (TimedSandbox(dead=True), None, 3, 0),
        (TimedSandbox(hangs=True), None, 0, 0),
        (TimedSandbox(hangs=True, stubborn=500.0), None, 0, 3),
        (TimedSandbox(stubborn=500.0), "42", 0, 3),  # all is said when the session does not close
    ],
    ids=["dead", "hangs", "hangs and does not close", "does not close"],
)
def test_whatever_the_sandbox_does_the_deadline_holds(
    tokenizer: ChatTokenizer, sandbox: TimedSandbox, answer: str | None, lost: int, left: int
) -> None:
    bench = Bench(tokenizer, code_then("42"), sandbox=sandbox, batch=3, agree=3)
    result = bench.solve(close=1000.0)
    assert bench.took < 100.0
    assert (result.answer, result.failed, result.left_behind) == (answer, lost, left)
    assert sandbox.opened == sandbox.closed
    assert all("print(6*7)" in t.outcome.transcript.text for t in result.trials if t.outcome is not None)


@pytest.mark.parametrize(
    "hang", [Say(boxed("9"), 500.0, hangs=True), Say("x", hangs=True, stubborn=300.0), Say("", delay=500.0, hangs=True)]
)
def test_whatever_the_engine_does_the_deadline_holds(tokenizer: ChatTokenizer, hang: Say) -> None:
    bench = Bench(tokenizer, [*says("4"), hang, hang], agree=3)
    result = bench.solve(close=1000.0)
    assert (result.answer, result.finish) == ("4", "time")
    assert 95.0 <= bench.took < 100.0
    assert result.left_behind == (2 if hang.stubborn else 0)


@pytest.mark.parametrize("grader", [TimedGrader(kills="3"), TimedGrader(raises=OSError("no worker"))])
def test_whatever_the_grader_does_the_deadline_holds(tokenizer: ChatTokenizer, grader: TimedGrader) -> None:
    bench = Bench(tokenizer, says("4", "3", "4", "4"), agree=4, grader=grader, grading_seconds=7.0)
    result = bench.solve(close=10.0)
    assert (result.answer, result.votes) == ("4", 3)
    assert result.grader_failures >= 1
    assert bench.took < 20.0
    late = Bench(tokenizer, [*says("4"), NEVER], agree=2, grader=TimedGrader(seconds=99.0), grading_seconds=200.0)
    assert late.solve(close=10.0).answer == "4"
    assert late.took < 100.0


def test_answers_are_read_by_the_rule_of_the_contest(tokenizer: ChatTokenizer) -> None:
    rule = AnswerRule(integers=True, most=999, modulo=1000)
    result = Bench(tokenizer, says("1005", "5", "x", "2.5", "5"), answers=rule, agree=4).solve()
    assert (result.answer, result.votes) == ("5", 3)
    assert result.became == {"reduced": 1, "kept": 2, "not_integer": 2}


def selecting(
    prompt: str, number: int, *, choice: str | None = "last", seconds: float = 2.0, hangs: bool = False
) -> Say:
    """Solutions 1 1 2; a judge who wants the one whose answer is 2."""
    if "Judgment" not in prompt:
        return Say(boxed(["1", "1", "2"][number], thought=f"way {number}"), number + 1.0)
    shown = [line for line in prompt.splitlines() if "\\boxed{" in line and "Well." in line]
    index = next((n for n, line in enumerate(shown) if "{2}" in line), 0)
    return Say(f"<think>hm</think>Judgment: {index if choice else 'none'}", seconds, hangs=hangs)


@pytest.mark.parametrize(
    ("judge", "seconds", "answer", "selected"),
    [
        ({}, 100.0, "2", True),
        ({"choice": None}, 100.0, "1", False),
        ({"hangs": True}, 100.0, "1", False),
        ({"seconds": 500.0}, 100.0, "1", False),
        ({}, 30.0, "1", False),  # no time is left for it
    ],
)
def test_a_selection_decides_where_time_is_left(
    tokenizer: ChatTokenizer, judge: dict[str, Any], seconds: float, answer: str, selected: bool
) -> None:
    bench = Bench(
        tokenizer,
        lambda prompt, number: selecting(prompt, number, **judge),
        batch=3,
        agree=3,
        final="genselect",
        select_seconds=30.0,
        select_samples=3,
        seconds=seconds,
    )
    result = bench.solve()
    assert (result.answer, result.selected) == (answer, selected)
    assert bench.took < (34.0 if selected or judge else 4.0)
    assert len(bench.engine.requests) == (6 if seconds == 100.0 else 3)


def test_a_reserved_selection_has_its_time(tokenizer: ChatTokenizer) -> None:
    def say(prompt: str, number: int) -> Say:
        if number > 2:
            return selecting(prompt, number)
        return NEVER if number == 2 else Say(boxed("2" if number else "1", thought=f"way {number}"), 2.0 + number)

    bench = Bench(
        tokenizer,
        say,
        batch=3,
        agree=3,
        final="genselect",
        select_seconds=30.0,
        select_samples=1,
        select_reserved=True,
    )
    result = bench.solve()
    assert (result.answer, result.selected, result.reason) == ("2", True, Reason.TIME)
    assert 65.0 <= bench.took < 75.0


@pytest.mark.parametrize(
    "answers", [["50", "50%", "0.5", "50", "0.5"], ["7", "5 m", "5", "5 cm", "5", "5"], ["1", None, "2"]]
)
def test_agreement_is_the_vote_on_what_was_seen_in_any_order(answers: list[str | None]) -> None:
    votes = [majority(order) for order in itertools.islice(itertools.permutations(answers), 0, None, 29)]
    for agree in (2, 3, 4):
        rulings = {_agree([count for _, count in vote.groups], vote.total, agree) for vote in votes}
        vote = majority(answers)
        assert rulings == {not vote.tie and vote.count >= agree + (len(answers) > agree) and len(answers) >= agree}
