"""Stages over records: filters name their reasons, labels need a majority, rows keep transcripts."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import Author, Message, Span, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.records import Generation, Problem, Record, SftRow, read_drops, read_records
from nemo_openmath.core.stage import Stage
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.solutions.filters import Filter, FilterConfig
from nemo_openmath.synthesis.solutions.filters.config import DEFAULT_RULES
from nemo_openmath.synthesis.solutions.grade import GradeConfig, GradeSolutions
from nemo_openmath.synthesis.solutions.label import Hardness, HardnessConfig, MajorityAnswers, MajorityConfig
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from nemo_openmath.synthesis.solutions.summarize import replace_summary
from tests.support.services import run_stage

USER = (Message("user", "q"),)
CODE = "<tool_call>\nprint(1)\n</tool_call>"


Run = Callable[[Stage[Any], Path, dict[str, Sequence[Record]]], Path]


@pytest.fixture
def run(grading: GradingPool) -> Run:
    """Runs a stage over records by port, and returns its folder. Nothing but the graders is lent."""

    def work(stage: Stage[Any], folder: Path, inputs: dict[str, Sequence[Record]]) -> Path:
        return asyncio.run(run_stage(stage, folder, grading=grading, **inputs)).context.output

    return work


def generation(name: str, text: str, *, problem: str = "p", finish: str = "stop", **values: Any) -> Generation:
    transcript = Transcript.from_text(USER, text)
    return Generation(
        id=name, problem_id=problem, mode=values.pop("mode", "cot"), model="m", sample=0,
        transcript=transcript.to_json(), finish=finish, code_calls=len(transcript.code_blocks()), **values,
    )  # fmt: skip


def boxed(answer: str) -> str:
    return f"<think>so</think>The answer is \\boxed{{{answer}}}."


def test_grading_is_three_valued_and_unfinished_means_no_answer(run: Run, tmp_path: Path) -> None:
    rows = [
        generation("right", boxed("1/2"), expected_answer="0.5"),
        generation("wrong", boxed("2"), expected_answer="0.5"),
        generation("none", "<think>so</think>I cannot.", expected_answer="0.5"),
        generation("cut", boxed("0.5"), expected_answer="0.5", finish="length"),
        generation("unlabelled", boxed("2")),
    ]
    out = {
        g.id: g for g in read_records(run(GradeSolutions(GradeConfig()), tmp_path, {"generations": rows}), Generation)
    }
    assert {k: (g.verdict, g.predicted_answer) for k, g in out.items()} == {
        "right": ("equal", "1/2"),
        "wrong": ("not_equal", "2"),
        "none": ("not_equal", None),
        "cut": ("not_equal", None),
        "unlabelled": ("unknown", "2"),
    }


def test_newer_answers_of_the_problems_win(run: Run, tmp_path: Path) -> None:
    problem = Problem.make("q", expected_answer="2")
    row = generation("g", boxed("2"), problem=problem.id, expected_answer=None)
    out = run(GradeSolutions(GradeConfig()), tmp_path, {"generations": [row], "problems": [problem]})
    assert [g.verdict for g in read_records(out, Generation)] == ["equal"]


@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        (boxed("1"), {}, None),
        (boxed("1"), {"finish": "length"}, "unfinished (length)"),
        (boxed("1"), {"finish": "budget"}, "over the code budget"),
        (boxed("1"), {"finish": "repetition"}, "repeats itself"),
        (boxed("1"), {"finish": "context"}, "prompt longer than the context"),
        (boxed("1"), {"finish": "refused"}, "refused by the engine"),
        (boxed("1"), {"completion_tokens": 51}, "too long"),
        (boxed("1"), {"completion_tokens": 50}, None),
        (boxed("1"), {"verdict": "not_equal"}, "wrong answer"),
        (boxed("1"), {"verdict": "timeout"}, "verdict timeout"),
        (boxed("1"), {"predicted_answer": None}, "no boxed answer"),
        ("<think>The answer is \\boxed{1}.", {}, "no summary after the reasoning"),
        ("<think>a<think>b</think>\\boxed{1}.", {}, "think tags out of order"),
        (boxed("1"), {"mode": "tir"}, "no code was run"),
        (f"<think>It is \\boxed{{1}}. {CODE}{output_block('1')}{notice_block(1)}</think>\\boxed{{1}}", {"mode": "tir"},
         "answer before the first code"),
        (f"<think>{CODE}{output_block('1')}{CODE}{output_block('1')}</think>\\boxed{{1}}", {"mode": "tir"},
         "too many code blocks"),
        (f"<think>{CODE}{output_block('NameError: x')}</think>\\boxed{{1}}", {"mode": "tir"}, "a code block failed"),
        (f"<think>{CODE}{output_block('1')}{notice_block(1)}</think>\\boxed{{1}}", {"mode": "tir"}, None),
    ],
)  # fmt: skip
def test_filters_name_their_reason(
    run: Run, tmp_path: Path, text: str, values: dict[str, Any], reason: str | None
) -> None:
    row = generation("g", text, **({"verdict": "equal", "predicted_answer": "1", "completion_tokens": 9} | values))
    out = run(
        Filter(FilterConfig((*DEFAULT_RULES, "code_errors"), max_blocks=1, max_tokens=50)),
        tmp_path,
        {"generations": [row]},
    )
    assert [d.reason for _, d in read_drops(out)] == ([] if reason is None else [reason])
    assert len(list(read_records(out, Generation))) == (reason is None)


@pytest.mark.parametrize(
    ("think", "thinking", "plain", "kept"),
    [
        ("auto", 0, 4, 4),  # a model that does not think is not dropped whole
        ("auto", 3, 1, 3),  # one that thinks has ended its thinking
        ("auto", 1, 5, 6),
        ("required", 1, 3, 1),
        ("optional", 3, 1, 4),
    ],
)
def test_solutions_without_thinking(run: Run, tmp_path: Path, think: Any, thinking: int, plain: int, kept: int) -> None:
    texts = [boxed("1")] * thinking + ["It is \\boxed{1}."] * plain
    good: dict[str, Any] = {"verdict": "equal", "predicted_answer": "1"}
    rows = [generation(f"g{i}", text, **good) for i, text in enumerate(texts)]
    rows += [generation("another", boxed("1"), **good).with_(model="another")]
    out = run(Filter(FilterConfig(think=think)), tmp_path, {"generations": rows})
    assert len(list(read_records(out, Generation))) == kept + 1
    assert {d.reason for _, d in read_drops(out)} <= {"no summary after the reasoning"}


def test_quotas_keep_more_of_harder_problems(run: Run, tmp_path: Path) -> None:
    rows = [generation(f"easy{i}", boxed("1"), problem="easy", verdict="equal", predicted_answer="1") for i in range(4)]
    rows += [
        generation(
            f"hard{i}", boxed("1"), problem="hard", verdict="equal" if i < 3 else "not_equal", predicted_answer="1"
        )
        for i in range(8)
    ]
    config = FilterConfig(per_problem=3, easy=0.5, easy_per_problem=1)
    folder = run(Filter(config), tmp_path, {"generations": rows})
    kept = [g.problem_id for g in read_records(folder, Generation)]
    assert (kept.count("easy"), kept.count("hard")) == (1, 3)
    reasons = [drop.reason for _, drop in read_drops(folder)]
    assert sorted(reasons) == ["enough solutions of this problem"] * 3 + ["wrong answer"] * 5


def test_majority_labels_only_where_there_is_one(run: Run, tmp_path: Path) -> None:
    known = Problem.make("known", expected_answer="9")
    clear, tie, alone, unsolved = (Problem.make(text) for text in ("clear", "tie", "alone", "unsolved"))
    answers = {clear: ["1/2", "0.5", "3"], tie: ["1", "2"], alone: ["1"], known: ["1", "1"]}
    rows = [
        generation(f"{p.problem}{i}", boxed(a), problem=p.id)
        for p, listed in answers.items()
        for i, a in enumerate(listed)
    ]
    inputs = {"problems": [known, clear, tie, alone, unsolved], "generations": rows}
    out = run(MajorityAnswers(MajorityConfig()), tmp_path / "half", inputs)
    labelled = {p.problem: p.expected_answer for p in read_records(out, Problem)}
    assert labelled.keys() == {"known", "clear"}
    assert labelled["known"] == "9"
    assert labelled["clear"] in ("1/2", "0.5")
    none, open_ = "no expected answer and no solution with one", "no majority among the answers"
    assert sorted(drop.reason for _, drop in read_drops(out)) == [none, open_, open_]
    strict = run(MajorityAnswers(MajorityConfig(share=0.7)), tmp_path / "strict", inputs)  # two of three agree
    assert [p.problem for p in read_records(strict, Problem)] == ["known"]


def test_hardness_is_the_pass_rate(run: Run, tmp_path: Path) -> None:
    problem, untried = Problem.make("q"), Problem.make("r")
    rows = [generation(str(i), "", problem=problem.id, verdict="equal" if i < 3 else "not_equal") for i in range(4)]
    out = run(Hardness(HardnessConfig()), tmp_path, {"problems": [problem, untried], "generations": rows})
    assert [(p.problem, p.pass_rate) for p in read_records(out, Problem)] == [("q", 0.75)]
    assert [d.reason for _, d in read_drops(out)] == ["no solution to measure by"]


def test_hardness_keeps_a_range_with_its_ends(run: Run, tmp_path: Path) -> None:
    problems = [Problem.make(f"{passed} of 4") for passed in range(5)]
    rows = [
        generation(f"{p.problem}{i}", "", problem=p.id, verdict="equal" if i < passed else "not_equal")
        for passed, p in enumerate(problems)
        for i in range(4)
    ]
    out = run(Hardness(HardnessConfig(keep=(0.25, 0.5))), tmp_path, {"problems": problems, "generations": rows})
    assert sorted(p.pass_rate or 0.0 for p in read_records(out, Problem)) == [0.25, 0.5]
    assert [drop.reason for _, drop in read_drops(out)] == ["pass rate out of range"] * 3


def test_rows_keep_the_transcript_as_it_is(run: Run, tmp_path: Path) -> None:
    row = generation("g", boxed("1"), expected_answer="1")
    (out,) = read_records(run(MakeRows(RowsConfig()), tmp_path, {"generations": [row]}), SftRow)
    assert out.transcript == row.transcript
    assert out.parents == ("g",)


def test_a_solution_without_thinking_becomes_the_thinking_before_its_summary() -> None:
    plain = Transcript(USER, (Span(Author.MODEL, "6 * 7 = \\boxed{42}", (1, 2)),), True, "t")
    for old in (plain, Transcript(USER, (Span(Author.TEMPLATE, "<think>\n\n</think>\n\n"), *plain.spans), True, "t")):
        new = replace_summary(old, "It is \\boxed{42}.")
        assert new.text == "<think>\n6 * 7 = \\boxed{42}</think>\nIt is \\boxed{42}."
        assert (new.thinking, new.summary) == ("whole", "It is \\boxed{42}.")
    assert old.summary == plain.summary == "6 * 7 = \\boxed{42}"


def test_a_new_summary_replaces_what_follows_the_reasoning() -> None:
    old = Transcript(
        USER,
        (
            Span(Author.MODEL, "<think>a" + CODE, (1, 2)),
            Span(Author.TOOL, output_block("1"), (3,)),
            Span(Author.MODEL, "b</think>old \\boxed{1}", (4, 5)),
        ),
        True,
        "t",
    )
    new = replace_summary(old, "new \\boxed{1}")
    assert new.text == old.text.replace("old", "\nnew")
    assert new.spans[:2] == old.spans[:2], "ids of what stays are kept"
    assert new.spans[2].ids is None, "nobody generated the new text"
    assert new.summary == "new \\boxed{1}"


def test_a_tag_inside_code_is_not_where_the_reasoning_ends() -> None:
    code = "<tool_call>\nprint('</think>')\n</tool_call>"
    old = Transcript.from_text(USER, f"<think>a{code}{output_block('</think>')}b</think>old")
    assert replace_summary(old, "new").text == f"<think>a{code}{output_block('</think>')}b</think>\nnew"
    plain = Transcript.from_text(USER, f"a{code}{output_block('</think>')}b")
    assert replace_summary(plain, "new").text == f"<think>\na{code}{output_block('</think>')}b</think>\nnew"
