"""Grading a file: every row comes back, with a verdict; what is wrong with a row is said with its number."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem, SftRow
from nemo_openmath.core.records.manifest import Manifest, write_manifest
from nemo_openmath.core.records.store import write_records
from nemo_openmath.grading import grade_file, show_disagreements
from tests.support.disk import small_disk

ROWS = [
    {"id": 1, "predicted_answer": r"\frac12", "expected_answer": "0.5", "judgement": "Judgement: No"},
    {"id": 2, "generation": r"<think>\boxed{3}</think> \boxed{4}", "expected_answer": "4", "extra": {"kept": [1, 2]}},
    {"id": 3, "generation": "no box", "expected_answer": "4"},
    {"id": 4, "predicted_answer": "blue", "expected_answer": "a deep colour"},
    {"id": 5, "predicted_answer": 7, "expected_answer": 8, "is_correct": True},
    {"id": 6, "predicted_answer": None, "expected_answer": "8"},
]


def write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_every_row_comes_back_with_a_verdict(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "graded.jsonl"
    counts = grade_file(write(tmp_path / name, ROWS), out)
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in graded] == ["equal", "equal", "not_equal", "unknown", "not_equal", "not_equal"]
    assert [row["symbolic_correct"] for row in graded] == [True, True, False, False, False, False]
    assert [row["predicted_answer"] for row in graded] == [r"\frac12", "4", None, "blue", "7", None]
    assert all(row["reason"] for row in graded)
    assert graded[1]["extra"] == {"kept": [1, 2]}
    assert counts == {"equal": 2, "not_equal": 3, "unknown": 1, "timeout": 0, "total": 6, "no_answer": 2}
    assert [p.name for p in out.parent.iterdir()] == ["graded.jsonl"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"predicted_answer": "1"}, "no expected_answer"),
        ({"expected_answer": ["1"], "predicted_answer": "1"}, "expected_answer is a list; write a text"),
        ({"expected_answer": True, "predicted_answer": "1"}, "expected_answer is true or false"),
        ({"expected_answer": "1"}, r"none of predicted_answer, generation, .*; the row has expected_answer"),
        ({"expected_answer": "1", "output": [{"role": "user"}]}, "output is a list, not a text"),
        ({"expected_answer": "1", "predicted_answer": ["1"]}, "predicted_answer is a list"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, row: dict, problem: str) -> None:
    path, out = write(tmp_path / "rows.jsonl", [*ROWS, row]), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=problem) as caught:
        grade_file(path, out)
    assert caught.value.row == len(ROWS) + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_output_must_not_be_the_input(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match="output is the input"):
        grade_file(path, path)
    assert len(path.read_text().splitlines()) == len(ROWS)


def test_disagreements_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "graded.jsonl"
    grade_file(write(tmp_path / "rows.jsonl", ROWS), out)
    text = io.StringIO()
    assert show_disagreements(out, out=text) == 3
    assert [line.split(":")[0] for line in text.getvalue().splitlines() if line.startswith("row")] == [
        "row 1",
        "row 4",
        "row 5",
    ]
    text = io.StringIO()
    assert show_disagreements(out, other="is_correct", limit=1, out=text) == 2
    assert "... and 1 more" in text.getvalue()
    with pytest.raises(UserError, match="no verdict"):
        show_disagreements(tmp_path / "rows.jsonl")


def test_a_killed_run_goes_on_from_its_last_whole_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_openmath.grading import file as module
    from nemo_openmath.grading import pool

    path, out, partial = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    write(path, [{"predicted_answer": str(i), "expected_answer": str(i % 3)} for i in range(40)])
    whole = grade_file(path, tmp_path / "whole.jsonl")
    monkeypatch.setattr(module, "BATCH", 8)
    seen: list[int] = []
    grade_batch = pool.GradingPool.grade_batch

    def dying(self: pool.GradingPool, pairs: object) -> object:
        seen.append(len(grades := grade_batch(self, pairs)))  # type: ignore[arg-type]
        if len(seen) == 3:
            raise KeyboardInterrupt
        return grades

    monkeypatch.setattr(pool.GradingPool, "grade_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        grade_file(path, out)
    with partial.open("ab") as file:
        file.write(b'{"torn')
    assert not out.exists()
    shown: list[dict] = []
    assert grade_file(path, out, on_row=shown.append) == whole
    assert [row["predicted_answer"] for row in shown] == [str(i) for i in range(40)], "those of the killed run, too"
    assert sum(seen) == 40 + 8  # the batch that was cut off is graded again, no other
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()

    partial.write_bytes(b'["another task"]\n{"verdict": "equal"}\n')
    assert grade_file(path, out) == whole


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workers": 0}, "workers is 0; choose 1 or more"),
        ({"time_limit": -1.0}, "time limit is -1.0; choose a number of seconds above 0"),
        ({"memory_mb": 1}, "memory is 1; choose 256 MiB or more"),
        ({"take_modulo": 0}, "modulus is 0; choose 1 or more"),
    ],
)
def test_wrong_limits_are_said(tmp_path: Path, wrong: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        grade_file(write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl", **wrong)


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match="is a folder"):
        grade_file(path, tmp_path)
    with pytest.raises(UserError, match="cannot be used"):
        grade_file(path, path / "out.jsonl")


def test_a_models_text_does_not_command_the_terminal(tmp_path: Path) -> None:
    row = {"predicted_answer": "\x1b[2J" + "x" * 5000, "expected_answer": "y z\n", "verdict": "unknown"}
    text = io.StringIO()
    show_disagreements(write(tmp_path / "rows.jsonl", [row]), out=text)
    assert "\x1b" not in text.getvalue()
    assert len(text.getvalue().splitlines()) == 3
    assert len(text.getvalue()) < 500
    with pytest.raises(UserError, match="no row has an opinion"):
        show_disagreements(tmp_path / "rows.jsonl", other="nobody", out=text)


def record(name: str, text: str, expected: str | None, finish: str = "stop") -> Generation:
    transcript = {"messages": [], "pieces": [{"author": "model", "text": text}], "ended": True, "tokenizer": ""}
    return Generation(
        id=name, problem_id="p", mode="cot", model="m", sample=0, transcript=transcript, finish=finish,
        expected_answer=expected,
    )  # fmt: skip


def test_what_generate_wrote_is_graded_from_its_folder_or_file(tmp_path: Path) -> None:
    write_records(
        tmp_path / "solutions",
        [
            record("a", r"so \boxed{4}", "4"),
            record("b", r"so \boxed{5}", "4"),
            record("c", r"so \boxed{4} and then it was cut", "4", "length"),
            record("d", r"so \boxed{4}", None),
        ],
    )
    with pytest.raises(UserError, match=r"solutions: the folder of a stage that has not finished"):
        grade_file(tmp_path / "solutions", tmp_path / "out.jsonl")
    write_manifest(tmp_path / "solutions", Manifest("solutions", "", "", {}))
    for path in (tmp_path / "solutions", tmp_path / "solutions/part-00000-of-00001.jsonl"):
        counts = grade_file(path, tmp_path / "out.jsonl")
        assert counts == {"equal": 1, "not_equal": 2, "unknown": 1, "timeout": 0, "total": 4, "no_answer": 1}
        graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["predicted_answer"] for row in graded] == ["4", "5", None, "4"]
        assert graded[3]["reason"] == "no expected answer"


def test_training_rows_are_graded_and_other_records_are_refused_by_their_type(tmp_path: Path) -> None:
    solution = record("a", r"so \boxed{4}", "4")
    row = SftRow.make(solution, problem_id="a", mode="cot", transcript=solution.transcript, expected_answer="4")
    write_records(tmp_path / "rows", [row])
    write_records(tmp_path / "problems", [Problem.make("2+2?", expected_answer="4")])
    for stage in ("rows", "problems"):
        write_manifest(tmp_path / stage, Manifest(stage, "", "", {}))
    assert grade_file(tmp_path / "rows", tmp_path / "out.jsonl")["equal"] == 1
    with pytest.raises(UserError, match="a record of type Problem, which has no answer of a model"):
        grade_file(tmp_path / "problems", tmp_path / "out.jsonl")


@pytest.mark.parametrize("column", ["generation", "generated_solution", "output"])
@pytest.mark.parametrize("more", [{}, {"predicted_answer": None}])
def test_published_columns_are_read(tmp_path: Path, column: str, more: dict) -> None:
    row = {column: r"<think>x</think> \boxed{4}", "expected_answer": "4", **more}
    assert grade_file(write(tmp_path / "rows.jsonl", [row]), tmp_path / "out.jsonl")["equal"] == 1


def test_csv_is_graded_and_broken_rows_are_left_out_on_demand(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("predicted_answer,expected_answer\n4,4\n4,\n,3\n")
    says = r"a\.csv:3: no expected_answer; the row has .*_answer, .*_answer \(1 of 3 rows are broken\).*--skip-broken"
    with pytest.raises(UserError, match=says):
        grade_file(tmp_path / "a.csv", tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    counts = grade_file(tmp_path / "a.csv", tmp_path / "out.jsonl", skip_broken=True)
    assert (counts["equal"], counts["no_answer"], counts["total"], counts["skipped"]) == (1, 1, 2, 1)


def test_long_integers_are_graded_and_written_exactly(tmp_path: Path) -> None:
    number = 10**40 + 1
    row = {"predicted_answer": str(number), "expected_answer": number, "seed": number}
    assert grade_file(write(tmp_path / "rows.jsonl", [row]), tmp_path / "out.jsonl")["equal"] == 1
    assert f'"seed":{number}' in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("name", ["g.parquet", "g.csv", "g.jsonl.gz"])
def test_json_lines_are_not_written_under_another_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="JSON Lines are written; name the output"):
        grade_file(write(tmp_path / "rows.jsonl", ROWS), tmp_path / name)


def test_only_the_end_of_a_name_says_what_a_file_is(tmp_path: Path) -> None:
    assert grade_file(write(tmp_path / "rows.jsonl", ROWS), tmp_path / "rows.csv.jsonl")["total"] == len(ROWS)


def test_the_verb_says_share_and_place_and_that_nothing_was_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(["grade", str(write(tmp_path / "rows.jsonl", ROWS)), "--output", str(out)]) == 0
    said = capfd.readouterr()
    assert f"right: 2 of 6 (33.3%, 95% interval 4.3–77.7 over 6 problems); with verdicts and reasons: {out}" in said.out
    assert said.err == ""
    rows = [row | {"problem_id": row["id"] % 2} for row in ROWS]
    assert run(["grade", str(write(tmp_path / "rows.jsonl", rows)), "--output", str(out)]) == 0
    assert "right: 2 of 6 (33.3%, 95% interval 5.3–89.5 over 2 problems); " in capfd.readouterr().out
    assert run(["grade", str(write(tmp_path / "rows.jsonl", [ROWS[2]])), "--output", str(out)]) == 0
    assert "NO ANSWER was found in any of the 1 rows" in capfd.readouterr().err
    assert run(["grade", str(write(tmp_path / "rows.jsonl", [])), "--output", str(out)]) == 2
    assert "rows.jsonl: there is no row in it" in capfd.readouterr().err


def test_a_full_disk_is_said_in_one_line_and_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], full: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"predicted_answer": "1", "expected_answer": "1", "pad": "x" * 9000}] * 200)
    assert run(["grade", str(path), "--output", str(full / "out.jsonl")]) == 77
    said = capfd.readouterr().err
    assert "no space left" in said
    assert len(said.splitlines()) == 1
    assert "defect" not in said
    assert list(full.iterdir()) == []


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    (folder := tmp_path / "disk").mkdir()
    with small_disk(folder, 1 << 20) as mounted:
        yield mounted


def test_numbers_are_graded_and_written_as_they_are_spelled(tmp_path: Path) -> None:
    lines = [
        '{"id":18446744073709551617,"expected_answer":18446744073709551617,"predicted_answer":18446744073709552000}',
        '{"id":1e400,"expected_answer":18446744073709551617,"predicted_answer":18446744073709551617}',
        '{"id":0.10,"expected_answer":0.1,"predicted_answer":0.10}',
        '{"id":3,"expected_answer":12345678901234567890.5,"predicted_answer":12345678901234567890.6}',
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    assert grade_file(source, out)["equal"] == 2
    graded = out.read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in graded] == ["not_equal", "equal", "equal", "not_equal"]
    assert [line.split(",")[0] for line in graded][:2] == ['{"id":18446744073709551617', '{"id":1e400']
    assert '"expected_answer":"12345678901234567890.5"' in graded[3]
    assert '"predicted_answer":"0.10"' in graded[2]
