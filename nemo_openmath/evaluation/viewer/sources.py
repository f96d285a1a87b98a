"""Find the folders with solutions among what a user names, and the folders beside them that say more of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Group, Problem, Record
from nemo_openmath.core.records.store import part_files
from nemo_openmath.data.records.stored import RecordFolder

JUDGEMENTS = "judgements-*.jsonl"
"""Journals of a stage that judged (synthesis.judge.agreement)."""


@dataclass
class Sources:
    """What is read."""

    solutions: dict[str, RecordFolder] = field(default_factory=dict)
    """Label of a stage -> its folder."""
    problems: list[RecordFolder] = field(default_factory=list)
    groups: list[RecordFolder] = field(default_factory=list)
    judgements: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader has to know, such as stages that have not finished."""


def find_sources(paths: Sequence[Path]) -> Sources:
    """Return the sources at these paths: folders of runs, or of stages. Problems, groups and judgements are looked for
    in the whole run of a stage. Raises UserError where a path holds no solutions."""
    sources = Sources()
    named: list[tuple[Path, list[Path]]] = []
    for path in paths:
        if path.is_dir() and part_files(path):
            named.append((path.resolve().parent, [path]))
        else:
            named.append((path, _stages(path)))
    runs = list(dict.fromkeys(run.resolve() for run, _ in named))
    labels = _labels(runs)
    for run, stages in named:
        for stage in stages:
            folder = RecordFolder(stage)
            if folder.kind is Generation:
                label = f"{labels[run.resolve()]}{stage.resolve().name}"
                sources.solutions.setdefault(label, folder)
                if note := folder.note():
                    sources.notes.append(note)
            elif len(stages) == 1 and stage in paths:
                kind = folder.kind.__name__ if folder.kind is not None else "no"
                raise UserError(
                    f"holds {kind} records, no solutions",
                    file=stage,
                    remedy="openmath records show prints any record",
                )
    if not sources.solutions:
        raise UserError("holds no solutions", file=paths[0], remedy="name the --output of a run, or a stage of one")
    for run in runs:
        _add_beside(sources, run)
    return sources


def _stages(run: Path) -> list[Path]:
    if run.is_file():
        raise UserError("is a file", file=run, remedy="name the folder of a run, or of a stage")
    if not run.is_dir():
        raise UserError("no such folder", file=run, remedy="check the path")
    return [child for child in sorted(run.iterdir()) if child.is_dir() and part_files(child)]


def _labels(runs: Sequence[Path]) -> dict[Path, str]:
    """Return what stands in front of the names of each run's stages: nothing where there is one run, else its name,
    with a number where two runs have one name."""
    if len(runs) == 1:
        return {runs[0]: ""}
    labels: dict[Path, str] = {}
    for run in runs:
        name, number = f"{run.name}/", 1
        while name in labels.values():
            number += 1
            name = f"{run.name} {number}/"
        labels[run] = name
    return labels


def _add_beside(sources: Sources, run: Path) -> None:
    for stage in _stages(run):
        folder = RecordFolder(stage)
        kinds: dict[type[Record], list[RecordFolder]] = {Problem: sources.problems, Group: sources.groups}
        if (kind := folder.kind) in kinds:
            kinds[kind].append(folder)
        sources.judgements += sorted(stage.glob(JUDGEMENTS))
