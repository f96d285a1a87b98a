"""Make the index of solutions in one pass over the records' lines. Transcripts are not read, but for problems whose
text stands nowhere else."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records.encoding import again
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.data.records.shown import transcript_of
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.viewer.index import COLUMNS, FINISHES, MODES, UNGRADED, VERDICTS, Places, SolutionIndex
from nemo_openmath.evaluation.viewer.problems import SearchedProblems
from nemo_openmath.evaluation.viewer.sources import Sources

_EVERY = 4096  # lines between steps of the progress
_CODES = {np.uint64: "Q", np.int64: "q", np.int32: "i", np.uint16: "H", np.uint8: "B"}
_MODE = {name: number for number, name in enumerate(MODES)}
_FINISH = {name: number for number, name in enumerate(FINISHES)}
_VERDICT = {name: number for number, name in enumerate(VERDICTS)}


def build_index(sources: Sources, progress: Progress | None = None) -> SolutionIndex:
    """Return the index of the solutions of some folders. Raises UserError naming file and row of what is no record."""
    return _IndexBuilder(sources, progress or Progress("index")).build()


class _IndexBuilder:
    def __init__(self, sources: Sources, progress: Progress):
        self.sources, self.progress = sources, progress
        self.files: list[Path] = []
        self.problems = SearchedProblems()
        self.columns = {name: array(_CODES[kind]) for name, kind in COLUMNS.items()}
        self.chosen: list[tuple[int, int]] = []

    def build(self) -> SolutionIndex:
        folders = list(self.sources.solutions.values())
        self.progress.begin(sum(part.stat().st_size for folder in folders for part in folder.parts) >> 20)
        for stage, folder in enumerate(folders):
            self._add_stage(stage, folder)
        self._read_problems()
        index = SolutionIndex(
            stages=list(self.sources.solutions),
            files=self.files,
            columns={name: np.frombuffer(values, COLUMNS[name]) for name, values in self.columns.items()},
            problems=self.problems,
            chosen=np.array(sorted(self.chosen), np.uint64).reshape(-1, 2),
            groups=self._places((file, offset, line) for f in self.sources.groups for file, _, offset, line in _at(f)),
            judgements=self._places(_journal_lines(self.sources.judgements), "unit"),
            notes=list(self.sources.notes),
        )
        self._read_prompts(index)
        self.problems.close()
        return index

    def _file(self, path: Path) -> int:
        if not self.files or self.files[-1] != path:
            self.files.append(path)
        return len(self.files) - 1

    def _add_stage(self, stage: int, folder: RecordFolder) -> None:
        size = 0
        for counted, (file, row, offset, line) in enumerate(_at(folder), 1):
            self._add(stage, file, row, offset, line)
            size += len(line)
            if counted % _EVERY == 0:
                self.progress.advance(size >> 20, note="MB")
                size &= (1 << 20) - 1
        self.progress.advance(size >> 20)

    def _add(self, stage: int, file: Path, row: int, offset: int, line: bytes) -> None:
        try:
            record: dict[str, Any] = orjson.loads(line)
            verdict = record.get("verdict")
            chosen = record["extra"].get("chosen") if record.get("extra") else None
            values = (
                unit_key(record["id"]),
                offset,
                len(line),
                self._file(file),
                row,
                self.problems.add(record["problem_id"]),
                stage,
                _MODE[record["mode"]],
                _FINISH[record["finish"]],
                _VERDICT[UNGRADED if verdict is None else verdict],
                record.get("completion_tokens", 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is no solution ({type(error).__name__}: {error})"
            raise UserError(problem, file=file, row=row, remedy=again(file)) from error
        if isinstance(chosen, str):
            self.chosen.append((unit_key(chosen), len(self.columns["key"])))
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def _read_problems(self) -> None:
        """Take the texts of the problems of the solutions; others are left out."""
        lacking = set(self.problems.lacking())
        for folder in self.sources.problems:
            if not lacking:
                return
            for file, row, line in folder.lines():
                try:
                    record = orjson.loads(line)
                    number = self.problems.number(record["id"])
                    if number is not None and number in lacking:
                        self.problems.set_text(number, record["problem"])
                        lacking.discard(number)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"is no problem ({error!r})", file=file, row=row, remedy=again(file)) from error

    def _read_prompts(self, index: SolutionIndex) -> None:
        """Where no record has a problem's text, the last message of a prompt stands for it."""
        lacking = self.problems.lacking()
        if not lacking:
            return
        firsts = dict(zip(*np.unique(index.columns["problem"], return_index=True), strict=True))
        for number in lacking:
            transcript = transcript_of(index.record(int(firsts[number])))
            if transcript is not None and transcript.messages:
                self.problems.set_text(number, transcript.messages[-1].content)
                index.from_prompts += 1

    def _places(self, lines: Iterator[tuple[Path, int, bytes]], field: str = "id") -> Places:
        places: list[tuple[int, int, int, int]] = []
        for file, offset, line in lines:
            try:
                places.append((unit_key(orjson.loads(line)[field]), self._file(file), offset, len(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a torn line of a journal; what is no group is said where it is shown
        places.sort()
        keys, files, offsets, sizes = (list(values) for values in zip(*places, strict=True)) if places else ([],) * 4
        return Places(np.array(keys, np.uint64), np.array(files, np.int32), np.array(offsets), np.array(sizes))


def _at(folder: RecordFolder) -> Iterator[tuple[Path, int, int, bytes]]:
    """Yield (file, row, offset, line) of a folder."""
    last, offset = None, 0
    for file, row, line in folder.lines():
        if file != last:
            last, offset = file, 0
        yield file, row, offset, line
        offset += len(line)


def _journal_lines(files: list[Path]) -> Iterator[tuple[Path, int, bytes]]:
    for file in files:
        offset = 0
        with file.open("rb") as lines:
            for line in lines:
                yield file, offset, line
                offset += len(line)
