"""The files of a run that tell of its loop: a folder with a report for each iteration, and one file about all.

    iterations.json                  the last decision: a row an iteration, the best marked, why the loop ended
    iterations/I/decision.json       the decision after iteration I
    iterations/I/report.html, .json  the stages of iteration I alone

They are made of the manifests of stages and of nothing else, so that making them again gives the same.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

from nemo_openmath.core.records import Manifest, write_json
from nemo_openmath.evaluation.iterations import DECISION, read_decision
from nemo_openmath.evaluation.reports import build_report
from nemo_openmath.recipe.iterations import DECISION as DECIDED
from nemo_openmath.recipe.iterations import SECTION
from nemo_openmath.recipe.report_data import iterations, run_view
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State

ITERATIONS = "iterations.json"


def write_iteration(run: Run, entry: StageEntry) -> None:
    """Write the files of the iteration that a finished stage has decided; nothing for a stage that is no decision."""
    loop = run.recipe.loop
    if loop is None or entry.name not in loop.decisions:
        return
    number, decided = loop.iteration[entry.name], decisions(run)
    view = run_view(run, only=[name for name, of in loop.iteration.items() if of == number])
    folder = run.output / SECTION / str(number)
    build_report(replace(view, label=f"{view.label}, iteration {number}"), folder)
    write_json(folder / DECISION, read_decision(run.folder(entry.name)))
    write_json(run.output / ITERATIONS, {"recipe": run.recipe.name, **iterations(run, decided)})
    for path in (run.output / SECTION).iterdir():  # reports of iterations that are not decided, or decided anew
        if path.name.isdigit() and f"{DECIDED}-{path.name}" not in decided:
            shutil.rmtree(path)


def write_iterations(run: Run) -> None:
    """Write the files of all iterations that are decided."""
    for name in decisions(run):
        write_iteration(run, run.recipe.stages[name])


def decisions(run: Run) -> dict[str, Manifest]:
    """Return the manifests of the decisions that are finished, and made of what is there now, by the stages' names."""
    names = run.recipe.loop.decisions if run.recipe.loop is not None else ()
    finished = {s.name: s.manifest for s in run.status() if s.state is State.FINISHED and s.manifest is not None}
    return {name: finished[name] for name in names if name in finished}
