"""Grading a file: every row comes back, with a verdict; what is wrong with a row is said with its number."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from nemo_openmath.errors import UserError
from nemo_openmath.grading import grade_file, show_disagreements

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
        ({"expected_answer": "1"}, "neither predicted_answer nor generation"),
        ({"expected_answer": "1", "predicted_answer": ["1"]}, "predicted_answer is no text"),
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
    assert grade_file(path, out) == whole
    assert sum(seen) == 40 + 8  # the batch that was cut off is graded again, no other
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()

    partial.write_bytes(b'["another task"]\n{"verdict": "equal"}\n')
    assert grade_file(path, out) == whole


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"time_limit": -1.0}, {"memory_mb": 1}, {"take_modulo": 0}], ids=lambda d: next(iter(d))
)
def test_wrong_limits_are_said(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match="at least one worker"):
        grade_file(write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl", **wrong)


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match="is a folder"):
        grade_file(path, tmp_path)
    with pytest.raises(UserError, match="cannot write"):
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
