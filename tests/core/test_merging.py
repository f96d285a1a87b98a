"""Equal records are one record, with the parents of all and one answer by one rule; nothing vanishes uncounted."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.merging import ANSWERS, count_records, merge, read_merged
from nemo_openmath.core.records import Drop, Generation, Problem, Record, RecordWriter, Thread
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.grading.majority import majority
from nemo_openmath.synthesis.problems.answers import ExtractAnswers, ExtractAnswersConfig
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig
from tests.support.services import run_stage


def problem(answer: str | None, *parents: str, **values: Any) -> Problem:
    return Problem.make("1+1?", expected_answer=answer, parents=parents, **values)


def store(folder: Path, *records: Record) -> Path:
    """One unit a record, as a stage leaves them: equal records of several units are several lines."""
    with RecordWriter(folder) as writer:
        for number, record in enumerate(records):
            writer.commit(f"{folder.name} {number}", [record])
    return folder


@pytest.mark.parametrize(
    ("answers", "expected", "given"),
    [
        (["4", "4"], "4", None),
        (["4", None], "4", None),
        ([None, None], None, None),
        (["4", "5"], None, {"4": 1, "5": 1}),
        (["4", "5", "4"], "4", {"4": 2, "5": 1}),
        (["0.5", "5", r"\frac{1}{2}"], "0.5", {"0.5": 2, "5": 1}),
        ([r"\frac{1}{2}", "0.5"], "0.5", None),
    ],
)
def test_one_rule_decides_between_answers_in_any_order(
    answers: list[str | None], expected: str | None, given: dict[str, int] | None
) -> None:
    versions = [problem(answer, f"thread-{n}") for n, answer in enumerate(answers)]
    for order in itertools.permutations(versions):
        one = merge(order, majority)
        assert set(one.parents) == {f"thread-{n}" for n in range(len(answers))}
        assert (one.expected_answer, one.extra.get(ANSWERS)) == (expected, given)
        assert one == merge(versions, majority)
    if given and expected is None:
        assert merge(versions, majority).problem_type == "no_answer_extracted"


def test_what_is_known_of_one_version_is_known_of_all() -> None:
    a = problem(None, "a", source="forum", extra={"x": 1})
    b = problem("2", "b", category="answer", problem_type="converted_proof", extra={"y": 2})
    one = merge([a, b], majority)
    assert (one.category, one.problem_type, one.source) == ("answer", "converted_proof", "forum")
    assert one.extra == {"x": 1, "y": 2}


def test_votes_count_on_where_merged_problems_meet_again() -> None:
    once = merge([problem("4"), problem("4"), problem("5")], majority)
    assert merge([once, problem("5")], majority).expected_answer is None
    assert merge([once, problem("5"), problem("5")], majority).expected_answer == "5"


def test_reading_gives_each_id_once_over_all_folders(tmp_path: Path) -> None:
    other = Problem.make("2+2?")
    a = store(tmp_path / "a", problem("4", "t1"), other, problem("4", "t2"))
    b = store(tmp_path / "b", problem("5", "t3"), Problem.make("3+3?"))
    found = list(read_merged([a, b, a], Problem, majority))
    assert [p.problem for p in found] == ["1+1?", "2+2?", "3+3?"]
    assert set(found[0].parents) == {"t1", "t2", "t3"}
    assert found[0].expected_answer == "4"
    assert count_records(a, majority) == {"records": 2, "merged": 1}
    assert count_records(store(tmp_path / "c", problem("4"), problem("5")), majority) == {
        "records": 1, "merged": 1, "disagreeing": 1, "undecided": 1,
    }  # fmt: skip
    decided = merge([problem("4"), problem("4"), problem("5")], majority)
    assert count_records(store(tmp_path / "d", decided), majority) == {
        "records": 1, "merged": 0, "disagreeing": 1, "undecided": 0,
    }  # fmt: skip


def test_solutions_in_versions_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    one = Generation(id="g", problem_id="p", mode="cot", model="m", sample=0, transcript={}, finish="stop")
    folder = store(tmp_path / "a", one, one.with_(verdict="equal"))
    with pytest.raises(UserError, match="Generation g is there in versions that differ in 'verdict'; name only one"):
        list(read_merged([folder], Generation, majority))
    assert list(read_merged([store(tmp_path / "b", one, one)], Generation, majority)) == [one]


# -- stages --------------------------------------------------------------------------------------------------------


def answer_by_replies(question: str) -> str:
    numbers = re.findall(r"I get (\d)", question.partition("discussion begins -----")[2])
    return f"Answer: {numbers[-1]}" if numbers else "Not found"


async def test_two_threads_with_the_same_problem_are_one_problem_from_extraction_to_answer(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    replies = ["I get 4", "I get 5", "I get 4", "Nice!", ""]
    threads = [Thread.make(f"Hello {n}. What is 2+2?", text) for n, text in enumerate(replies)]
    extracted = await run_stage(
        Extract(OnePromptConfig()), tmp_path / "1", lambda _: "Problem 1: What is 2+2?", tokenizer=tokenizer,
        threads=threads,
    )  # fmt: skip
    classified = await run_stage(
        Classify(ClassifyConfig()),
        tmp_path / "2",
        lambda _: "Verdict: no",
        tokenizer=tokenizer,
        problems=extracted.records,
    )
    answered = await run_stage(
        ExtractAnswers(ExtractAnswersConfig()), tmp_path / "3", answer_by_replies, tokenizer=tokenizer,
        problems=classified.records, threads=threads,
    )  # fmt: skip
    assert count_records(extracted.context.output, majority) == {"records": 1, "merged": 4}
    (one,) = read_merged([answered.context.output], Problem, majority)
    assert (one.expected_answer, one.problem_type) == ("4", "has_answer_extracted")
    assert one.extra[ANSWERS] == {"4": 2, "5": 1}
    assert set(one.parents) == {thread.id for thread in threads}


@dataclass(frozen=True)
class NoSettings:
    pass


class Named(UnitStage[NoSettings, str]):
    """Units of given names; ``vanish`` leaves nothing."""

    ports = {"problems": "problems"}
    kind = "test.named"

    def __init__(self, *names: str):
        super().__init__(NoSettings())
        self._names = names

    def units(self, context: StageContext) -> Iterable[tuple[str, str]]:
        list(context.read("problems", Problem))
        return ((name, name) for name in self._names)

    async def process(self, unit: str, context: StageContext) -> Result:
        return Result(drops=[] if unit == "vanish" else [Drop("seen", unit)])


async def test_equal_units_are_done_once_and_counted_also_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        run = await run_stage(Named("a", "b", "a", "a"), tmp_path, problems=[problem("4"), Problem.make("2+2?")])
        assert run.context.metrics["equal_units"] == 2
    assert [unit for unit, _ in run.drops] == ["a", "b"]


async def test_a_record_that_vanishes_is_a_defect(tmp_path: Path) -> None:
    problems = [problem("4"), Problem.make("2+2?")]
    with pytest.raises(AssertionError, match="unit vanish left neither a record nor a reason"):
        await run_stage(Named("a", "vanish"), tmp_path / "a", problems=problems)
    with pytest.raises(AssertionError, match="2 problems went in, 1 units were made of them"):
        await run_stage(Named("a"), tmp_path / "b", problems=problems)
