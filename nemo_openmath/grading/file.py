"""Grade a file of answers: any JSON Lines (plain, .gz, .zst) or Parquet with ``expected_answer`` and
``predicted_answer`` or ``generation``. Streamed in bounded memory; the result appears whole or not at all, and a
killed run goes on from its last whole row."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import orjson

import nemo_openmath
from nemo_openmath.errors import UserError
from nemo_openmath.grading.extraction import extract_answer
from nemo_openmath.grading.pool import GradingPool
from nemo_openmath.grading.verdict import Verdict
from nemo_openmath.records.foreign import read_rows

SHOWN = 300  # characters of an answer on the terminal
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
    if output.is_dir():
        raise UserError("output is a folder", file=output, remedy="give the name of a file")
    if output.exists() and Path(path).exists() and output.resolve() == Path(path).resolve():
        raise UserError("output is the input", file=output, remedy="give another --output")
    counts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
    counts.update(total=0, no_answer=0)
    partial = output.with_name(f".{output.name}.partial")
    task = _task(Path(path), fallback, take_modulo, time_limit, memory_mb)
    pool = GradingPool(workers, time_limit, memory_mb, take_modulo=take_modulo)
    with pool, _exclusive(partial) as out:
        try:
            done = _resume(out, task, counts)
            for rows in _batches(islice(_prepared(path, fallback), done, None)):
                grades = pool.grade_batch((row["predicted_answer"], row["expected_answer"]) for row in rows)
                lines = bytearray()
                for row, grade in zip(rows, grades, strict=True):
                    row.update(verdict=str(grade.verdict), reason=grade.reason, symbolic_correct=grade.is_equal)
                    _count(row, counts)
                    lines += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
                out.write(lines)
                out.flush()
            _finish(out, output, len(task))
        except UserError:
            partial.unlink()
            raise
    return dict(counts)


def _count(row: dict[str, Any], counts: Counter[str]) -> None:
    counts["total"] += 1
    counts["no_answer"] += not row["predicted_answer"]
    counts[row["verdict"]] += 1


def _task(path: Path, *settings: object) -> bytes:
    """What is graded and how, as the first line of the partial file: another task does not go on from it."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    try:
        stats = [(str(file), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    except FileNotFoundError:
        raise UserError("no such file", file=path, remedy="check its name") from None
    return orjson.dumps([nemo_openmath.__version__, stats, repr(settings)], option=orjson.OPT_APPEND_NEWLINE)


@contextlib.contextmanager
def _exclusive(partial: Path) -> Iterator[BinaryIO]:
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("r+b" if partial.exists() else "w+b")
    except OSError as error:
        problem = f"cannot write ({error.strerror})"
        raise UserError(problem, file=partial.parent, remedy="choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is writing it", file=partial, remedy="wait for it or stop it") from None
        yield file


def _resume(out: BinaryIO, task: bytes, counts: Counter[str]) -> int:
    """Position ``out`` behind the whole rows of an earlier, killed run of this task; their number."""
    done, end = 0, 0
    if out.readline() == task:
        end = len(task)
        for line in out:
            if not line.endswith(b"\n"):
                break
            _count(orjson.loads(line), counts)
            done, end = done + 1, end + len(line)
    out.seek(end)
    out.truncate()
    if not end:
        out.write(task)
    return done


def _finish(out: BinaryIO, output: Path, head: int) -> None:
    """The rows without the head line appear as ``output``, whole or not at all."""
    partial = Path(out.name)
    whole = output.with_name(f".{output.name}.whole")
    out.seek(head)
    with whole.open("wb") as target:
        shutil.copyfileobj(out, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    whole.replace(output)
    partial.unlink()


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
    found, opinions, rows = 0, 0, 0
    for _, number, row in read_rows(path):
        verdict = row.get("verdict")
        if verdict not in set(Verdict):
            raise UserError("no verdict", file=path, row=number, remedy="run openmath grade on the file first")
        opinion = _opinion(row, other)
        opinions, rows = opinions + (opinion is not None), rows + 1
        undecided = verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
        if undecided if opinion is None else (undecided or opinion != (verdict == Verdict.EQUAL)):
            found += 1
            if found <= limit:
                said = "" if opinion is None else f" | other opinion: {'equal' if opinion else 'not equal'}"
                out.write(
                    f"row {number}: {verdict} ({row.get('reason', '')}){said}\n"
                    f"  predicted: {_shown(row.get('predicted_answer'))}\n"
                    f"  expected:  {_shown(row.get('expected_answer'))}\n"
                )
    if other is not None and rows and not opinions:
        raise UserError(f"no row has an opinion in {other!r}", file=path, remedy="give the column that holds one")
    if found > limit:
        out.write(f"... and {found - limit} more\n")
    elif not found:
        out.write("no disagreements\n")
    return found


def _shown(value: object) -> str:
    """One short line: a model's text must not move the cursor or flood the terminal."""
    text = str(value)[: SHOWN + 1]
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:SHOWN])
    return line + " ..." if len(text) > SHOWN else line


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
