"""Problems and solutions as Parquet with the columns of the published dataset, in the order of their ids.

The same records give the same bytes (with one version of pyarrow), however many parts they lie in. Memory is that of
one portion of rows: portions are sorted, put aside on the disk, and merged.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from nemo_openmath.chat import Transcript
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Vote
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Generation, Problem, exact_json
from nemo_openmath.core.records.bodies import joined
from nemo_openmath.core.records.encoding import parse_record
from nemo_openmath.core.records.store import record_lines

OF_PROBLEMS = ("problem", "expected_answer", "problem_type", "problem_source", "pass_rate_72b_tir")
OF_SOLUTIONS = (
    "problem",
    "generated_solution",
    "expected_answer",
    "problem_type",
    "problem_source",
    "generation_model",
    "pass_rate_72b_tir",
    "inference_mode",
)
KAGGLE = "used_in_kaggle"
"""A column that is there where records of the published data, which say it, are among those that are written."""
UNATTRIBUTED = "answer_unattributed"
"""A column that is there where a problem has an answer of its discussion of which nothing says whether it is to this
problem or to another one of the same post. Such a problem has that answer in ``extra`` under this key, whether it is
still its own or was taken away (``problems.extract_answers``); one that was read from an export has true."""
_FLAGS = (KAGGLE, UNATTRIBUTED)
PORTION = 1 << 26  # bytes of rows that are sorted at once
SHARD = 400 << 20  # bytes, after which another file is begun: none reaches 500 MB
_GROUP_BYTES, _GROUP_ROWS = 1 << 25, 4096  # of a row group


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """What was written."""

    columns: tuple[str, ...]
    rows: int
    arrow_bytes: int
    """In memory."""
    files: tuple[Path, ...]
    types: dict[str, int]
    """``problem_type`` -> rows."""


class SortedRows:
    """Rows by their keys. More than ``portion`` bytes of them are put aside in ``folder``, sorted, and merged."""

    def __init__(self, folder: Path, name: str, portion: int = PORTION):
        self._folder, self._name, self._portion = folder, name, portion
        self._rows: list[tuple[bytes, bytes]] = []
        self._size = 0
        self._files: list[Path] = []

    def add(self, key: str, row: bytes) -> None:
        """Take a row, which holds no line break. ``key`` holds neither that nor a tab."""
        self._rows.append((key.encode(), row))
        self._size += len(row) + len(key)
        if self._size >= self._portion:
            self._put_aside()

    def _put_aside(self) -> None:
        path = self._folder / f".{self._name}-{len(self._files):05d}"
        with path.open("wb") as file:
            file.writelines(b"%s\t%s\n" % row for row in sorted(self._rows))
        self._files.append(path)
        self._rows, self._size = [], 0

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        files = [path.open("rb") for path in self._files]
        try:
            for key, row in heapq.merge(sorted(self._rows), *map(_pairs, files)):
                yield key.decode(), row
        finally:
            for file in files:
                file.close()

    def remove(self) -> None:
        """Remove what was put aside."""
        for path in self._files:
            path.unlink(missing_ok=True)


def _pairs(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for line in file:
        key, _, row = line.removesuffix(b"\n").partition(b"\t")
        yield key, row


def publish_problems(folder: Path, output: Path, vote: Vote) -> PublishedFiles:
    """Write the problems of a finished stage into ``output``, each id once. Raises UserError where there is none."""
    rows, flags = SortedRows(output, "problems"), set[str]()
    try:
        for problem in read_merged([folder], Problem, vote):
            flags |= _flags_of(problem)
            rows.add(problem.id, _line(problem.id, _problem_row(problem)))
        columns = OF_PROBLEMS + tuple(flag for flag in _FLAGS if flag in flags)
        return _write((orjson.loads(line) for _, line in rows), columns, output, folder)
    finally:
        rows.remove()


def publish_solutions(folder: Path, problems: Sequence[Path], output: Path, vote: Vote) -> PublishedFiles:
    """Write the generations of a finished stage with their problems, in the order of the problems' ids and then their
    own. Raises UserError where there is none, and for one whose problem is in none of the folders ``problems``."""
    solutions, texts, flags = SortedRows(output, "solutions"), SortedRows(output, "problems"), set[str]()
    try:
        for file, row, line in record_lines([folder]):
            generation = parse_record(line, Generation, file, row)
            solutions.add(f"{generation.problem_id} {generation.id}", line.rstrip(b"\n"))
        for problem in read_merged(problems, Problem, vote):
            flags |= _flags_of(problem)
            texts.add(problem.id, _line(problem.id, _problem_row(problem)))
        columns = OF_SOLUTIONS + tuple(flag for flag in _FLAGS if flag in flags)
        return _write(_with_problems(solutions, texts, folder), columns, output, folder)
    finally:
        solutions.remove()
        texts.remove()


def _with_problems(solutions: SortedRows, texts: SortedRows, folder: Path) -> Iterator[dict[str, Any]]:
    problems = iter(texts)
    name, problem = "", b""
    before = ""
    for key, line in solutions:
        owner, _, own = key.partition(" ")
        if own == before:
            raise UserError(f"generation {own} is there twice", file=folder, remedy="name a stage that holds it once")
        before = own
        while name < owner:
            name, problem = next(problems, (f"{owner}~", b""))
        if name != owner:
            raise UserError(f"no stage holds the problem of generation {own}: {owner}", file=folder)
        values = exact_json.loads(joined(line + b"\n", folder))
        solution = {
            "generated_solution": Transcript.from_json(values["transcript"]).text,
            "generation_model": values["model"],
            "inference_mode": values["mode"],
        }
        yield orjson.loads(problem) | solution


def _is_unattributed(problem: Problem) -> bool:
    """Return whether the answer that a problem has is one that nothing attributes to it: a later one is another."""
    answer = problem.expected_answer
    extracted = problem.problem_type == "has_answer_extracted"
    return extracted and answer is not None and problem.extra.get(UNATTRIBUTED) in (answer, True)


def _flags_of(problem: Problem) -> set[str]:
    """Return which columns that are not always there a problem needs."""
    return {KAGGLE} & problem.extra.keys() | ({UNATTRIBUTED} if _is_unattributed(problem) else set())


def _problem_row(problem: Problem) -> dict[str, Any]:
    used = problem.extra.get(KAGGLE)
    return {
        "problem": problem.problem,
        "expected_answer": problem.expected_answer,
        "problem_type": problem.problem_type,
        "problem_source": problem.source,
        "pass_rate_72b_tir": "n/a" if problem.pass_rate is None else str(float(problem.pass_rate)),
        KAGGLE: used if isinstance(used, bool) else None,
        UNATTRIBUTED: _is_unattributed(problem),
    }


def _line(name: str, row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row)
    except TypeError as error:  # half a surrogate pair
        raise UserError(f"{name} holds what is no Unicode text ({error})", remedy="remove that record") from error


def _write(rows: Iterable[dict[str, Any]], columns: tuple[str, ...], output: Path, source: Path) -> PublishedFiles:
    """Write the rows as files of Parquet. A row group ends by the number and the characters of its rows alone."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.bool_() if name in _FLAGS else pa.string()) for name in columns])
    files: list[Path] = []
    writer: Any = None
    number = arrow_bytes = 0
    types: dict[str, int] = {}
    try:
        for group in _groups(rows):
            if writer is None:
                files.append(output / f".train-{len(files):05d}")
                writer = parquet.ParquetWriter(files[-1], schema, compression="zstd", compression_level=3)
            table = pa.Table.from_pylist(group, schema)
            writer.write_table(table)
            number, arrow_bytes = number + len(group), arrow_bytes + table.nbytes
            for row in group:
                types[row["problem_type"] or ""] = types.get(row["problem_type"] or "", 0) + 1
            if files[-1].stat().st_size >= SHARD:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    if not number:
        raise UserError("there is no record in it", file=source, remedy="see why in its drops-*.jsonl")
    names = [output / f"train-{at:05d}-of-{len(files):05d}.parquet" for at in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.replace(name)
    return PublishedFiles(columns, number, arrow_bytes, tuple(names), dict(sorted(types.items())))


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size >= _GROUP_BYTES or len(group) >= _GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
