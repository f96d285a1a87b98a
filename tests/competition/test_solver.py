"""Time bank and early agreement, with the stand-in teacher as the model and a clock that the test moves."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import SolverSettings, TimeBank, solve
from nemo_openmath.competition.solver import agreed
from nemo_openmath.core.engine import Completion, EngineError, Request
from nemo_openmath.grading import majority
from nemo_openmath.inference.rollout import RolloutSettings
from tests.support.engines import LocalEngine


@given(st.lists(st.floats(0, 560), max_size=50))
def test_the_bank_never_gives_more_than_it_has(times: list[float]) -> None:
    bank = TimeBank()
    spent = 0.0
    for n, wanted in enumerate(times, 1):
        allowed = bank.allowance()
        assert allowed <= 560
        took = min(wanted, allowed)
        bank.spend(took)
        spent += took
        assert spent <= n * 350 + 1e-6, "all problems so far fit their base times"
    assert TimeBank(350, 210).allowance() == 350, "the first problem has its base time alone"


def test_an_overdrawn_problem_is_paid_by_the_next() -> None:
    bank = TimeBank(10, 5)
    bank.spend(4)
    assert bank.allowance() == 15
    bank.spend(15)
    assert bank.allowance() == 11
    bank.spend(20)  # a solution that ended late
    assert bank.allowance() == 1, "what was taken beyond the bank is owed"


class Voices(LocalEngine):
    """An engine whose n-th request says the n-th answer once all before it are said; None fails, NEVER waits until it
    is cancelled, which is counted. It is also the clock: the time is over once all but NEVER is said."""

    never_late = False

    def __init__(self, tokenizer: ChatTokenizer, said: list[str | None]):
        super().__init__(tokenizer)
        self.said, self.asked, self.cancelled, self.time = said, 0, 0, 0.0
        self.turns = [asyncio.Event() for _ in range(len(said) + 1)]
        self.turns[0].set()

    async def complete(self, request: Request) -> Completion:
        number, answer = self.asked, self.said[self.asked]
        self.asked += 1
        try:
            await self.turns[number].wait()
            if answer == NEVER:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.turns[number + 1].set()
        if answer is None:
            raise EngineError("lost", retryable=False)
        return self.turn(request, f"<think>so</think>\\boxed{{{answer}}}")

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await self.turns[len(self.said) - self.said.count(NEVER)].wait()
        for _ in range(20):  # the last answer has arrived
            await asyncio.sleep(0)
        if self.never_late:
            await asyncio.Event().wait()
        self.time += seconds


NEVER = "never"


async def run(tokenizer: ChatTokenizer, said: list[str | None], agree: int = 3, never_late: bool = False):  # type: ignore[no-untyped-def]
    engine = Voices(tokenizer, said)
    engine.never_late = never_late
    settings = SolverSettings(batch=len(said), agree=agree, rollout=RolloutSettings(max_tokens=100))
    result = await solve(
        engine, tokenizer, None, load_template("cot"), "p", settings, seconds=9.0, seed=1, clock=engine
    )
    return result, engine


@pytest.mark.parametrize(
    ("said", "answer", "votes", "ended", "cancelled"),
    [
        # The first three agree (1/2 is 0.5): the stragglers are cancelled.
        (["1/2", "0.5", "\\frac12", NEVER, NEVER], None, 3, "agreement", 2),
        # One of the first three differs: four equal ones are needed then.
        (["1", "2", "1", "1", "1", NEVER], "1", 4, "agreement", 1),
        # Nobody agrees: all are heard, the majority wins.
        (["1", "2", "2", "3"], "2", 2, "finished", 0),
        # Failures are left out.
        ([None, "2", None], "2", 1, "finished", 0),
    ],
)
async def test_agreement(
    tokenizer: ChatTokenizer,
    said: list[str | None],
    answer: str | None,
    votes: int,
    ended: str,
    cancelled: int,
) -> None:
    result, engine = await run(tokenizer, said, never_late=True)
    assert (result.votes, result.finish, engine.cancelled) == (votes, ended, cancelled)
    assert result.answer == answer or (answer is None and result.answer in ("1/2", "0.5", "\\frac12"))
    assert result.failed == said.count(None)


async def test_the_time_limit_takes_what_there_is(tokenizer: ChatTokenizer) -> None:
    result, engine = await run(tokenizer, ["4", NEVER, NEVER])
    assert (result.answer, result.finish, result.finished, engine.cancelled) == ("4", "time", 1, 2)
    assert result.seconds == 9.0


async def test_no_answer_at_all(tokenizer: ChatTokenizer) -> None:
    result, _ = await run(tokenizer, [NEVER], agree=1)
    assert (result.answer, result.votes, result.finish) == (None, 0, "time")


@pytest.mark.parametrize(
    "answers", [["50", "50%", "0.5", "50", "0.5"], ["7", "5 m", "5", "5 cm", "5", "5"], ["1", None, "2"]]
)
def test_agreement_is_the_vote_on_what_was_seen_in_any_order(answers: list[str | None]) -> None:
    for agree in (2, 3, 4):
        said = {agreed(majority(order), agree) for order in itertools.permutations(answers)}
        assert len(said) == 1
        vote = majority(answers)
        assert said == {not vote.tie and vote.count >= agree + (len(answers) > agree) and len(answers) >= agree}
