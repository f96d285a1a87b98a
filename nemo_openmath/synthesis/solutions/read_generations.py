"""Read generations of the reference pipeline, at whichever of its steps a user changes over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.chat import load_template
from nemo_openmath.core.bounds import NonNegativeInt, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Generation, Mode, content_id
from nemo_openmath.core.records.readers import read_file_rows
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.output_files import GenerationFile, output_files
from nemo_openmath.synthesis.solutions.output_row import SolutionText, generation_of, problem_of_row, solution_of


@dataclass(frozen=True)
class ReadGenerationsConfig:
    """Settings of ``solutions.read_generations``."""

    model: str = ""
    """Name of the model that wrote them, for reports and filters. Needed: the rows do not say it."""
    mode: Literal["auto", "cot", "tir", "genselect"] = "auto"
    """How they were made. ``auto``: each row says it, by its fields and its text."""
    budget: PositiveInt = 8
    """Executions that a solution with code was allowed, where neither its row nor its notices say it. 8 is the
    reference's limit."""
    chunks: NonNegativeInt = 0
    """Into how many chunks each seed was divided: a seed whose chunks are done but not joined yet is whole then. 0:
    not known."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """What is done about seeds that are not finished: refuse them by name, or read what is there and count it."""
    skip_broken: bool = False
    """Drop and count the rows that cannot be read. Otherwise the first one ends the stage."""
    cot_prompt: Path | None = None
    """A template file of the prompt that was asked in CoT mode. null: the shipped one."""
    tir_prompt: Path | None = None
    """A template file of the prompt that a student of these solutions is to be asked in TIR mode. null: the shipped
    one."""
    genselect_prompt: Path | None = None
    """A template file of the prompt that comparisons were asked with. null: the shipped one."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a file, and what it is."""

    where: str
    fields: dict[str, Any]
    seed: int | None
    solution: SolutionText | str
    """Or why there is none."""


class ReadGenerations(UnitStage[ReadGenerationsConfig, _Row]):
    """Read files of generations of the reference pipeline (output_files.py, output_row.py).

    The same solution in several files (a chunk and the joined file, two steps of the pipeline) is read once: its seed,
    problem and text say which it is. Of two steps the one that says more of it counts: judged rows before compared
    ones, and these before bare ones. The order in which files and folders are named changes nothing.

    Rows that expect another answer of a problem than an earlier row did are read as they are, counted
    (``answers_differ``), and the first of them is named: two sets may be mixed.
    """

    kind = "solutions.read_generations"
    version = 3  # counts such as 2.0 are counts; outputs that were not executed are the model's
    Config = ReadGenerationsConfig
    ports = {"files": "folders of output-rs*.jsonl of the reference pipeline, or files of such rows"}
    record = Generation
    concurrency = 64

    def __init__(self, config: ReadGenerationsConfig):
        super().__init__(config)
        if not config.model:
            raise UserError("model: not set", remedy="name the model that wrote these solutions")
        prompts = {Mode.COT: config.cot_prompt, Mode.TIR: config.tir_prompt, Mode.GENSELECT: config.genselect_prompt}
        self._templates = {mode: load_template(str(mode), path) for mode, path in prompts.items()}
        self._mode = None if config.mode == "auto" else Mode(config.mode)

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for path in inputs.get("files", ()):
            self.files(path)

    def files(self, path: Path) -> list[GenerationFile]:
        """Return the files to read at a path. Raises UserError where a seed is not finished, and is to be."""
        files, _ = self._files(path)
        return files

    def problem(self, row: dict[str, Any]) -> str | None:
        """Return what is wrong with a row, in words that name the field; None where nothing is."""
        return problem_of_row(row, self._mode)

    def _files(self, path: Path) -> tuple[list[GenerationFile], list[str]]:
        return output_files(path, chunks=self.config.chunks or None, unfinished=self.config.unfinished == "read")

    async def prepare(self, context: StageContext) -> None:
        files: dict[Path, GenerationFile] = {}
        for path in context.paths("files"):
            part, problems = self._files(Path(os.path.abspath(path)))
            files |= {file.path: file for file in part}
            if problems:
                context.metrics["unfinished_seeds"] = context.metrics.get("unfinished_seeds", 0) + len(problems)
                context.progress.log(f"{path}: not finished, read as far as it goes: {'; '.join(problems[:8])}")
        root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
        ordered = sorted(files.values(), key=lambda file: (_says_less(file.path), str(file.path)))
        self._inputs = [(os.path.relpath(file.path, root), file) for file in ordered]

    def units(self, context: StageContext) -> Iterable[tuple[str, _Row]]:
        rows = 0
        expected = _ExpectedAnswers(context)
        for name, file in self._inputs:
            for row, fields in self._rows(file):
                rows += 1
                where = f"{name}:{row}"
                if isinstance(fields, str):
                    yield content_id("line", name, row), _Row(where, {}, file.seed, fields)
                    continue
                expected.see(fields, where)
                solution = solution_of(fields, self._mode)
                if isinstance(solution, str):
                    key = content_id("no generation", file.seed, fields["problem"], fields.get("error"))
                else:
                    key = solution.id_of(self.config.model, file.seed)
                yield key, _Row(where, fields, file.seed, solution)
        if not rows:
            paths = ", ".join(str(path) for path in context.paths("files"))
            raise UserError("there is no row in it", file=paths, remedy="give files with one 'generation' a row")

    async def process(self, unit: _Row, context: StageContext) -> Result:
        if isinstance(unit.solution, str):
            detail = str(unit.fields.get("error") or "")[:300]
            return Result(drops=[Drop(unit.solution, f"{unit.where}: {detail}" if detail else unit.where)])
        config, metrics = self.config, context.metrics
        generation = generation_of(
            unit.fields, unit.solution, self._templates, model=config.model, seed=unit.seed, budget=config.budget
        )
        if isinstance(generation, str):
            return Result(drops=[Drop(generation, unit.where)])
        foreign = generation.extra["foreign"]
        for name, counted in (
            ("finish_assumed", "finish" in foreign),
            ("foreign_verdicts", generation.verdict is not None),
            ("fences_rewritten", "tool_format" in foreign),
        ):
            metrics[name] = metrics.get(name, 0) + counted
        foreign["from"] = unit.where
        return Result([generation])

    def _rows(self, file: GenerationFile) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Yield (row, fields, or why it is dropped) of a file. Raises UserError for a broken row, unless they are
        skipped; the last line of an unfinished file may be cut off."""
        bad: list[tuple[int, str]] = []
        for _, row, fields in read_file_rows(file.path, lambda _, row, why: bad.append((row, why))):
            yield from self._broken(file, bad)
            if (problem := self.problem(fields)) is None:
                yield row, fields
            else:
                bad.append((row, problem))
                yield from self._broken(file, bad)
        if bad and not file.whole and not _ends_in_newline(file.path):
            torn, _ = bad.pop()
            yield from self._broken(file, bad)
            yield torn, "torn last line"
        yield from self._broken(file, bad)

    def _broken(self, file: GenerationFile, bad: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        for row, problem in bad:
            if not self.config.skip_broken:
                raise UserError(
                    problem, file=file.path, row=row, remedy="mend or delete it; skip_broken: true leaves it out"
                )
            yield row, "broken row"
        bad.clear()


class _ExpectedAnswers:
    """The answer that each problem was first seen with, by hashes: 0.1 kB a problem."""

    def __init__(self, context: StageContext):
        self._first: dict[int, int] = {}
        self._context = context

    def see(self, fields: Mapping[str, Any], where: str) -> None:
        """Count a row that expects another answer than the first row of its problem, and name the first such row."""
        answer = fields.get("expected_answer")
        if self._context.shard or answer is None:  # every job of an array reads all rows: the first one counts
            return
        if self._first.setdefault(hash(fields["problem"]), hash(str(answer))) == hash(str(answer)):
            return
        metrics = self._context.metrics
        if not metrics.get("answers_differ"):
            self._context.progress.log(
                f"{where}: it expects {str(answer)[:80]!r}, an earlier row of the same problem something else; "
                f"such rows are counted (answers_differ): are two sets mixed?"
            )
        metrics["answers_differ"] = metrics.get("answers_differ", 0) + 1


_LOOKED_AT = 20  # rows of a file that show what it says of solutions


def _says_less(file: Path) -> int:
    """Return 0 for a file whose rows are judged, 1 for one whose answers were compared, 2 for another one."""
    rows = [row for _, _, row in islice(read_file_rows(file, lambda *_: None), _LOOKED_AT)]
    if any(row.get("judgement") for row in rows):
        return 0
    return (
        1 if any(isinstance(row.get(name), bool) for row in rows for name in ("symbolic_correct", "is_correct")) else 2
    )


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        if not stream.tell():
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
