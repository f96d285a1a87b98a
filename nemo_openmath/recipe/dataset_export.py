"""Export the problems or solutions of a finished stage as a dataset that ``datasets`` and the hub read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.core.outputs import REMEDY
from nemo_openmath.core.records import Generation, Problem, Record, read_manifest
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.data.records.published import PublishedFiles, publish_problems, publish_solutions
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe.command import open_run
from nemo_openmath.recipe.dataset_card import CardSettings, dataset_card
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages
from nemo_openmath.recipe.teacher import Teacher


def export_dataset(folder: Path, output: Path, settings: CardSettings) -> PublishedFiles:
    """Write ``README.md`` and ``data/train-*.parquet`` into a new folder, which appears whole or not at all.

    ``folder``: of a finished stage that holds problems or generations. Raises UserError where it is none, and where
    there is something at ``output``; SystemFailure where the disk is full.
    """
    kind = RecordFolder(folder).kind
    refuse_inside_stage(output)
    partial = output.with_name(f".{output.name}.partial")
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError("is there already", file=output, remedy=REMEDY)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "data").mkdir(parents=True)
        written = _write(folder, kind, partial, settings)
        if output.is_dir():
            output.rmdir()
        os.replace(partial, output)
    except OSError as error:
        raise of_the_system(error, output) or error from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _write(folder: Path, kind: type[Record] | None, output: Path, settings: CardSettings) -> PublishedFiles:
    """Write the files of the dataset into a folder. Raises UserError where ``folder`` holds none."""
    if read_manifest(folder) is None:
        raise UserError("is not the folder of a finished stage", file=folder, remedy="let its run finish")
    if kind is None:
        raise UserError("there is no record in it", file=folder, remedy="see why in its drops-*.jsonl")
    if kind not in (Problem, Generation):
        raise UserError(f"holds {kind.__name__} records", file=folder, remedy="name a stage with problems or solutions")
    stages, teacher = _stages(folder.resolve().parent)
    stage = stages.find(str(folder.resolve()))
    if kind is Problem:
        written = publish_problems(folder, output / "data", majority)
    else:
        written = publish_solutions(folder, _problem_folders(stages, stage), output / "data", majority)
    (output / "README.md").write_text(dataset_card(stages, stage, written, settings, teacher), encoding="utf-8")
    return written


def _stages(run: Path) -> tuple[RunStages, Teacher | None]:
    """Return the stages of a run; where its recipe is still there, with the names of their inputs, and its teacher."""
    try:
        recipe = open_run(run).recipe
    except UserError:
        return RunStages(run), None
    return RunStages(run, recipe), recipe.teacher


def _problem_folders(stages: RunStages, stage: RunStage) -> list[Path]:
    """Return the folder of problems that a stage of generations reads, directly or through others: the nearest."""
    level, seen = [stage], {stage.folder}
    while level:
        before = [source for of in level for source in stages.before(of) if source.folder not in seen]
        seen |= {source.folder for source in before}
        if problems := [source.folder for source in before if _holds_problems(source)]:
            return problems[:1]
        level = before
    raise UserError("no stage that it was made from holds its problems", file=stage.folder)


def _holds_problems(stage: RunStage) -> bool:
    kind = stage_kinds().get(stage.kind)
    return kind is not None and kind.record is Problem
