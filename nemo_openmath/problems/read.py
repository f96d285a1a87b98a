"""Bring in files: forum threads, problem sets and benchmarks, in the published formats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.pipeline import Result, StageContext, UnitStage, register
from nemo_openmath.pipeline.bounds import PositiveInt
from nemo_openmath.records import Drop, Problem, Thread, content_id
from nemo_openmath.records.foreign import read_rows

Row = tuple[Path, int, dict[str, Any] | str]


@dataclass(frozen=True)
class ReadConfig:
    """``max_chars``: longer posts and problems are dropped, and counted."""

    max_chars: PositiveInt = 100_000


class _Read(UnitStage[ReadConfig, Row]):
    """Rows of the files of port ``files``; broken ones are dropped with their file and row."""

    Config = ReadConfig
    ports = {"files": "JSON Lines (plain, .gz, .zst) or Parquet"}
    concurrency = 64

    def units(self, context: StageContext) -> Iterable[tuple[str, Row]]:
        bad: list[Row] = []
        for path in context.inputs["files"]:
            for file, row, value in read_rows(path, on_bad=lambda f, r, why: bad.append((f, r, why))):
                yield content_id("line", file.name, row), (file, row, value)
        for file, row, why in bad:
            yield content_id("line", file.name, row), (file, row, why)

    async def process(self, unit: Row, context: StageContext) -> Result:
        file, row, value = unit
        where = f"{file.name}:{row}"
        if isinstance(value, str):
            return Result(drops=[Drop("broken row", f"{where}: {value}")])
        return self.make(value, where)

    @abstractmethod
    def make(self, row: dict[str, Any], where: str) -> Result:
        """The record of one row, or why it is dropped."""


@register
class ReadThreads(_Read):
    """Raw forum rows: ``forum_post``, ``forum_discussions``."""

    kind = "problems.read_threads"
    record = Thread

    def make(self, row: dict[str, Any], where: str) -> Result:
        post, replies = row.get("forum_post"), row.get("forum_discussions", "")
        if not isinstance(post, str) or not isinstance(replies, str):
            return Result(drops=[Drop("no forum_post", where)])
        if not post.strip():
            return Result(drops=[Drop("empty post", where)])
        if len(post) > self.config.max_chars:
            return Result(drops=[Drop("post too long", f"{where}: {len(post)} characters")])
        return Result([Thread.make(post, replies[: self.config.max_chars])])


@register
class ReadProblems(_Read):
    """Problem rows: ``problem`` and, where known, ``expected_answer``; other fields travel along."""

    kind = "problems.read_problems"
    record = Problem

    def make(self, row: dict[str, Any], where: str) -> Result:
        text, answer = row.get("problem"), row.get("expected_answer")
        if not isinstance(text, str) or not text.strip():
            return Result(drops=[Drop("no problem", where)])
        if len(text) > self.config.max_chars:
            return Result(drops=[Drop("problem too long", f"{where}: {len(text)} characters")])
        extra = {
            k: v for k, v in row.items() if k not in ("problem", "expected_answer", "problem_type", "problem_source")
        }
        return Result(
            [
                Problem.make(
                    text,
                    expected_answer=None if answer is None else str(answer),
                    problem_type=row.get("problem_type"),
                    source=row.get("problem_source") or where.rsplit(":", 1)[0],
                    extra=extra,
                )
            ]
        )
