"""Benchmarks by name, from files and from the datasets library, with what is checked of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.cli.main import run as command
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.grader import Grade
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.benchmarks.checks import findings
from nemo_openmath.evaluation.benchmarks.columns import BenchmarkColumns
from nemo_openmath.evaluation.benchmarks.known import KNOWN, known
from nemo_openmath.evaluation.benchmarks.overlap import overlaps, training_problems
from nemo_openmath.evaluation.benchmarks.prepare import Prepared, PrepareRequest, prepare
from nemo_openmath.grading import compare


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def prepared(name: str, file: Path, output: Path, **fields: Any) -> Prepared:
    return prepare(PrepareRequest(name, str(file), output, **fields))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"problem": "1 + 1?", "expected_answer": "2", "id": "a"}, {}),
        ({"question": "1 + 1?", "answer": 2, "unique_id": "a"}, {}),
        ({"problem": "1 + 1?", "solution": "It is \\boxed{2}.", "id": "a"}, {}),
        ({"Q": "1 + 1?", "A": 2.0, "id": "a"}, {"problem": "Q", "expected_answer": "A"}),
        ({"problem": "1 + 1?", "answer": "0", "solution": "\\boxed{2}", "id": "a"}, {"solution": "solution"}),
    ],
)
def test_rows_of_every_usual_shape(row: Mapping[str, Any], columns: dict[str, str]) -> None:
    wanted = {"id": "a", "problem": "1 + 1?", "expected_answer": "2"}
    made = BenchmarkColumns.of([row], columns).row(row, 1)
    assert isinstance(made, dict)
    assert {key: made[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"text": "?", "answer": "1"}, {}, "no column holds the problem; there are text, answer"),
        ({"problem": "?"}, {}, "no column holds the expected_answer"),
        ({"problem": "?", "answer": "1"}, {"problem": "Problem"}, "no column 'Problem'"),
        ({"problem": "?", "answer": "1"}, {"answers": "answer"}, "answers: no such value"),
    ],
)
def test_columns_that_are_not_there_are_named(row: dict[str, Any], columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BenchmarkColumns.of([row], columns)


def test_what_is_to_be_said_of_rows() -> None:
    rows = [
        {"id": "1", "problem": "Compute $2+2$.", "expected_answer": "4"},
        {"id": "2", "problem": "What is 2 + 2?", "expected_answer": "\\frac{8}{2}"},
        {"id": "3", "problem": "Compute $2+3$.", "expected_answer": "5"},
        {"id": "4", "problem": "Find 2+3", "expected_answer": "6"},
        {"id": "5", "problem": "Is it so?", "expected_answer": "only for the even ones of them"},
        {"id": "6", "problem": "Find both.", "expected_answer": "3 and 4"},
        {"id": "7", "problem": "Find the area of the figure shown below.", "expected_answer": "7"},
    ]
    kinds = {(finding.kind, finding.ids) for finding in findings(rows, compare)}
    assert kinds >= {
        ("duplicate", ("1", "2")),
        ("contradiction", ("3", "4")),
        ("answer the grader cannot read", ("5",)),
        ("answer of several parts", ("6",)),
        ("image referenced", ("7",)),
    }
    assert not {ids for _, ids in kinds} & {("1",), ("2",), ("3",), ("4",)}


def test_duplicates_go_and_contradictions_are_refused(tmp_path: Path) -> None:
    rows = [{"id": n, "problem": p, "answer": a} for n, p, a in (("1", "Compute 2+2.", "4"), ("1", "2+2?", "4.0"))]
    out = prepared("mine", write(tmp_path / "b.jsonl", rows), tmp_path / "out.jsonl")
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["1-1"], "two problems of one id get numbers"
    assert out.left_out == {"the same problem again": 1}
    rows[1]["answer"] = "5"
    with pytest.raises(UserError, match=r"1-1 and 1-2 state the same and expect different answers \(4 and 5\)"):
        prepared("mine", write(tmp_path / "b.jsonl", rows), tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_counts_of_known_benchmarks_are_held_against_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": n, "problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(29)]
    file = write(tmp_path / "aime.jsonl", rows)
    line = ["benchmark", "prepare", "aime24", "--from", str(file), "--output", str(tmp_path / "out.jsonl")]
    assert command(line) is ExitCode.OK
    assert "29 problems; 30 are known of it" in capsys.readouterr().err
    assert len(read(tmp_path / "out.jsonl")) == 29


def test_hle_keeps_text_problems_of_mathematics(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "What is 1 + 1?", "answer": "2", "category": "Math", "image": ""},
        {"id": "b", "question": "What is 1 + 2?", "answer": "3", "category": "Math", "image": "data:image/png"},
        {"id": "c", "question": "Who was it?", "answer": "I", "category": "Humanities", "image": ""},
    ]
    out = prepared("hle-math", write(tmp_path / "hle.jsonl", rows), tmp_path / "out.jsonl")
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["a"]
    assert out.left_out == {"category is another": 1, "it has an image": 1}


def test_what_a_training_set_holds_is_found(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "problem": "A farmer has 17 sheep and buys 25 more at the market. How many sheep has he?"},
        {"id": "b", "problem": "Find the remainder when $7^{2024}$ is divided by 100."},
    ]
    training = [
        "find the remainder when 7^{2024} is divided by $100$",
        "A farmer who has 17 sheep buys 25 more sheep at the market. How many sheep does the farmer have now?",
        "Prove that there are infinitely many primes.",
    ]
    write_records(tmp_path / "problems", [Problem.make(text) for text in training])
    hits = list(overlaps(rows, training_problems(tmp_path / "problems")))
    assert {(hit.benchmark, hit.exact) for hit in hits} == {("b", True), ("a", False)}
    file = write(tmp_path / "rows.jsonl", [{"input": text} for text in training])
    assert len(list(overlaps(rows, training_problems(file)))) == len(hits)


def test_rows_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1), "problem_idx": n} for n in range(30)]
    write(tmp_path / "train.jsonl", rows)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "hub"):
        if folder.name == "hub":
            folder.mkdir()
            (tmp_path / "train.jsonl").rename(folder / "train.jsonl")
        out = prepare(PrepareRequest("aime25", "datasets", tmp_path / f"{folder.name}.jsonl", dataset=str(folder)))
        assert (len(out.rows), out.wrong_count) == (30, False)
    with pytest.raises(UserError, match="cannot load split 'validation'"):
        prepare(PrepareRequest("aime25", "datasets", tmp_path / "x.jsonl", dataset=str(tmp_path / "hub"),
                               split="validation"))  # fmt: skip


def test_names_and_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert len({benchmark.name for benchmark in KNOWN}) == len(KNOWN)
    whole = known("comp-math-24-25")
    assert whole is not None
    assert sum(part.problems for part in whole.parts if not part.ids) == whole.problems == 256
    assert sum(part.problems for part in whole.parts if part.ids) == 196, "62 + 68 + 66 (Table 4)"
    assert command(["benchmark", "list"]) is ExitCode.OK
    assert "comp-math-24-25" in capsys.readouterr().out
    rows = [
        {"id": f"{name}-{n}", "problem": f"{n} + {n} of {name}?", "expected_answer": "1", "subset_for_metrics": name}
        for name in ("aime24", "aime25") for n in range(30)
    ]  # fmt: skip
    out = prepared("comp-math-24-25", write(tmp_path / "c.jsonl", rows), tmp_path / "o.jsonl", part="aime25")
    assert (len(out.rows), out.left_out, out.wrong_count) == (30, {"of another part": 30}, False)
    with pytest.raises(UserError, match="no part 'aime23'"):
        prepared("comp-math-24-25", tmp_path / "c.jsonl", tmp_path / "o.jsonl", part="aime23")


def test_equal_verdict_is_the_graders() -> None:
    """A duplicate is one where the grader says so, and only then."""
    rows = [{"id": n, "problem": "Compute 1+1.", "expected_answer": n} for n in ("2", "two apples")]
    (finding,) = [f for f in findings(rows, lambda a, b: Grade("unknown", "")) if len(f.ids) == 2]
    assert finding.kind == "contradiction"
