"""Grade a file of answers: any JSON Lines (plain, .gz, .zst) or Parquet with ``expected_answer`` and
``predicted_answer`` or ``generation``. Streamed in bounded memory; the result appears whole or not at all."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import orjson

from nemo_openmath.errors import UserError
from nemo_openmath.grading.extraction import extract_answer
from nemo_openmath.grading.pool import GradingPool
from nemo_openmath.grading.verdict import Verdict
from nemo_openmath.records.foreign import read_rows

BATCH = 4096  # rows in memory at once


def grade_file(
    path: str | Path,
    output: str | Path,
    *,
    workers: int = 1,
    time_limit: float = 1.0,
    memory_mb: int = 1024,
    fallback: bool = False,
    take_modulo: int | None = None,
) -> dict[str, int]:
    """Write every row of ``path`` to ``output`` with ``verdict``, ``reason`` and ``symbolic_correct`` added, and
    ``predicted_answer`` where it was extracted from ``generation`` (``fallback``: see extract_answer).

    Returns the count of each verdict, of all rows (``total``) and of rows without an answer (``no_answer``). Raises
    UserError naming file and row where a row has no expected answer or neither field.
    """
    output = Path(output)
    if output.exists() and Path(path).exists() and output.resolve() == Path(path).resolve():
        raise UserError("output is the input", file=output, remedy="give another --output")
    counts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
    counts.update(total=0, no_answer=0)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        pool = GradingPool(workers, time_limit, memory_mb, take_modulo=take_modulo)
        with pool, partial.open("wb") as out:
            for rows in _batches(_prepared(path, fallback)):
                grades = pool.grade_batch((row["predicted_answer"], row["expected_answer"]) for row in rows)
                for row, grade in zip(rows, grades, strict=True):
                    counts["total"] += 1
                    counts["no_answer"] += not row["predicted_answer"]
                    counts[str(grade.verdict)] += 1
                    row.update(verdict=str(grade.verdict), reason=grade.reason, symbolic_correct=grade.is_equal)
                    out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return dict(counts)


def _prepared(path: str | Path, fallback: bool) -> Iterator[dict[str, Any]]:
    for file, number, row in read_rows(path):
        if not isinstance(row.get("expected_answer"), str | int | float):
            raise UserError("no expected_answer", file=file, row=number, remedy="add it, or leave the row out")
        row["expected_answer"] = str(row["expected_answer"])
        if "predicted_answer" in row:
            predicted = row["predicted_answer"]
            if not isinstance(predicted, str | int | float | None):
                raise UserError("predicted_answer is no text", file=file, row=number, remedy="write it as a string")
            row["predicted_answer"] = None if predicted is None else str(predicted)
        elif isinstance(row.get("generation"), str):
            row["predicted_answer"] = extract_answer(row["generation"], fallback=fallback).answer
        else:
            raise UserError(
                "neither predicted_answer nor generation", file=file, row=number, remedy="add one of the two fields"
            )
        yield row


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def show_disagreements(
    path: str | Path, *, other: str | None = None, limit: int = 20, out: TextIO | None = None
) -> int:
    """Print rows of a graded file where its verdict and another opinion part, and return how many there are.

    ``other``: the column that holds the other opinion (a boolean, or a text such as "Judgement: Yes", "yes",
    "equal"); by default ``judgement`` where a row has it, else ``is_correct``. Rows without an opinion are those
    that nobody but the grader judged: of them the undecided ones (unknown, timeout) are shown.
    """
    out = out or sys.stdout
    found = 0
    for _, number, row in read_rows(path):
        verdict = row.get("verdict")
        if verdict not in set(Verdict):
            raise UserError("no verdict", file=path, row=number, remedy="run openmath grade on the file first")
        opinion = _opinion(row, other)
        undecided = verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
        if undecided if opinion is None else (undecided or opinion != (verdict == Verdict.EQUAL)):
            found += 1
            if found <= limit:
                said = "" if opinion is None else f" | other opinion: {'equal' if opinion else 'not equal'}"
                out.write(
                    f"row {number}: {verdict} ({row.get('reason', '')}){said}\n"
                    f"  predicted: {row.get('predicted_answer')}\n  expected:  {row.get('expected_answer')}\n"
                )
    if found > limit:
        out.write(f"... and {found - limit} more\n")
    elif not found:
        out.write("no disagreements\n")
    return found


def _opinion(row: dict[str, Any], other: str | None) -> bool | None:
    for column in (other,) if other else ("judgement", "is_correct"):
        value = row.get(column)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip():
            last = value.lower().replace("*", "").rstrip(" .\n").rpartition("judgement:")[2].strip()
            if last in ("yes", "equal", "true", "correct"):
                return True
            if last in ("no", "not_equal", "false", "incorrect"):
                return False
    return None
