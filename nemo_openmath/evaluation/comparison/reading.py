"""Read what a comparison needs of the generations of a run, in one pass over their lines, without their transcripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.sums import digest_of_lines
from nemo_openmath.core.records.types import UNTRIED
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.reports.formats import mode_name
from nemo_openmath.grading import majority


@dataclass(frozen=True, slots=True)
class NamedFolders:
    """Generations that one name of the command line stands for."""

    name: str
    parts: Mapping[str, tuple[Path, ...]]
    """Label of an evaluation (a benchmark or a checkpoint) -> the folders of its graded generations."""
    submissions: frozenset[Path] = frozenset()
    """Folders of contests: only what was submitted is compared, for attempts were cancelled when enough agreed."""
    graders: Mapping[Path, str] = field(default_factory=dict)
    """Folder -> what graded it, where its manifest says so."""


@dataclass(frozen=True, slots=True)
class WrittenMode:
    """How solutions were made; of selections, how the solutions were made that they chose from, too."""

    mode: Mode
    chosen_from: Mode | None = None

    @classmethod
    def read(cls, mode: Mode, extra: dict[str, Any] | None) -> WrittenMode:
        """Return the mode of a generation by its ``extra``."""
        return cls(mode, Selection.mode_in(extra or {}) if mode is Mode.GENSELECT else None)

    @property
    def name(self) -> str:
        """Return its name for people."""
        return mode_name(self.mode) + (f" among {mode_name(self.chosen_from)}" if self.chosen_from else "")

    @property
    def order(self) -> tuple[int, int]:
        """Return its place in a page."""
        modes = list(Mode)
        return modes.index(self.mode), -1 if self.chosen_from is None else modes.index(self.chosen_from)


@dataclass(slots=True)
class ProblemSamples:
    """The samples of one problem in one mode."""

    first: str
    """Id of the first of them."""
    expected: str | None
    samples: int = 0
    untried: int = 0
    """Samples for which the model could not be asked: the problem is in no mean."""
    tokens: list[int] = field(default_factory=list)
    """Generated tokens of each sample that was tried."""


@dataclass(slots=True)
class ReadPart:
    """The generations under one label."""

    label: str
    folders: tuple[Path, ...]
    modes: dict[WrittenMode, dict[str, ProblemSamples]] = field(default_factory=dict)
    """Mode -> problem -> its samples."""
    models: dict[str, None] = field(default_factory=dict)

    @property
    def problems(self) -> set[str]:
        """Ids of all problems."""
        return {problem for mode in self.modes.values() for problem in mode}


@dataclass(slots=True, eq=False)
class ReadRun:
    """One of the runs that are compared: a model on one or several benchmarks."""

    name: str
    parts: list[ReadPart]
    submissions: frozenset[Path]
    graders: dict[Path, str]
    letter: str = ""
    """By which tables and pictures name it."""

    @property
    def folders(self) -> list[Path]:
        return [folder for part in self.parts for folder in part.folders]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for part in self.parts for model in part.models))

    def samples(self, mode: WrittenMode, problems: set[str] | None = None) -> dict[str, ProblemSamples]:
        """Return problem -> samples in a mode; of ``problems`` alone where they are given."""
        of_run: dict[str, ProblemSamples] = {}
        for part in self.parts:
            of_mode = part.modes.get(mode, {})
            of_run |= {i: s for i, s in of_mode.items() if problems is None or i in problems}
        return of_run

    def generations(self, mode: WrittenMode, problems: set[str]) -> Iterator[Generation]:
        """Yield the generations of a mode and of these problems, each id once."""
        for part in self.parts:
            if not problems.isdisjoint(part.modes.get(mode, ())):
                for generation in read_merged(part.folders, Generation, majority):
                    is_of_mode = WrittenMode.read(generation.mode, generation.extra) == mode
                    if is_of_mode and generation.problem_id in problems:
                        yield generation


def read_runs(named: NamedFolders, advance: Callable[[int], None]) -> list[ReadRun]:
    """Return the runs that a name stands for: one where its evaluations are of different problems (one model on several
    benchmarks), else one for each of its labels (several checkpoints on one benchmark).

    ``advance`` is called with numbers of generations. Raises UserError naming file and row of what is no graded
    generation, or the folder of a stage that has not finished.
    """
    parts = [_read_part(label, folders, named, advance) for label, folders in named.parts.items()]
    seen: set[str] = set()
    apart = True
    for part in parts:
        apart &= seen.isdisjoint(part.problems)
        seen |= part.problems
    graders = dict(named.graders)
    if apart:
        return [ReadRun(named.name, parts, named.submissions, graders)]
    return [ReadRun(f"{named.name}: {part.label}", [part], named.submissions, graders) for part in parts]


def _read_part(label: str, folders: Sequence[Path], named: NamedFolders, advance: Callable[[int], None]) -> ReadPart:
    part = ReadPart(label, tuple(folders))
    seen: set[str] = set()
    for path in folders:
        folder = RecordFolder(path)
        if folder.unfinished:
            raise UserError("its stage has not finished", file=path, remedy="run it to its end, then compare")
        digest = digest_of_lines(_read_lines(part, folder, seen, path in named.submissions, advance))
        if folder.manifest is not None and digest != folder.manifest.digest:
            raise DamagedFile(
                path, "is not what its stage wrote", "see openmath records check, and run the stage again"
            )
    return part


def _read_lines(
    part: ReadPart, folder: RecordFolder, seen: set[str], submitted_only: bool, advance: Callable[[int], None]
) -> Iterator[bytes]:
    """Note what the records of a folder say, and yield their lines."""
    for number, record in enumerate(folder.records(), 1):
        if number % 1024 == 0:
            advance(1024)
        yield record.line
        if record.id in seen:  # one record, wherever it comes from twice
            continue
        seen.add(record.id)
        try:
            if submitted_only and record.fields["mode"] != Mode.COMPETITION:
                continue
            _add(part, record.fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise record.error(f"is no generation ({type(error).__name__}: {error})") from error


def _add(part: ReadPart, values: dict[str, Any]) -> None:
    mode, finish = WrittenMode.read(Mode(values["mode"]), values.get("extra")), Finish(values["finish"])
    part.models[str(values.get("model", ""))] = None
    of_mode = part.modes.setdefault(mode, {})
    of_problem = of_mode.setdefault(values["problem_id"], ProblemSamples(values["id"], values.get("expected_answer")))
    of_problem.samples += 1
    if finish in UNTRIED:
        of_problem.untried += 1
    else:
        of_problem.tokens.append(int(values.get("completion_tokens", 0)))
