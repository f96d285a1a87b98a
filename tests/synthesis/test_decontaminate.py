"""What decontamination asks, what it drops with which evidence, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.synthesis.problems.decontaminate import NOTE, Decontaminate, DecontaminateConfig, reason_of
from tests.support.engines import REFUSED, Reply
from tests.support.services import Lent, run_stage, stage_context

HELD = "How many positive integers up to 500 are divisible by 3 but not by 7?"
REWORDED = "How many positive integers up to 500 are divisible by 3, yet not by 7?"
NUMBERS = "How many positive integers up to 900 are divisible by 4 but not by 7?"
FOREIGN = "A circle is drawn through the corners of a square. What is its area?"
_FENCED = re.compile(r"problem begins -----\n(.*?)\n----- (?:first|second) problem ends", re.S)


def shown(question: str) -> tuple[str, str]:
    """The two problems of a question, in its order."""
    first, second = _FENCED.findall(question)
    return first, second


def by_first(replies: dict[str, str | Reply], otherwise: str = "Verdict: no") -> Callable[[str], str | Reply]:
    """The reply for the problem that stands first."""
    return lambda question: replies.get(shown(question)[0], otherwise)


async def test_drops_what_a_benchmark_holds_in_any_words_with_the_evidence(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    problems = [Problem.make(text) for text in (FOREIGN, f"{HELD.upper()} ", REWORDED, NUMBERS)]
    replies: dict[str, str | Reply] = {REWORDED: "Why: 500, 3 and 7 in both.\nVerdict: yes"}
    held = Problem.make(HELD)
    run = await run_stage(
        Decontaminate(DecontaminateConfig()), tmp_path, by_first(replies, "Why: other numbers.\nVerdict: no"),
        tokenizer=tokenizer, problems=problems,
        benchmark=[held, Problem.make("Find the remainder when 7^100 is divided by 13.")],
    )  # fmt: skip
    assert [problem.problem for problem in run.records] == [FOREIGN, NUMBERS]
    details = {drop.reason: drop.detail for _, drop in run.drops}
    assert details["in the benchmark, word for word"].startswith(f"{held.id} of benchmark: ")
    evidence = r" of benchmark; similarity 0\.\d\d; same, different; why: 500, 3 and 7 in both\. / other numbers\.; "
    evidence += "1 of 2 verdicts; "
    assert re.match(held.id + evidence, details["in the benchmark, by one verdict of several"])
    asked = [shown(request.question) for request in run.asked]
    assert {tuple(sorted(pair)) for pair in asked} == {tuple(sorted((HELD, text))) for text in (REWORDED, NUMBERS)}
    assert len(asked) == len(set(asked)) == 4, "each pair in both orders"


@pytest.mark.parametrize(
    ("settings", "first", "second", "dropped", "questions"),
    [
        ({}, "no", "yes", "by one verdict of several", 2),
        ({}, "yes", "yes", "reworded", 2),
        ({}, "no", "no", "", 2),
        ({"strictness": "both"}, "yes", "no", "", 2),
        ({"strictness": "both"}, "yes", "yes", "reworded", 2),
        ({"strictness": "both"}, "no", "yes", "", 1),
        ({"orders": "one"}, "no", "yes", "", 1),
        ({"orders": "one"}, "yes", "no", "reworded", 1),
    ],
)
async def test_strictness_says_what_of_two_verdicts_drops(
    tokenizer: ChatTokenizer, tmp_path: Path, settings: dict[str, Any], first: str, second: str, dropped: str,
    questions: int,
) -> None:  # fmt: skip
    replies: dict[str, str | Reply] = {REWORDED: f"Why: a.\nVerdict: {first}", HELD: f"Why: b.\nVerdict: {second}"}
    stage = Decontaminate(DecontaminateConfig(**settings))
    run = await run_stage(
        stage, tmp_path, by_first(replies), tokenizer=tokenizer, problems=[Problem.make(REWORDED)],
        benchmark=[Problem.make(HELD)],
    )  # fmt: skip
    assert run.reasons == ([f"in the benchmark, {dropped}"] if dropped else [])
    assert len(run.asked) == questions
    if settings == {"strictness": "both"} and (first, second) == ("yes", "no"):
        (note,) = run.records[0].extra[NOTE]
        assert (note["same"], note["why"]) == ([True, False], ["a.", "b."])
        assert note["benchmark"] == [["benchmark", Problem.make(HELD).id]]
    elif not dropped:
        assert run.records[0].extra == {}


async def test_several_benchmarks_are_named_and_the_same_problem_is_asked_about_once(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    write_records(tmp_path / "amc", [Problem.make(HELD, source="/data/2023.jsonl"), Problem.make(FOREIGN)])
    write_records(tmp_path / "aime", [Problem.make(HELD.replace("500", "$500$"))])
    write_records(tmp_path / "problems", [Problem.make(REWORDED)])
    inputs = {"problems": [tmp_path / "problems"], "benchmark": [tmp_path / "amc", tmp_path / "aime"]}
    run = await run_stage(
        Decontaminate(DecontaminateConfig()), tmp_path, lambda _: "Verdict: yes", tokenizer=tokenizer, folders=inputs
    )
    assert len(run.asked) == 2
    ((_, drop),) = run.drops
    names = f"{Problem.make(HELD).id} of amc/2023, {Problem.make(HELD.replace('500', '$500$')).id} of aime; "
    assert drop.detail.startswith(names)


async def test_asks_about_the_nearest_first_and_about_so_many(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    texts = (
        "How many positive integers up to 150 are divisible by 3?",
        "How many positive integers up to 4000 are divisible by 11?",
        "How many positive numbers up to 50000 are no multiple of 11?",
    )
    benchmark = [Problem.make(text) for text in texts]
    inputs = {
        "problems": [Problem.make("How many positive integers up to 15 are divisible by 3?")],
        "benchmark": [*reversed(benchmark), benchmark[0]],  # one of them twice: it is asked about once
    }
    for count, expected in ((1, {150}), (2, {150, 4000}), (9, {150, 4000, 50000})):
        stage = Decontaminate(DecontaminateConfig(candidates=count, orders="one", threshold=0.01))
        run = await run_stage(stage, tmp_path / str(count), lambda _: "Verdict: no", tokenizer=tokenizer, **inputs)
        assert {int(re.findall(r"up to (\d+) are", shown(asked.question)[1])[0]) for asked in run.asked} == expected
        assert run.reasons == []
    stage = Decontaminate(DecontaminateConfig(threshold=0.99))
    run = await run_stage(stage, tmp_path / "none", lambda _: "Verdict: yes", tokenizer=tokenizer, **inputs)
    assert (len(run.records), run.asked) == (1, []), "below the threshold nothing is asked, and it stays"


async def test_what_cannot_be_read_is_dropped_by_its_reason(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    replies: dict[str, str | Reply] = {REWORDED: "I think that", NUMBERS: REFUSED}
    run = await run_stage(
        Decontaminate(DecontaminateConfig()), tmp_path, by_first(replies), tokenizer=tokenizer,
        problems=[Problem.make(REWORDED), Problem.make(NUMBERS)], benchmark=[Problem.make(HELD)],
    )  # fmt: skip
    assert run.records == []
    assert run.reasons == ["refused by the engine", "the reply is no verdict of yes or no"]


async def test_a_sign_more_is_another_problem_and_letters_that_look_alike_are_not(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    held = "Find the sum of all integers $x$ with $x^2 - 5 \\leq 31$."
    disguised = held.replace("a", "\u0430").replace("e", "\u0435\u200b")
    problems = [Problem.make(held.replace("-", "+")), Problem.make(disguised), Problem.make("x " * 100_000)]
    run = await run_stage(
        Decontaminate(DecontaminateConfig()), tmp_path, lambda _: "Verdict: no", tokenizer=tokenizer,
        problems=problems, benchmark=[Problem.make(held)],
    )  # fmt: skip
    assert {problem.id for problem in run.records} == {problems[0].id, problems[2].id}
    assert run.reasons == ["in the benchmark, word for word"]


async def test_other_constants_are_what_the_settings_say(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    for constants, rule in (("different", "with other constants it is another problem"), ("same", "constants alone")):
        stage = Decontaminate(DecontaminateConfig(constants=constants, orders="one"))  # type: ignore[arg-type]
        run = await run_stage(
            stage, tmp_path / constants, lambda _: "Verdict: no", tokenizer=tokenizer,
            problems=[Problem.make(NUMBERS)], benchmark=[Problem.make(HELD)],
        )  # fmt: skip
        (asked,) = run.asked
        assert rule in asked.question


@pytest.mark.parametrize(
    ("benchmark", "problem"),
    [([], "holds no problem"), ([Problem.make("$ $")], "no problem of a benchmark has a text")],
)
async def test_a_benchmark_without_problems_is_refused(tmp_path: Path, benchmark: list[Problem], problem: str) -> None:
    write_records(tmp_path / "benchmark", benchmark)
    write_records(tmp_path / "problems", [Problem.make(HELD)])
    inputs = {"problems": [tmp_path / "problems"], "benchmark": [tmp_path / "benchmark"]}

    class Nobody(Lent):
        async def engine(self, name: str) -> Any:
            return None, None

    with pytest.raises(UserError, match=problem):
        await Decontaminate(DecontaminateConfig()).run(stage_context(inputs, tmp_path / "out", services=Nobody()))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="wants two verdicts"):
        DecontaminateConfig(strictness="both", orders="one")
    with pytest.raises(ValueError, match="no whole path"):
        DecontaminateConfig(embedding_model="./model")


def test_the_reason_of_a_reply_is_its_line() -> None:
    assert reason_of("**Why:** 7 and  9.\nVerdict: no") == "7 and 9."
    assert reason_of("yes") == ""
