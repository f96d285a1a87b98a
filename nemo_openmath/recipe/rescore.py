"""``openmath evaluate rescore``: stored generations are scored again, as a recipe that stands in the output folder.

For each set of generations two stages: ``rescored`` (evaluation.rescore) and ``changes`` (evaluation.changes). A folder
of a run gives the generations of each stage that measures (evaluation.metrics, evaluation.changes) as a set of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, read_manifest
from nemo_openmath.core.records.manifest import TALLY
from nemo_openmath.core.records.store import part_files
from nemo_openmath.core.records.types import Tallied
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.rescore.changes_stage import CHANGES
from nemo_openmath.evaluation.rescore.console import change_lines, metric_table, turn_lines, verdict_table
from nemo_openmath.recipe.lineage.run_stages import RunStages
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.written import write_recipe

RECIPE = "rescore.yaml"
OPTIONS = {
    "grading.workers": "--workers",
    "grading.time_limit": "--time-limit",
    "evaluation.rescore.take_modulo": "--modulo",
    "evaluation.rescore.max_tokens": "--tokens",
    "evaluation.rescore.tokenizer": "--tokenizer",
    "evaluation.rescore.samples": "--samples",
    "evaluation.rescore.modes": "--mode",
    "evaluation.rescore.where": "--where",
    "evaluation.rescore.from.problems": "--problems",
    "evaluation.rescore.from.judged": "--judge",
    "evaluation.changes.ks": "--k",
    "solutions.read_generations.model": "--model",
}
"""What the command line calls the settings of the recipe (:func:`write_recipe`)."""
_MEASURING = ("evaluation.metrics", "evaluation.changes")


@dataclass(frozen=True)
class RescoreRequest:
    """What the command line says."""

    folders: Sequence[Path]
    """Folders of generations, of runs, or files of the reference pipeline's rows."""
    output: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """Of ``evaluation.rescore``."""
    problems: Path | None = None
    """The problems to score: a file, or the folder of a stage."""
    judged: Sequence[Path] = ()
    """Folders of ``judging.judge`` stages whose verdicts are used."""
    ks: Sequence[int] | None = None
    model: str = ""
    """Name of the model, where rows of the reference pipeline do not say it."""
    grading: dict[str, Any] = field(default_factory=dict)
    """Of the section ``grading`` of a recipe."""
    replace: bool = False


@dataclass(frozen=True, slots=True)
class GenerationSet:
    """Generations that are measured together."""

    name: str
    """"" of the only group."""
    folders: tuple[Path, ...]
    label: str = "model"

    def stage(self, name: str) -> str:
        """Return the name of a stage of this set."""
        return f"{self.name}_{name}" if self.name else name


def generation_sets(paths: Sequence[Path]) -> list[GenerationSet]:
    """Return the sets of generations at these paths. Raises UserError where there is none at a path."""
    sets: list[GenerationSet] = []
    plain: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError("no such file or folder", file=path, remedy="check the path")
        if path.is_file() or part_files(path) or any(path.glob("output*.jsonl*")):
            plain.append(path)
        else:
            sets += _of_run(path, prefix=f"{path.resolve().name}_" if len(paths) > 1 else "")
    if plain:
        sets.append(GenerationSet("plain" if sets else "", tuple(plain)))
    return sets if len(sets) > 1 else [GenerationSet("", sets[0].folders, sets[0].label)]


def measured_sets(path: Path) -> list[GenerationSet]:
    """Return the sets that the evaluations of a run have measured, each under the name of its stage."""
    sets = []
    for stage in RunStages(path):
        if not (stage.own and stage.kind in _MEASURING and stage.manifest is not None):
            continue
        folders = [i.path for i in stage.inputs if i.path is not None and i.path.is_dir() and part_files(i.path)]
        generations = tuple(folder for folder in folders if RecordFolder(folder).kind is Generation)
        sets.append(GenerationSet(stage.name, generations, str(stage.settings.get("checkpoint") or stage.name)))
    return sets


def _of_run(path: Path, prefix: str) -> Iterator[GenerationSet]:
    measured = measured_sets(path)
    yield from (replace(group, name=f"{prefix}{group.name}") for group in measured)
    if not measured:
        own = [s for s in RunStages(path) if s.own and s.begun and part_files(s.folder)]
        those = [s for s in own if RecordFolder(s.folder).kind is Generation]
        if len(those) != 1:
            names = ", ".join(s.name for s in those[:12]) or "none"
            raise UserError(
                f"a run without evaluation.metrics, and stages with generations: {names}",
                file=path,
                remedy="name the folders of the stages whose generations are to be scored",
            )
        yield GenerationSet(f"{prefix}{those[0].name}", (those[0].folder,))


def recipe_of(request: RescoreRequest, sets: Sequence[GenerationSet]) -> dict[str, Any]:
    """Return the recipe: the content of its file."""
    stages: dict[str, Any] = {}
    ports: dict[str, Any] = {}
    if request.problems is not None:
        ports["problems"] = str(request.problems.resolve())
        if not (request.problems.is_dir() and part_files(request.problems)):
            stages["problems"] = {"run": "problems.read_problems", "from": ports["problems"]}
            ports["problems"] = "problems"
    if request.judged:
        ports["judged"] = [str(path.resolve()) for path in request.judged]
    for group in sets:
        names = []
        for number, folder in enumerate(group.folders):
            names.append(str(folder.resolve()))
            if folder.is_file() or not part_files(folder):
                read = group.stage("read" if len(group.folders) == 1 else f"read{number}")
                model = request.model or folder.resolve().stem
                stages[read] = {"run": "solutions.read_generations", "from": names[-1], "model": model}
                names[-1] = read
        scored, changes = group.stage("rescored"), group.stage("changes")
        stages[scored] = {"run": "evaluation.rescore", "from": {"generations": names, **ports}, **request.settings}
        stages[changes] = {"run": "evaluation.changes", "from": scored, "checkpoint": group.label}
        if request.ks is not None:
            stages[changes]["ks"] = list(request.ks)
    return {"name": "rescore", "grading": request.grading, "stages": stages}


def sets_of_modes(sets: Sequence[GenerationSet], modes: Sequence[str] | None) -> list[GenerationSet]:
    """Return the sets in which generations of these modes are, as far as the manifests say. Raises UserError where
    there is none."""
    kept = [group for group in sets if modes is None or any(_may_hold(folder, modes) for folder in group.folders)]
    if not kept:
        raise UserError(f"no generations of mode {' or '.join(modes or ())}", remedy="change --mode")
    return kept


def _may_hold(folder: Path, modes: Sequence[str]) -> bool:
    manifest = read_manifest(folder) if folder.is_dir() else None
    tally = None if manifest is None else manifest.metrics.get(TALLY)
    return not isinstance(tally, dict) or any(counted.mode in modes for counted, _ in Tallied.read(tally))


async def rescore(request: RescoreRequest) -> None:
    """Score generations again, and print what changed."""
    sets = sets_of_modes(generation_sets(request.folders), request.settings.get("modes"))
    run = Run(write_recipe(recipe_of(request, sets), request.output, RECIPE, OPTIONS), request.output)
    await run.execute(StageSelection(replace=request.replace))
    console = Console()
    for group in sets:
        path = request.output / group.stage("changes") / CHANGES
        print_changes(console, orjson.loads(path.read_bytes()), group.name)
    console.print(f"all of it: {request.output}", soft_wrap=True, highlight=False)


def print_changes(console: Console, told: dict[str, Any], name: str = "") -> None:
    """Print what changed of one set of generations."""
    if name:
        console.rule(name, align="left")
    for line in change_lines(told):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if told["verdicts"]:
        console.print(verdict_table(told["verdicts"]))
    if changed := [row for row in told["metrics"] if row["better"] or row["worse"]]:
        console.print(metric_table(changed))
    if same := len(told["metrics"]) - len(changed):
        unchanged = f"{same} metrics are what they were" if same > 1 else "1 metric is what it was"
        console.print(unchanged, soft_wrap=True, highlight=False)
    for line in turn_lines(told["problems"]):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
