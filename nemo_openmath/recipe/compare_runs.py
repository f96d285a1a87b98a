"""``openmath evaluate compare``: what the names of the command line stand for, and what graded it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Mode, read_manifest
from nemo_openmath.core.records.manifest import Manifest, refuse_inside_stage
from nemo_openmath.core.records.store import part_files
from nemo_openmath.evaluation.comparison.build import JSON, PAGE, TEXT, compare_runs, write_comparison
from nemo_openmath.evaluation.comparison.page import RunComparison, difference_rows, title_of
from nemo_openmath.evaluation.comparison.reading import NamedFolders
from nemo_openmath.grading import GradingPool
from nemo_openmath.recipe.rescore import GenerationSet, generation_sets, measured_sets

_MEASURING = ("evaluation.metrics", "evaluation.changes")
_ROWS = "openmath evaluate rescore {} --output DIR, and compare that folder"


@dataclass(frozen=True)
class CompareRequest:
    """What the command line says."""

    runs: Sequence[str]
    """``DIR`` or ``NAME=DIR``."""
    output: Path
    modes: Sequence[Mode] | None = None
    viewer: str = ""
    workers: int = 1
    seed: int = 0


def compare(request: CompareRequest) -> None:
    """Compare runs, write the page, and print the differences."""
    refuse_inside_stage(request.output)
    refuse_foreign_folder(request.output, "the folder of a comparison", [JSON])
    named = named_runs(request.runs)
    with _writable(request.output):
        comparison = _compared(named, request)
        write_comparison(comparison, request.output)
    _print(Console(), comparison, request.output)


@contextlib.contextmanager
def _writable(output: Path) -> Iterator[None]:
    """Make the folder, so that what cannot be written is known before the work; it goes again where the work fails."""
    was_there = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                output.rmdir()
        raise


def _compared(named: Sequence[NamedFolders], request: CompareRequest) -> RunComparison:
    with closing(GradingPool(request.workers)) as pool, Progress("compare") as progress:
        progress.begin(2 * sum(map(_records_in, _folders(named))))
        comparison = compare_runs(
            named,
            modes=request.modes,
            seed=request.seed,
            compare=pool.compare,
            advance=progress.advance,
            viewer=request.viewer,
            view_command=_view_command(named, request.viewer),
        )
        comparison.notes.extend(_versions(named))
    return comparison


def named_runs(texts: Sequence[str]) -> list[NamedFolders]:
    """Return what ``DIR`` and ``NAME=DIR`` stand for, each under a name of its own. Raises UserError where one is no
    run, or is named twice."""
    paths = [_named(text) for text in texts]
    for _, path in paths:
        if path.is_file():
            raise UserError("is a file of rows", file=path, remedy=_ROWS.format(path))
    for number, (_, path) in enumerate(paths):
        if path.resolve() in [other.resolve() for _, other in paths[:number]]:
            raise UserError("named twice", file=path, remedy="name two different runs")
    plain = [name or _name_of(path) for name, path in paths]
    names = [
        name if given or plain.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        for name, (given, path) in zip(plain, paths, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs are called {name}", remedy="name them: first=DIR second=DIR")
    return [_folders_of(name, path) for name, (_, path) in zip(names, paths, strict=True)]


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    return ("", Path(text)) if Path(text).exists() or not sign else (name, Path(path))


def _name_of(path: Path) -> str:
    """Return the name of a run's folder, or that of a stage behind its run's."""
    whole = path.resolve()
    return f"{whole.parent.name}/{whole.name}" if part_files(path) or read_manifest(path) else whole.name


def _folders_of(name: str, path: Path) -> NamedFolders:
    parts: dict[str, tuple[Path, ...]] = {}
    for group in _sets(path):
        for folder in group.folders:
            if not part_files(folder):
                raise UserError("holds rows of others", file=folder, remedy=_ROWS.format(folder))
        parts[group.label] = tuple(dict.fromkeys([*parts.get(group.label, ()), *group.folders]))
    manifests = {folder: read_manifest(folder) for folders in parts.values() for folder in folders}
    return NamedFolders(
        name,
        parts,
        frozenset(f for f, manifest in manifests.items() if manifest and manifest.stage == "competition.solve"),
        {f: grader for f, manifest in manifests.items() if manifest and (grader := grader_of(f, manifest))},
    )


def _sets(path: Path) -> list[GenerationSet]:
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None and manifest.stage in _MEASURING:
        return [group for group in measured_sets(path.parent) if group.name == path.resolve().name]
    return generation_sets([path])


def grader_of(folder: Path, manifest: Manifest) -> str:
    """Return what graded the generations of a stage, in words that are equal where it was done alike; "" where its
    manifest does not say."""
    config = manifest.config
    if manifest.stage == "competition.solve":
        return "the grader"
    if manifest.stage == "solutions.grade":
        return "the grader" + (", phrases for boxes" if config.get("fallback") else "")
    if manifest.stage == "judging.judge":
        how = ", ".join(str(engine) for engine in (config.get("engine"), *config.get("more_engines", ())))
        words = [f"{config.get('votes', 1)} votes"]
        words += [name for name in ("everything", "overrule") if config.get(name)]
        return f"{_before(folder, manifest) or 'the grader'}, and judges where it is silent ({how}; {', '.join(words)})"
    if manifest.stage == "evaluation.rescore":
        words = ["the grader" if config.get("grader") == "openmath" else "equal texts"]
        words += [f"modulo {config['take_modulo']}"] if config.get("take_modulo") else []
        words += ["answers as stored"] if config.get("answers") == "stored" else []
        words += ["phrases for boxes"] if config.get("fallback") else []
        words += ["unfinished answers, too"] if config.get("unfinished_answers") else []
        judged = config.get("judged")
        if judged != "none" and any(m.stage == "judging.judge" for _, m in _inputs(folder, manifest)):
            words.append(f"judges ({judged})")
        return ", ".join(words)
    return ""


def _before(folder: Path, manifest: Manifest) -> str:
    return next((grader_of(path, m) for path, m in _inputs(folder, manifest) if m.stage == "solutions.grade"), "")


def _inputs(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    for name in manifest.inputs:
        path = folder.parent / name  # an absolute path stays what it is
        if path.is_dir() and (made := read_manifest(path)) is not None:
            yield path, made


def _folders(named: Sequence[NamedFolders]) -> list[Path]:
    return [folder for run in named for folders in run.parts.values() for folder in folders]


def _records_in(folder: Path) -> int:
    manifest = read_manifest(folder)
    return manifest.counts.get("records", 0) if manifest is not None else 0


def _versions(named: Sequence[NamedFolders]) -> list[str]:
    """Return a sentence where two versions of this package graded."""
    versions = {m.versions.get("nemo-openmath") for f in _folders(named) if (m := read_manifest(f)) is not None}
    if len(known := sorted(version for version in versions if version)) < 2:
        return []
    return [f"Graded by versions {' and '.join(known)} of this package: openmath evaluate rescore gives both one."]


def _view_command(named: Sequence[NamedFolders], viewer: str) -> str:
    """Return the command that serves the pages of the solutions at the address, from any folder of this machine: the
    page may lie anywhere. "" where there is no address."""
    if not viewer:
        return ""
    runs = dict.fromkeys(_shown(run, folder) for run in named for folders in run.parts.values() for folder in folders)
    port = viewer.rstrip("/").rpartition(":")[2]
    words = ["openmath", "view", *map(str, runs), *(["--port", port] if port.isdigit() else [])]
    return " ".join(shlex.quote(word) for word in words)


def _shown(run: NamedFolders, folder: Path) -> Path:
    folder = folder.resolve()
    return folder.parent if any(folder.parent.glob("*/manifest.json")) else folder


def _print(console: Console, comparison: RunComparison, output: Path) -> None:
    for run in comparison.runs:
        console.print(f"{run.letter}  {run.name}", soft_wrap=True, highlight=False, markup=False)
    for numbers in comparison.modes:
        console.print(f"{title_of(numbers)}: {numbers.problems:,} common problems", highlight=False, markup=False)
        for row in difference_rows(numbers):
            line = f"  {row['name']}: {row['before']}, {row['after']}: {row['value']} ({row['range']}), {row['word']}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print(f"  problems whose verdict differs: {len(numbers.differing):,}", highlight=False)
    for note in comparison.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{output / PAGE}: the page ({TEXT}, {JSON} beside it)", soft_wrap=True, highlight=False, markup=False
    )
