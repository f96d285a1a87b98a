"""Where expected answers are from: the forum, the majority of solutions, or a repair by a stated rule."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.solutions.label import Hardness, HardnessConfig, MajorityAnswers, MajorityConfig
from tests.support.services import StageRun, run_stage

CONVERTED, EXTRACTED = "converted_proof", "has_answer_extracted"


def solutions(problem: Problem, answers: Sequence[str | None], **values: Any) -> list[Generation]:
    """Graded solutions with these answers."""
    known: dict[str, Any] = {"mode": "cot", "model": "m", "transcript": {}, "finish": "stop", "verdict": "unknown"}
    known |= {"expected_answer": problem.expected_answer} | values
    name = f"{problem.problem}-{known['model']}-{known['mode']}"
    return [
        Generation(id=f"{name}-{i}", problem_id=problem.id, sample=i, predicted_answer=answer, **known)
        for i, answer in enumerate(answers)
    ]


def label(
    grading: GradingPool, folder: Path, problems: Sequence[Problem], given: Sequence[Generation], **config: Any
) -> StageRun:
    stage = MajorityAnswers(MajorityConfig(**config))
    return asyncio.run(run_stage(stage, folder, grading=grading, problems=problems, generations=given))


def test_a_converted_proof_gets_the_majority_and_says_so(grading: GradingPool, tmp_path: Path) -> None:
    proof, extracted, agreed, split = (
        Problem.make(text, expected_answer="1/2", problem_type=CONVERTED if text != "extracted" else EXTRACTED)
        for text in ("proof", "extracted", "agreed", "split")
    )
    given = solutions(proof, ["3", "3", "0.5"]) + solutions(extracted, ["3", "3", "3"])
    given += solutions(agreed, ["0.5", "0.5"]) + solutions(split, ["3", "4"])
    run = label(grading, tmp_path, [proof, extracted, agreed, split], given)
    out = {p.problem: p for p in run.records}
    assert {name: p.expected_answer for name, p in out.items()} == {
        "proof": "3", "extracted": "1/2", "agreed": "1/2", "split": "1/2",
    }  # fmt: skip
    assert out["proof"].extra["answer"] == {
        "from": "majority", "forum": "1/2", "votes": [["3", 2], ["0.5", 1]], "why": "2 of 3 solutions agree",
    }  # fmt: skip
    assert out["extracted"].extra["answer"] == {"from": "forum", "forum": "1/2"}
    assert out["agreed"].extra["answer"]["why"] == "the majority agrees"
    assert run.context.metrics["answers_forum"] == 3
    assert run.context.metrics["answers_majority"] == 1
    assert "'1/2' -> '3'" in run.context.metrics["example_majority"]
    again = label(grading, tmp_path / "none", [proof], given, replace=())
    assert [p.expected_answer for p in again.records] == ["1/2"]


@pytest.mark.parametrize(
    ("answers", "repair", "expected"),
    [
        (["3"] * 4, "majority", "3"),
        (["3"] * 4, "drop", None),
        (["3"] * 4, "keep", "7"),
        (["3"] * 3 + [None], "majority", "7"),  # too few answers
        (["3"] * 31 + ["7.0"], "drop", "7"),  # reached once
        (["3"] * 31 + ["$7$"], "majority", "7"),
        (["3", "4", "5", "6"], "majority", "7"),  # unreached, but which one is it?
        (["3", "4", "5", "6"], "drop", None),
        (["3", "3", "3", "seven or so"], "majority", "7"),  # the grader cannot tell
        (["７"] * 4, "drop", "7"),  # full width
        ([], "drop", "7"),
        ([None] * 32, "drop", "7"),
        (["3"] * 32, "majority", "3"),
    ],
)
def test_the_rule_of_repair(
    grading: GradingPool, tmp_path: Path, answers: list[str | None], repair: Any, expected: str | None
) -> None:
    problem = Problem.make("q", expected_answer="7", problem_type=EXTRACTED)
    run = label(grading, tmp_path, [problem], solutions(problem, answers), repair=repair, repair_least=4)
    assert [p.expected_answer for p in run.records] == ([] if expected is None else [expected])
    assert run.reasons == ([] if expected else ["no solution reaches the answer"])
    if expected == "3":
        assert run.records[0].extra["answer"]["from"] == "repaired"
        assert run.records[0].extra["answer"]["forum"] == "7"


@pytest.mark.parametrize(("verdict", "expected"), [("equal", "7"), ("not_equal", "3"), ("unknown", "7")])
def test_where_the_grader_cannot_tell_the_judge_does(
    grading: GradingPool, tmp_path: Path, verdict: str, expected: str
) -> None:
    problem = Problem.make("q", expected_answer="7", problem_type=EXTRACTED)
    given = solutions(problem, ["3"] * 4)
    given += solutions(problem, ["seven or so"], model="judged", verdict=verdict)
    other = solutions(problem, ["seven or so"], model="n", verdict="equal", expected_answer="8")  # of another answer
    run = label(grading, tmp_path, [problem], given + other, repair="majority", repair_least=4)
    assert [p.expected_answer for p in run.records] == [expected]


def test_the_order_of_files_changes_no_answer(grading: GradingPool, tmp_path: Path) -> None:
    rng = random.Random(1)
    problems = [Problem.make(f"q{i}", expected_answer=str(i % 4), problem_type=EXTRACTED) for i in range(12)]
    given = [
        g
        for p in problems
        for model in ("a", "b")
        for g in solutions(p, [rng.choice(["1", "2", "2.0", "½", None]) for _ in range(6)], model=model)
    ]
    first = label(grading, tmp_path / "1", problems, given, repair="majority", repair_least=2)
    mixed = [rng.sample(rows, len(rows)) for rows in (problems, given)]
    second = label(grading, tmp_path / "2", *mixed, repair="majority", repair_least=2)  # type: ignore[arg-type]
    assert sorted(first.records, key=lambda p: p.id) == sorted(second.records, key=lambda p: p.id)
    assert first.context.metrics == second.context.metrics
    assert first.context.metrics["answers_repaired"] > 0


def test_a_column_answer_of_a_file_is_kept_aside(grading: GradingPool, tmp_path: Path) -> None:
    problem = Problem.make("q", expected_answer="7", extra={"answer": "B"})
    (out,) = label(grading, tmp_path, [problem], []).records
    assert out.extra == {"answer": {"from": "forum", "forum": "7"}, "answer_of_file": "B"}


def test_open_verdicts_say_nothing_about_hardness(tmp_path: Path) -> None:
    problem = Problem.make("q", expected_answer="7")
    given = solutions(problem, ["7"] * 3, verdict="equal") + solutions(problem, ["x"], model="n", verdict="not_equal")
    given += solutions(problem, ["y"] * 4, model="o", verdict="timeout")
    run = asyncio.run(run_stage(Hardness(HardnessConfig()), tmp_path / "1", problems=[problem], generations=given))
    assert [p.pass_rate for p in run.records] == [0.75]
    assert run.context.metrics["undecided"] == 4
    unknown = Problem.make("r")
    for choice, kept in (("drop", ["q"]), ("keep", ["q", "r"])):
        stage = Hardness(HardnessConfig(unmeasured=choice))  # type: ignore[arg-type]
        run = asyncio.run(run_stage(stage, tmp_path / choice, problems=[problem, unknown], generations=given))
        assert [p.problem for p in run.records] == kept
    ungraded = solutions(problem, ["7"], verdict=None)
    with pytest.raises(UserError, match="was not graded"):
        asyncio.run(run_stage(Hardness(HardnessConfig()), tmp_path / "2", problems=[problem], generations=ungraded))
