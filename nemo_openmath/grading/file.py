"""Grade a file or folder of answers: our own records of solutions (``openmath generate``), and any JSON Lines, JSON,
CSV or Parquet with ``expected_answer`` and an answer: ``predicted_answer``, or a text that ends with one. Streamed in
bounded memory; the result appears whole or not at all, and a killed run goes on from its last whole row."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import orjson

import nemo_openmath
from nemo_openmath.core.errors import UserError, no_space, refuse_special
from nemo_openmath.core.grader import Grade, Verdict
from nemo_openmath.core.locks import try_lock
from nemo_openmath.core.outputs import refuse_foreign_file
from nemo_openmath.core.records.encoding import record_type
from nemo_openmath.core.records.exact_json import dumps, loads
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.core.records.readers import BrokenRows, name_of, read_rows
from nemo_openmath.core.records.types import NOT_TRIED, UNTRIED
from nemo_openmath.grading.extraction import extract_answer
from nemo_openmath.grading.judgement import parse_judgement
from nemo_openmath.grading.pool import GradingPool

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
    skip_broken: bool = False,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, int]:
    """Write every row of ``path`` to ``output`` with ``verdict``, ``reason`` and ``symbolic_correct`` added, and
    ``predicted_answer`` where it was extracted from a text (``fallback``: see extract_answer).

    Returns the count of each verdict, of all rows (``total``) and of rows without an answer (``no_answer``); where
    there are any, of generations that could not be tried (``untried``) and of rows that ``skip_broken`` left out
    (``skipped``). ``on_row`` is shown every graded row that was tried, those of an earlier, killed run first. Raises
    UserError naming the first row of which no answer or no expected answer can be read, and how
    many such rows there are; SystemFailure where the disk is full.
    """
    output = Path(output)
    _check_output(Path(path), output)
    counts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
    counts.update(total=0, no_answer=0)

    def count(row: dict[str, Any]) -> None:
        _count(row, counts)
        if on_row is not None and not _is_untried(row):
            on_row(row)

    broken = BrokenRows(skip=skip_broken, how="--skip-broken leaves such rows out")
    output = Path(os.path.realpath(output))  # a link stays one
    partial = output.with_name(f".{output.name}.partial")
    task = _task(Path(path), fallback, take_modulo, time_limit, memory_mb, skip_broken)
    pool = GradingPool(workers, time_limit, memory_mb, take_modulo=take_modulo)
    try:
        with pool, _exclusive(partial) as out:
            try:
                done = _resume(out, task, count)
                for rows in _batches(islice(_prepared(path, fallback, broken), done, None)):
                    grades = pool.grade_batch((row["predicted_answer"], row["expected_answer"] or "") for row in rows)
                    for row, grade in zip(rows, grades, strict=True):
                        _put_grade(row, grade)
                        count(row)
                    out.write(b"".join(dumps(row) + b"\n" for row in rows))
                    out.flush()
                broken.refuse()
                _finish(out, output, len(task))
            except UserError:
                partial.unlink()
                raise
    except OSError as error:  # also of closing the file
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        for file in (partial, _whole(output)):
            file.unlink(missing_ok=True)
        raise no_space(output, error.strerror or str(error), "nothing was written") from error
    return dict(counts) | ({"skipped": broken.count} if broken.count else {})


_NOT_LINES = (".parquet", ".csv", ".tsv", ".gz", ".zst", ".arrow", ".feather", ".xlsx", ".xls", ".bz2", ".xz", ".zip")


def _check_output(path: Path, output: Path) -> None:
    """Raise UserError where ``output`` is no place for the graded rows of ``path``."""
    if output.suffix.lower() in _NOT_LINES:
        raise UserError("JSON Lines are written", file=output, remedy="name the output .jsonl")
    refuse_inside_stage(output)
    refuse_special(output, "give the name of a file")
    if output.exists() and path.exists() and output.resolve() == path.resolve():
        raise UserError("output is the input", file=output, remedy="give another --output")
    refuse_foreign_file(output, "a file of graded rows", _is_graded)


def _is_graded(line: bytes) -> bool:
    """Whether the first line of a file is a row that was graded."""
    try:
        row = loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() >= {"verdict", "reason", "symbolic_correct", "predicted_answer"}


def _put_grade(row: dict[str, Any], grade: Grade) -> None:
    """Write the grade into its row. A row without an expected answer, or not tried, has no verdict but unknown."""
    row.update(verdict=str(grade.verdict), reason=grade.reason, symbolic_correct=grade.is_equal)
    if row["expected_answer"] is None and row["predicted_answer"]:
        row.update(verdict=str(Verdict.UNKNOWN), reason="no expected answer")
    if _is_untried(row):
        row.update(verdict=str(Verdict.UNKNOWN), reason=NOT_TRIED)


def _count(row: dict[str, Any], counts: Counter[str]) -> None:
    counts["total"] += 1
    counts["no_answer"] += not row["predicted_answer"]
    counts[row["verdict"]] += 1
    if _is_untried(row):
        counts["untried"] += 1


def _is_untried(row: dict[str, Any]) -> bool:
    return row.get("finish") in UNTRIED and "transcript" in row


def _task(path: Path, *settings: object) -> bytes:
    """Return what is graded and how, as the first line of the partial file. Another task does not go on from it."""
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
        if try_lock(file.fileno()) is False:  # where there are no locks (None), nothing tells of another process
            raise UserError("another process is writing it", file=partial, remedy="wait for it or stop it")
        yield file


def _resume(out: BinaryIO, task: bytes, count: Callable[[dict[str, Any]], None]) -> int:
    """Position ``out`` behind the whole rows of an earlier, killed run of this task; return their number."""
    done, end = 0, 0
    if out.readline() == task:
        end = len(task)
        for line in out:
            if not line.endswith(b"\n"):
                break
            count(loads(line))
            done, end = done + 1, end + len(line)
    out.seek(end)
    out.truncate()
    if not end:
        out.write(task)
    return done


def _finish(out: BinaryIO, output: Path, head: int) -> None:
    """Make the rows without the head line appear as ``output``, whole or not at all."""
    partial = Path(out.name)
    whole = _whole(output)
    out.seek(head)
    with whole.open("wb") as target:
        shutil.copyfileobj(out, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    whole.replace(output)
    partial.unlink()


def _whole(output: Path) -> Path:
    return output.with_name(f".{output.name}.whole")


def _prepared(path: str | Path, fallback: bool, broken: BrokenRows) -> Iterator[dict[str, Any]]:
    """Yield rows with ``predicted_answer`` and ``expected_answer`` as texts. Once a row is broken and not to be left
    out, the others are only counted."""
    for file, number, row in read_rows(path, broken):
        if problem := _prepare(row, fallback):
            broken(file, number, problem)
            continue
        broken.good += 1
        if not broken.refused:
            yield row


def _prepare(row: dict[str, Any], fallback: bool) -> str | None:
    """Put the two answers of a row in place; return what is wrong with it where they cannot be read."""
    record = isinstance(row.get("transcript"), dict) and "problem_id" in row
    expected = row.get("expected_answer")
    if expected is None and not record:  # a record of ours may be of a problem whose answer nobody knows
        return f"no expected_answer; the row has {_columns(row)}"
    if expected is not None and not _is_answer(expected):
        return f"expected_answer is {name_of(expected)}; write a text"
    row["expected_answer"] = None if expected is None else str(expected)
    predicted = row.get("predicted_answer")
    if predicted is not None and not _is_answer(predicted):
        return f"predicted_answer is {name_of(predicted)}; write a text"
    if predicted is None:
        text = _text_of(row) if record else next((row[c] for c in TEXTS if isinstance(row.get(c), str)), None)
        if text is not None:
            predicted = extract_answer(text, fallback=fallback).answer
        elif "predicted_answer" not in row:
            if (column := next((c for c in TEXTS if c in row), None)) is not None:
                return f"{column} is {name_of(row[column])}, not a text"
            if row.keys() >= _OF_RECORDS and (kind := record_type(row)) is not None:
                return f"a record of type {kind.__name__}, which has no answer of a model"
            return f"none of predicted_answer, {', '.join(TEXTS)}; the row has {_columns(row)}"
    row["predicted_answer"] = None if predicted is None else str(predicted)
    return None


_OF_RECORDS = {"id", "parents", "extra"}  # fields of every record of ours


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(list(row)[:12]) or "no fields"


TEXTS = ("generation", "generated_solution", "output", "solution", "response", "completion")
"""Columns whose text ends with an answer, the first that a row has: ours and the published ones."""


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _text_of(record: dict[str, Any]) -> str:
    """Return what stands behind the prompt in a record of ours; nothing where the solution did not end by itself, for
    its box was not its last word."""
    ended = record["finish"] == "stop" if "finish" in record else record["transcript"].get("ended", True)
    if not ended:
        return ""
    pieces = record["transcript"].get("pieces", ())
    return "".join("\n" if piece.get("author") == "runner" else piece["text"] for piece in pieces)


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
    differing, opinions, rows = 0, 0, 0
    for _, number, row in read_rows(path):
        verdict = row.get("verdict")
        if verdict not in set(Verdict):
            raise UserError("no verdict", file=path, row=number, remedy="run openmath grade on the file first")
        opinion = _opinion(row, other)
        opinions, rows = opinions + (opinion is not None), rows + 1
        undecided = verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
        if undecided if opinion is None else (undecided or opinion != (verdict == Verdict.EQUAL)):
            differing += 1
            if differing <= limit:
                other_opinion = "" if opinion is None else f" | other opinion: {'equal' if opinion else 'not equal'}"
                out.write(
                    f"row {number}: {verdict} ({row.get('reason', '')}){other_opinion}\n"
                    f"  predicted: {_shown(row.get('predicted_answer'))}\n"
                    f"  expected:  {_shown(row.get('expected_answer'))}\n"
                )
    if other is not None and rows and not opinions:
        raise UserError(f"no row has an opinion in {other!r}", file=path, remedy="give the column that holds one")
    if differing > limit:
        out.write(f"... and {differing - limit} more\n")
    elif not differing:
        out.write("no disagreements\n")
    return differing


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
            if (judged := parse_judgement(value)) is not None:
                return judged
            last = value.lower().strip(" .\n*")
            if last in ("yes", "equal", "true", "correct"):
                return True
            if last in ("no", "not_equal", "false", "incorrect"):
                return False
    return None
