"""Read files of others, row by row: what all of them have in common, and problem sets. threads.py reads threads."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Problem, content_id, exact_json
from nemo_openmath.core.records.readers import BrokenRows, data_files, name_of, read_rows
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.data.rows.formatting import pass_rate_of
from nemo_openmath.synthesis.solutions.output_row import OF_GENERATIONS

FORUM = "problem_source"  # of a thread: the forum that it stands in
C = TypeVar("C", bound="ReadFilesConfig")
Row = tuple[str, dict[str, Any] | str]
"""Where a row stands, and its fields or what is wrong with it."""
_RATE = "pass_rate_72b_tir"  # as published


@dataclass(frozen=True)
class ReadFilesConfig:
    """Settings of ``problems.read_problems``."""

    max_chars: PositiveInt = 100_000
    """Problems of more characters are dropped and counted."""
    skip_broken: bool = False
    """Drop and count the rows that cannot be read. Otherwise the input is refused: the message names the first such row
    and says how many there are."""


class ReadFiles(UnitStage[C, Row], Generic[C]):
    """Read the rows of the files of port ``files``. All rows are checked before the first is stored."""

    ports = {"files": "files or folders: JSON Lines, JSON, CSV (each also .gz, .zst) or Parquet"}
    concurrency = 64
    column: str
    """The column that every row must have."""

    async def prepare(self, context: StageContext) -> None:
        broken = BrokenRows(skip=self.config.skip_broken)
        for file, (_, _, value) in self._rows(context):
            if problem := value if isinstance(value, str) else self.problem(value):
                broken(*file, problem)
            else:
                broken.good += 1
        if not (broken.good or broken.count):
            paths = ", ".join(str(path) for path in context.paths("files"))
            raise UserError("there is no row in it", file=paths, remedy=f"give a file with one {self.column!r} a row")
        broken.refuse()

    def units(self, context: StageContext) -> Iterable[tuple[str, Row]]:
        for _, (name, row, value) in self._rows(context):
            yield self.key(name, row, value), (f"{name}:{row}", value)

    def key(self, name: str, row: int, value: dict[str, Any] | str) -> str:
        """Return the id of the unit of a row."""
        return content_id("line", name, row)

    def _rows(self, context: StageContext) -> Iterator[tuple[tuple[Path, int], tuple[str, int, dict[str, Any] | str]]]:
        """Yield ((file, row), (name, row, fields)) of every row of all inputs.

        ``name`` is the file's path below the folder that all inputs have in common. So it is the same on every machine
        and in every order of the inputs, and differs between files.
        """
        inputs = [Path(os.path.abspath(path)) for path in context.paths("files")]
        root = os.path.commonpath([path if path.is_dir() else path.parent for path in inputs])
        for path in inputs:
            for file in data_files(path):
                name = os.path.relpath(file, root)
                for row, value in _in_order(file):
                    yield (file, row), (name, row, value)

    async def process(self, unit: Row, context: StageContext) -> Result:
        where, value = unit
        if problem := value if isinstance(value, str) else self.problem(value):
            return Result(drops=[Drop("broken row", f"{where}: {problem}")])
        assert isinstance(value, dict)
        return self.make(value, where)

    def problem(self, row: dict[str, Any]) -> str | None:
        """Return what is wrong with a row, in words that name the field; None where nothing is."""
        if self.column not in row:
            return f"no {self.column!r}; the row has {', '.join(map(repr, list(row)[:12])) or 'no fields'}"
        value = row[self.column]
        return None if isinstance(value, str) else f"{self.column!r} is {name_of(value)}, not a text"

    @abstractmethod
    def make(self, row: dict[str, Any], where: str) -> Result:
        """Return the record of one row, or why it is dropped."""


class ReadProblems(ReadFiles[ReadFilesConfig]):
    """Read problem rows: ``problem`` and, where known, ``expected_answer``. Other fields travel along in ``extra``.
    ``pass_rate_72b_tir`` is the problem's pass rate (``count: hardness`` of rollouts).

    Rows of any step of the reference pipeline are such rows. Of its generations (``output-rs*.jsonl``) the problems are
    read: equal ones of all seeds once, without what is said of one generation. Rows that its decontamination marked
    (``contaminated: true``) are dropped.
    """

    kind = "problems.read_problems"
    version = 3  # 2: of generations their problems alone; marked rows are dropped. 3: pass rates
    record = Problem
    Config = ReadFilesConfig
    column = "problem"

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        values = (value for _, (_, _, value) in islice(self._rows(context), 1000))
        rows = [value for value in values if isinstance(value, dict)]
        if not any("expected_answer" in row for row in rows) and any("answer" in row for row in rows):
            context.progress.log("no row has expected_answer, so no answer is known; `answer` is not read: rename it")

    def problem(self, row: dict[str, Any]) -> str | None:
        answer = row.get("expected_answer")
        if answer is not None and (isinstance(answer, bool) or not isinstance(answer, str | int | float)):
            return f"'expected_answer' is {name_of(answer)}; write it as a text"
        for name in ("problem_type", "problem_source"):
            if row.get(name) is not None and not isinstance(row[name], str):
                return f"{name!r} is {name_of(row[name])}, not a text"
        rate = row.get(_RATE)
        if rate not in (None, "", "n/a") and rate == rate and pass_rate_of(rate) is None:  # NaN: pandas' nothing
            return f"{_RATE!r} is {rate!r}, neither a share from 0 to 1 nor n/a"
        if isinstance(text := row.get("problem"), str) and not text.strip():
            return "'problem' is empty"
        return super().problem(row)

    def key(self, name: str, row: int, value: dict[str, Any] | str) -> str:
        if isinstance(value, dict) and "generation" in value and self.problem(value) is None:
            fields = dict(sorted(_without_generation(value).items()))
            return content_id("problem row", exact_json.dumps(fields).decode())
        return super().key(name, row, value)

    def make(self, row: dict[str, Any], where: str) -> Result:
        row = _without_generation(row) if "generation" in row else row
        text, answer = row["problem"], row.get("expected_answer")
        if row.get("contaminated") is True:
            return Result(drops=[Drop("marked as contaminated", where)])
        if len(text) > self.config.max_chars:
            return Result(drops=[Drop("problem too long", f"{where}: {len(text)} characters")])
        known = ("problem", "expected_answer", "problem_type", "problem_source")
        return Result(
            [
                Problem.make(
                    text,
                    expected_answer=None if answer is None or not str(answer).strip() else str(answer),
                    problem_type=row.get("problem_type"),
                    source=row.get("problem_source") or where.rsplit(":", 1)[0],
                    pass_rate=pass_rate_of(row.get(_RATE)),
                    extra={name: value for name, value in row.items() if name not in known},
                )
            ]
        )


def _without_generation(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OF_GENERATIONS}


def _in_order(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (row, fields or what is wrong with it) of a file, in its order."""
    bad: list[tuple[int, str]] = []
    for _, row, value in read_rows(file, on_bad=lambda _, row, why: bad.append((row, why)), empty=True):
        yield from bad
        bad.clear()
        yield row, value
    yield from bad
