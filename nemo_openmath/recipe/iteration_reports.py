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
from nemo_openmath.recipe.iteration_settings import DECISION as DECIDED
from nemo_openmath.recipe.iteration_settings import SECTION
from nemo_openmath.recipe.report_data import iterations, run_view
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State

ITERATIONS = "iterations.json"


class IterationReports:
    """Writes these files while a run goes on; called with each stage that is finished (:meth:`Run.execute`).

    ``alone``: whether nobody else works in the run's folder. What is there of decisions that are to be made again is
    removed then, before anything else.
    """

    def __init__(self, run: Run, *, alone: bool):
        self._run, self._is_looked_at = run, not alone

    def __call__(self, entry: StageEntry) -> None:
        loop = self._run.recipe.loop
        if loop is None:
            return
        if not self._is_looked_at:
            self._is_looked_at = True
            _write_summary(self._run)
        if entry.name in loop.decisions:
            write_iteration(self._run, loop.iteration[entry.name])


def write_iteration(run: Run, number: int) -> None:
    """Write the files of an iteration that is decided."""
    loop = run.recipe.loop
    assert loop is not None
    view = run_view(run, only=[name for name, of in loop.iteration.items() if of == number])
    folder = run.output / SECTION / str(number)
    build_report(replace(view, label=f"{view.label}, iteration {number}"), folder)
    write_json(folder / DECISION, read_decision(run.folder(loop.decisions[number - 1])))
    _write_summary(run)


def write_iterations(run: Run) -> None:
    """Write the files of all iterations that are decided."""
    loop = run.recipe.loop
    if loop is not None:
        for name in decisions(run):
            write_iteration(run, loop.iteration[name])
        _write_summary(run)


def _write_summary(run: Run) -> None:
    """Write what the last decision says, and remove what is there of iterations that are not decided, or no more."""
    decided, path = decisions(run), run.output / ITERATIONS
    if decided:
        write_json(path, {"recipe": run.recipe.name, **iterations(run, decided)})
    else:
        path.unlink(missing_ok=True)
    for report in (run.output / SECTION).glob("[0-9]*"):
        if f"{DECIDED}-{report.name}" not in decided:
            shutil.rmtree(report)


def decisions(run: Run) -> dict[str, Manifest]:
    """Return the manifests of the decisions that are finished, and made of what is there now, by the stages' names."""
    names = run.recipe.loop.decisions if run.recipe.loop is not None else ()
    finished = {s.name: s.manifest for s in run.status() if s.state is State.FINISHED and s.manifest is not None}
    return {name: finished[name] for name in names if name in finished}
