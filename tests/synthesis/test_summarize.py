"""New summaries: which is taken, why a solution is dropped, and what is written again."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.core.errors import Incomplete, UserError
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.solutions.summarize import Summarize, SummarizeConfig
from tests.support.engines import BUSY, REFUSED, Reply
from tests.support.services import StageRun, run_stage

PROBLEM = Problem.make("What is 6 times 7?")


def solution(name: str, text: str, predicted: str | None = "42", problem: Problem = PROBLEM) -> Generation:
    transcript = Transcript.from_text((Message("user", problem.problem),), text)
    return Generation(
        id=name,
        problem_id=problem.id,
        mode="cot",
        model="m",
        sample=0,
        transcript=transcript.to_json(),
        finish="stop",
        predicted_answer=predicted,
        verdict="equal",
    )


def thought(name: str) -> Generation:
    return solution(name, f"<think>I am {name}.</think>Old: \\boxed{{42}}.")


def summary_of(record: Generation) -> str | None:
    return Transcript.from_json(record.transcript).summary


@pytest.fixture
def summarize(tokenizer: ChatTokenizer, grading: GradingPool, tmp_path: Path) -> Callable[..., Any]:
    async def run(answer: Callable[[str], str | Reply], *solutions: Generation, **settings: Any) -> StageRun:
        stage = Summarize(SummarizeConfig(**settings))
        return await run_stage(
            stage, tmp_path, answer, tokenizer=tokenizer, grading=grading, generations=solutions, problems=[PROBLEM]
        )

    return run


async def test_the_longest_summary_that_keeps_the_answer_is_taken(summarize: Callable[..., Any]) -> None:
    replies = iter(
        [
            "It is \\boxed{42}.",
            "Seven times six makes \\boxed{42.0}.",  # the same answer in another form
            Reply("Much longer, but cut off: \\boxed{42} is what", finish="length"),
            "Longer than all others, but it comes to another answer: \\boxed{43}.",
            "Longer than all others, but it comes to no answer at all.",
        ]
    )
    old = thought("a")
    run = await summarize(lambda _: next(replies), old, candidates=5, temperature=0.5, max_tokens=99)
    (new,) = run.records
    assert Transcript.from_json(new.transcript).text == "<think>I am a.</think>\nSeven times six makes \\boxed{42.0}."
    assert new.thinks
    assert new.with_(transcript=old.transcript, thinks=old.thinks) == old, "nothing but the transcript is another one"
    assert len({asked.seed for asked in run.asked}) == 5, "each candidate is drawn with a seed of its own"
    assert {(asked.temperature, asked.max_tokens) for asked in run.asked} == {(0.5, 99)}
    for asked in run.asked:
        assert PROBLEM.problem in asked.question
        assert "<think>I am a.</think>Old: \\boxed{42}." in asked.question, "the whole solution is shown"


async def test_a_solution_that_does_not_think_becomes_the_thinking(summarize: Callable[..., Any]) -> None:
    run = await summarize(lambda _: "So \\boxed{42}.", solution("plain", "6 * 7 = \\boxed{42}"))
    (new,) = run.records
    assert Transcript.from_json(new.transcript).text == "<think>\n6 * 7 = \\boxed{42}</think>\nSo \\boxed{42}."


async def test_every_reason_to_drop_is_named(summarize: Callable[..., Any]) -> None:
    says: dict[str, str | Reply] = {
        "I am cut.": Reply("It is \\boxed{42}", finish="length"),
        "I am wrong.": "It is \\boxed{41}.",
        "I am refused.": REFUSED,
    }
    solutions = [thought(name) for name in ("cut", "wrong", "refused")]
    without = solution("without", "<think>I am without.</think>I do not know.", predicted=None)
    run = await summarize(
        lambda question: next(reply for name, reply in says.items() if name in question), *solutions, without
    )
    assert run.records == []
    assert {unit: drop.reason for unit, drop in run.drops} == {
        "cut": "no summary was finished",
        "wrong": "no summary kept the answer",
        "refused": "refused by the engine",
        "without": "no answer to summarize",
    }
    assert not any("I am without." in asked.question for asked in run.asked)


async def test_a_solution_of_an_unknown_problem_is_the_users_mistake(summarize: Callable[..., Any]) -> None:
    foreign = solution("foreign", "<think>x</think>\\boxed{42}", problem=Problem.make("Which one?"))
    with pytest.raises(UserError, match=f"problem {foreign.problem_id} of generation foreign is in none of the"):
        await summarize(lambda _: "\\boxed{42}", foreign)


async def test_a_second_run_writes_only_what_is_missing(summarize: Callable[..., Any]) -> None:
    numbers = count()
    solutions = [thought("a"), thought("b"), thought("c"), thought("b")]  # b stands there twice: it is one

    def write(question: str) -> str:
        return f"Summary {next(numbers)}: \\boxed{{42}}."

    with pytest.raises(Incomplete, match="1 unit failed"):
        await summarize(lambda question: BUSY if "I am b." in question else write(question), *solutions, candidates=2)
    second = await summarize(write, *solutions, candidates=2)
    assert [("I am b." in asked.question) for asked in second.asked] == [True, True]
    assert sorted(record.id for record in second.records) == ["a", "b", "c"]
    third = await summarize(lambda _: "\\boxed{0}", *solutions, candidates=2)
    assert (third.records, third.asked) == (second.records, [])
