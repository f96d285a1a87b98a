"""Generations of the reference pipeline are read at any of its steps, each once, and the recipe goes on from them."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import Author, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem, Record, SftRow, read_drops, read_records
from nemo_openmath.core.stage import Stage
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.genselect.groups import Groups, GroupsConfig
from nemo_openmath.synthesis.problems.read import ReadFilesConfig, ReadProblems
from nemo_openmath.synthesis.solutions.filters import Filter, FilterConfig
from nemo_openmath.synthesis.solutions.grade import GradeConfig, GradeSolutions
from nemo_openmath.synthesis.solutions.read_generations import ReadGenerations, ReadGenerationsConfig
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from tests.support.services import StageRun, run_stage, stage_context

FENCES = (
    "Count them.\n```python\nprint(6 * 7)\n```\n```output\n42\n```\nSo it is 42. An idle block:\n"
    "```python\nprint(1)\n```\n**Final Answer**\n\\boxed{42}"
)
TAGS = (
    "<think>\nrun it\n<tool_call>\nprint(2)\n</tool_call>\n```output\n2\n```\n"
    + notice_block(4)
    + "\n</think>\n\\boxed{2}"
)


def row(problem: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"problem": problem, "expected_answer": "42", "problem_source": "aops", "generation": text} | fields


def write(file: Path, *rows: dict[str, Any] | str) -> None:
    """Write a file of rows; a text is a line as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))


def read(folder: Path, *paths: Path, partitions: int = 1, **settings: Any) -> StageRun:
    stage = ReadGenerations(ReadGenerationsConfig(**{"model": "LIMO"} | settings))
    context = stage_context({"files": paths}, folder, partitions=partitions)
    asyncio.run(stage.run(context))
    records = sorted(read_records(folder, Generation), key=lambda g: g.id)
    return StageRun(records, list(read_drops(folder)), [], context)


def test_a_row_says_who_wrote_what_how_it_ended_and_what_others_thought_of_it(tmp_path: Path) -> None:
    rows = {
        "fences": row("a", FENCES, code_rounds_executed=1, num_generated_tokens=50, judgement="So.\nJudgement: Yes"),
        "tags": row("b", TAGS, finish_reason="stop", symbolic_correct=False, total_code_executions=5),
        "cot": row("c", "thought</think>\\boxed{42}", finish_reason="stop", is_correct=True, predicted_answer="42"),
        "cut": row("d", "<think>without end \\boxed{1}"),
        "zero": row("e", "It is \\boxed{0}.", expected_answer=0, finish_reason="length"),
    }
    write(tmp_path / "in/output-rs3.jsonl", *rows.values())
    run = read(tmp_path / "out", tmp_path / "in")
    by_problem = {g.problem_id: g for g in run.records}
    got = {name: by_problem[Problem.make(r["problem"]).id] for name, r in rows.items()}
    told = {name: (str(g.mode), str(g.finish), g.verdict and str(g.verdict), g.budget) for name, g in got.items()}
    assert told == {
        "fences": ("tir", "stop", "equal", 8),
        "tags": ("tir", "stop", "unknown", 5),
        "cot": ("cot", "stop", "equal", None),
        "cut": ("cot", "length", None, None),
        "zero": ("cot", "length", None, None),
    }
    assert {g.sample for g in run.records} == {3}
    assert got["zero"].expected_answer == "0"
    assert got["cot"].verdict_reason == "foreign: symbolic"
    assert got["cot"].extra["source"] == "aops"
    fences = Transcript.from_json(got["fences"].transcript)
    assert [(s.author, s.text) for s in fences.spans] == [
        (Author.MODEL, "Count them.\n<tool_call>\nprint(6 * 7)\n</tool_call>"),
        (Author.TOOL, output_block("42\n") + notice_block(7)),
        (Author.MODEL, FENCES[FENCES.index("So it") :]),
    ]
    assert "8 Python code calls" in fences.messages[0].content
    assert fences.messages[0].content.endswith("\na")
    assert Transcript.from_json(got["tags"].transcript).text == TAGS
    assert got["tags"].code_calls == 1
    assert Transcript.from_json(got["cot"].transcript).thinking == "whole"
    assert run.context.metrics == {"finish_assumed": 2, "foreign_verdicts": 3, "fences_rewritten": 1}


def test_an_output_that_was_not_run_stays_the_model_s_own_words(tmp_path: Path) -> None:
    block = "```python\nprint(1)\n```\n```output\n1\n```\n"
    write(
        tmp_path / "o.jsonl",
        row("a", f"{block}And {block}", num_code_executions=1),
        row("b", block, num_code_executions=0),
    )
    first, second = sorted(read(tmp_path / "out", tmp_path / "o.jsonl").records, key=lambda g: -g.code_calls)
    assert (first.code_calls, second.code_calls, second.mode) == (1, 0, "tir")
    assert Transcript.from_json(first.transcript).spans[-1].text == f"And {block}"


def test_counts_of_a_table_are_counts_and_other_values_are_refused_by_name(tmp_path: Path) -> None:
    block = "```python\nprint(1)\n```\n```output\n1\n```\n\\boxed{1}"
    lacks: dict[str, Any] = {"num_code_executions": None, "code_rounds_executed": 0.0}
    write(tmp_path / "o.jsonl", row("a", block, num_generated_tokens=50.0, total_code_executions=3.0, **lacks))
    (solution,) = read(tmp_path / "out", tmp_path / "o.jsonl").records
    assert (solution.code_calls, solution.completion_tokens, solution.budget) == (0, 50, 3)
    for number, (name, value) in enumerate(
        {"num_code_executions": "0", "num_generated_tokens": 1.5, "max_idx": -1, "is_correct": "true"}.items()
    ):
        write(tmp_path / f"{number}.jsonl", row("a", block, **{name: value}))
        with pytest.raises(UserError, match=f"{number}.jsonl:1: '{name}' is {value!r}, not"):
            read(tmp_path / f"out{number}", tmp_path / f"{number}.jsonl")
    with pytest.raises(UserError, match="no 'solutions': this is no comparison"):
        read(tmp_path / "selections", tmp_path / "o.jsonl", mode="genselect")


def test_two_files_of_one_seed_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/output-rs2.jsonl", row("a", "\\boxed{1}"))
    write(tmp_path / "in/output-rs02.jsonl", row("b", "\\boxed{1}"))
    with pytest.raises(UserError, match=r"output-rs02.jsonl and output-rs2.jsonl are of the same seed"):
        read(tmp_path / "out", tmp_path / "in")


def test_tags_that_were_not_executed_and_outputs_that_hold_fences_keep_their_authors(tmp_path: Path) -> None:
    called, printed = "<tool_call>\nprint(1)\n</tool_call>\n```output\n1\n```\n", "```\n42\n```\n"
    fences = "```python\nprint(2)\n```\n```output\n" + printed
    write(
        tmp_path / "o.jsonl",
        row("a", f"{called}And {called}", num_code_executions=1),
        row("b", called, num_code_executions=0),
        row("c", f"{fences}{notice_block(7)}So \\boxed{{42}}", num_code_executions=1),
        row("d", f"{fences}So \\boxed{{42}}", num_code_executions=1),
        row("e", f"<tool_call>\nprint(2)\n</tool_call>\n```output\n{printed}So \\boxed{{42}}"),
        row("f", "", reasoning_content="cut", finish_reason="length"),
    )
    run = read(tmp_path / "out", tmp_path / "o.jsonl")
    texts = {g.problem_id: [s.text for s in Transcript.from_json(g.transcript).spans] for g in run.records}
    a, b, c, f = (texts.pop(Problem.make(name).id) for name in "abcf")
    assert a[2:] == [f"And {called}"]
    assert b == [called]
    assert c[1:] == [output_block("```\n42\n") + notice_block(7), "So \\boxed{42}"]
    assert f == ["<think>\ncut"]
    assert run.reasons == ["an output whose end is not known"] * 2
    assert not texts


def test_steps_chunks_and_leftovers_of_a_seed_are_read_once_in_any_order(tmp_path: Path) -> None:
    """The joining was killed: its file lies there beside the chunks. Another step has judged some of the rows."""
    solved = [row(p, f"\\boxed{{{n}}}", finish_reason="stop") for n, p in enumerate("abcd")]
    first, judged = tmp_path / "step-1", tmp_path / "step-3"
    write(first / "output-rs0.jsonl", *solved[:3])
    for chunk, rows in enumerate([solved[:2], solved[2:]]):
        write(first / f"output-rs0_chunk_{chunk}.jsonl", *rows)
        write(first / f"output-rs0_chunk_{chunk}.jsonl.done")
    write(judged / "output-rs0.jsonl", *(r | {"judgement": "Judgement: No"} for r in solved[:2]))
    with pytest.raises(UserError, match=r"step-1: not finished: seed 0: chunks 0 to 1 are done but not joined"):
        read(tmp_path / "no", first)
    runs = [
        read(tmp_path / "a", first, judged, chunks=2),
        read(tmp_path / "b", judged, first, chunks=2, partitions=3),
    ]
    assert runs[0].records == runs[1].records
    assert sorted(str(g.verdict) for g in runs[0].records) == ["None", "None", "not_equal", "not_equal"]
    assert runs[0].context.metrics["equal_units"] == 5


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            ["output-rs0_chunk_0.jsonl", "output-rs0_chunk_0.jsonl.done", "output-rs0_chunk_1.jsonl-async"],
            "chunk 1 not",
        ),
        (["output-rs0.jsonl", "output-rs0.jsonl.done", "output-rs1_chunk_2.jsonl"], "seed 1: chunks 0, 1, 2 not done"),
        (["output-rs4.jsonl-async"], "seed 4: it is being generated"),
        (["output.jsonl-async", "output-rs0.jsonl"], "finished: output: it is being"),
        (["output-rs0.jsonl.done"], "its file is not there"),
        (["output-rs0/output-rs1.jsonl"], "a folder of summaries"),
        (["aime/output-rs1.jsonl"], "no output.*name one of aime"),
    ],
)
def test_what_is_not_finished_is_refused_by_name(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        write(tmp_path / "in" / name, *([] if name.endswith("done") else [row("a", "\\boxed{1}")]))
    with pytest.raises(UserError, match=says):
        ReadGenerations(ReadGenerationsConfig(model="m")).check({"files": [tmp_path / "in"]})


def test_unfinished_seeds_are_read_as_far_as_they_go_where_the_user_says_so(tmp_path: Path) -> None:
    folder, whole = tmp_path / "in", row("a", "\\boxed{1}")
    write(folder / "output-rs0.jsonl", whole)
    write(
        folder / "output-rs1.jsonl-async",
        whole | {"_async_position": 7},
        row("b", "", error="server died"),
        '{"problem": "c", "gen',
    )
    run = read(tmp_path / "out", folder, unfinished="read")
    assert [g.sample for g in sorted(run.records, key=lambda g: g.sample)] == [0, 1]
    assert run.reasons == ["an error instead of a generation", "torn last line"]
    assert run.context.metrics["unfinished_seeds"] == 1
    (folder / "output-rs1.jsonl-async").rename(folder / "output-rs1.jsonl")
    with pytest.raises(UserError, match=r"output-rs1\.jsonl:3: not JSON"):
        read(tmp_path / "torn", folder)


def test_a_comparison_has_the_answer_and_the_label_of_what_it_chose(tmp_path: Path) -> None:
    compared = {
        "problem": "p", "solutions": "Solution 0:\nx\n\nSolution 1:\ny", "max_idx": 1, "expected_answer": "4",
        "label_0": "Incorrect", "predicted_answer_0": "3", "label_1": "Correct", "predicted_answer_1": "4",
    }  # fmt: skip
    write(
        tmp_path / "output.jsonl",
        compared | {"gen_rm_comparison": "<think>\nhm\n</think>\nJudgment: 1"},
        compared | {"gen_rm_comparison": "<think>\nhm\n</think>\nJudgment: 2"},
    )
    right, none = sorted(
        read(tmp_path / "out", tmp_path / "output.jsonl").records, key=lambda g: g.predicted_answer is None
    )
    assert (right.mode, right.predicted_answer, right.verdict) == ("genselect", "4", "equal")
    assert (none.predicted_answer, none.verdict_reason) == (None, "no valid judgment")
    assert "Solution 1:\ny" in Transcript.from_json(right.transcript).messages[0].content


def test_the_recipe_goes_on_from_the_reference_s_folder(tmp_path: Path, grading: GradingPool) -> None:
    """Its folder -> problems and solutions -> graded -> kept -> groups and rows."""
    folder = tmp_path / "step-3-judge-answers"
    for seed, answers in enumerate([{"p": "42", "q": "42.0", "r": "1"}, {"p": "41", "q": "17", "r": "2"}]):
        cot = [row(p, f"<think>\n{seed}\n</think>\n\\boxed{{{a}}}") for p, a in answers.items()]
        write(folder / f"output-rs{seed}.jsonl", *cot, row("s", FENCES + " " * seed, num_code_executions=1))
    write(folder / "logs/x.log")
    context = stage_context({"files": [folder]}, tmp_path / "problems")
    asyncio.run(ReadProblems(ReadFilesConfig()).run(context))
    problems = list(read_records(tmp_path / "problems", Problem))
    assert len(problems) == 4
    assert context.metrics["equal_units"] == 4
    assert {p.source for p in problems} == {"aops"}
    assert all(not p.extra for p in problems)

    def run(stage: Stage[Any], name: str, **inputs: Sequence[Record]) -> list[Any]:
        return asyncio.run(run_stage(stage, tmp_path / name, grading=grading, **inputs)).records

    solutions = read(tmp_path / "read", folder).records
    graded = run(GradeSolutions(GradeConfig()), "graded", generations=solutions, problems=problems)
    assert sorted(str(g.verdict) for g in graded) == ["equal"] * 4 + ["not_equal"] * 4
    kept = run(Filter(FilterConfig(max_blocks=2)), "kept", generations=graded)
    assert sorted(g.mode for g in kept) == ["cot", "cot", "tir", "tir"]
    hard = [problem.with_(pass_rate=0.25) for problem in problems]
    rows: list[SftRow] = run(MakeRows(RowsConfig()), "rows", generations=kept, problems=hard)
    assert {(r.problem_source, r.pass_rate) for r in rows} == {("aops", 0.25)}
    assert len(rows) == 4
    groups = run(Groups(GroupsConfig(sizes=(2, 2), groups=1, least=2)), "groups", problems=problems, generations=graded)
    assert sorted(sorted(group.correct) for group in groups) == [[False, True]] * 2


def test_rows_that_expect_another_answer_of_a_problem_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    write(
        tmp_path / "output-rs0.jsonl",
        row("a", "\\boxed{42}", finish_reason="stop"),
        row("a", "\\boxed{43}", finish_reason="stop", expected_answer="43"),
        row("b", "\\boxed{1}", finish_reason="stop", expected_answer=None),
        row("b", "\\boxed{42} ", finish_reason="stop"),
    )
    run = read(tmp_path / "read", tmp_path / "output-rs0.jsonl")
    assert len(run.records) == 4
    assert run.context.metrics["answers_differ"] == 1
