"""The stages of a run as they lie in its folder, and what each was made from.

What a finished stage reads stands in its manifest, with digests. What an unfinished one reads stands in the recipe
alone. Inputs that lie in the folder of another run are followed there, by its manifests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records.manifest import MANIFEST, PLAN, Manifest, read_manifest
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry

_REMEDY = "give the --output folder of recipe run or generate"


@dataclass(frozen=True, slots=True)
class StageInput:
    """What a stage reads: another stage, or a file or folder that no stage of the run makes."""

    name: str
    """The stage's name, or the path as the recipe writes it; ``teacher`` is the recipe's teacher."""
    path: Path | None
    """None of the teacher."""
    digest: str | None = None
    """What the reader's manifest says of it; None where the reader has not finished."""
    port: str = ""
    """The input's name at its reader, ``engine`` of a model that answers; empty where only the recipe knew it."""


@dataclass(frozen=True, slots=True)
class RunStage:
    """A stage as it lies on disk."""

    name: str
    """Of a stage in the folder of another run, that folder and its name."""
    folder: Path
    kind: str
    """Empty where the stage has not finished and no recipe says it."""
    manifest: Manifest | None
    inputs: tuple[StageInput, ...]
    own: bool = True
    """Whether it lies in the run's own folder."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the recipe has for it."""

    @property
    def begun(self) -> bool:
        """Whether it has a folder."""
        return self.folder.is_dir()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it was made with; where it has not finished, those of the recipe."""
        return self.manifest.config if self.manifest is not None else self.asked

    def reads(self, stage: RunStage) -> bool:
        """Return whether another stage is an input of this one."""
        return any(source.path == stage.folder for source in self.inputs)


class RunStages:
    """The stages of a run, each behind those that it reads.

    ``recipe``: where it is known; without it, only what lies in the folder is known. Raises UserError where the folder
    holds no run.
    """

    def __init__(self, output: Path, recipe: Recipe | None = None):
        self.output = output.resolve()
        self._recipe = recipe
        names = list(recipe.stages) if recipe is not None else []
        names += [name for name in _stage_names(output) if name not in names]
        if not names:
            remedy = f"this is a stage; name its run: {output.parent}" if _is_stage(output) else _REMEDY
            raise UserError("no run here" if output.is_dir() else "no such folder", file=output, remedy=remedy)
        stages = {stage.folder: stage for stage in map(self._own, names)}
        todo = list(stages.values())
        while todo:
            for source in todo.pop().inputs:
                if source.path is not None and source.path not in stages and _is_stage(source.path):
                    stages[source.path] = _foreign(source.path, {stage.name for stage in stages.values()})
                    todo.append(stages[source.path])
        self.stages: list[RunStage] = list(_sorted(stages.values()))
        self._by_folder = {stage.folder: stage for stage in self.stages}

    def __iter__(self) -> Iterator[RunStage]:
        return iter(self.stages)

    def gone(self) -> dict[str, list[str]]:
        """Return what stages were made from and that is not there any more: its name -> its readers."""
        gone: dict[str, list[str]] = {}
        for stage in self.stages:
            for source in stage.inputs:
                if stage.manifest is not None and source.path is not None and not source.path.exists():
                    gone.setdefault(source.name, []).append(stage.name)
        return gone

    def at(self, folder: Path | None) -> RunStage | None:
        """Return the stage whose folder this is."""
        return None if folder is None else self._by_folder.get(folder)

    def named(self, name: str) -> RunStage | None:
        """Return the stage of the run's own that has this name."""
        return self._by_folder.get(self.output / name)

    def find(self, name: str) -> RunStage:
        """Return the stage of this name or folder. Raises UserError where there is none."""
        stage = self.named(name) or self.at(Path(name).resolve())
        if stage is None:
            raise UserError(f"no stage {name!r}", file=self.output, remedy=nearest(name, [s.name for s in self]))
        return stage

    def before(self, stage: RunStage) -> list[RunStage]:
        """Return the stages that a stage reads."""
        return [source for given in stage.inputs if (source := self.at(given.path)) is not None]

    def _own(self, name: str) -> RunStage:
        folder = self.output / name
        entry = self._recipe.stages.get(name) if self._recipe is not None else None
        manifest = _manifest(folder)
        kind = manifest.stage if manifest is not None else entry.stage.kind if entry is not None else ""
        if manifest is None and entry is not None and self._recipe is not None:
            inputs = tuple(_written(self._recipe, entry, self.output))
        else:
            inputs = _inputs(manifest, folder, entry)
        asked = entry.stage.settings() if entry is not None else {}
        return RunStage(name, folder, kind, manifest, inputs, asked=asked)


def has_unfinished(output: Path) -> bool:
    """Return whether a stage of a run was begun and has no manifest: what it reads is said by the recipe alone."""
    return any(not (output / name / MANIFEST).is_file() for name in _stage_names(output))


def _stage_names(output: Path) -> list[str]:
    folders = sorted(p for p in output.iterdir() if p.is_dir()) if output.is_dir() else []
    return [p.name for p in folders if not p.name.startswith(".") and _is_stage(p)]


def _is_stage(folder: Path) -> bool:
    return (folder / PLAN).is_file() or (folder / MANIFEST).is_file() or any(folder.glob("part-*.jsonl"))


def _manifest(folder: Path) -> Manifest | None:
    with contextlib.suppress(DamagedFile, NotADirectoryError):
        return read_manifest(folder)
    return None


def _foreign(folder: Path, taken: set[str]) -> RunStage:
    manifest = _manifest(folder)
    kind = manifest.stage if manifest is not None else ""
    short = f"{folder.parent.name}/{folder.name}"
    name = str(folder) if short in taken else short
    return RunStage(name, folder, kind, manifest, _inputs(manifest, folder, None), own=False)


def _inputs(manifest: Manifest | None, folder: Path, entry: StageEntry | None) -> tuple[StageInput, ...]:
    """Return what a manifest names. Names without a / are those of stages beside it, the teacher, or a path from where
    the recipe was run."""
    if manifest is None:
        return ()
    owner: dict[str, Any] = {}
    with contextlib.suppress(DamagedFile):
        owner = identity.read(folder.parent) or {}
    here = Path(str(owner.get("folder", "."))) if owner else folder.parent
    ports = {str(name): port for port, names in entry.inputs.items() for name in names} if entry is not None else {}
    engines = _engines(manifest.config)
    out = []
    for name, digest in manifest.inputs.items():
        beside = folder.parent / name
        port = ports.get(name) or ("engine" if name in engines else "")
        place = _place(name, here, owner, engine=port == "engine")
        if name == "teacher" and name in engines:
            out.append(StageInput(name, None, digest, "engine"))
        elif "/" not in name and (_is_stage(beside) or not place.exists()):  # a stage, there or gone
            out.append(StageInput(name, beside, digest, port))
        else:
            out.append(StageInput(name, place, digest, port))
    return tuple(out)


def _place(name: str, here: Path, owner: dict[str, Any], *, engine: bool) -> Path:
    """Return where a file or folder is that a manifest names. The path of a model that answers is relative to the file
    of the recipe that names it, any other one to where the recipe was run."""
    recipes = [owner.get("recipe"), *owner.get("extends", ())] if engine else []
    places = [*(Path(recipe).parent / name for recipe in recipes if recipe), here / name]
    return next((place for place in places if place.exists()), places[0]).resolve()


def _engines(settings: dict[str, Any]) -> set[str]:
    """Return the engines that the settings of a stage name. A folder among the inputs is named by its whole path."""
    named = [settings.get("engine"), settings.get("second_engine"), *(settings.get("more_engines") or ())]
    return {str(name) for name in named if name}


def _written(recipe: Recipe, entry: StageEntry, output: Path) -> Iterator[StageInput]:
    for port, names in entry.inputs.items():
        for name in names:
            yield StageInput(str(name), output / name if isinstance(name, str) else name.resolve(), None, port)
    for name in entry.stage.engines():
        if name in recipe.stages:
            yield StageInput(name, output / name, None, "engine")
        else:
            path = None if name == "teacher" else recipe.relative(name).resolve()
            yield StageInput(name, path, None, "engine")


def _sorted(stages: Iterable[RunStage]) -> Iterator[RunStage]:
    """Yield every stage behind those that it reads, else in the order given."""
    todo = {stage.folder: stage for stage in stages}

    def place(stage: RunStage) -> Iterator[RunStage]:
        for source in stage.inputs:
            if source.path is not None and (before := todo.pop(source.path, None)) is not None:
                yield from place(before)
        yield stage

    while todo:
        yield from place(todo.pop(next(iter(todo))))
