"""What the verbs of ``openmath recipe`` do."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.manifest import PLAN, write_json
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.evaluation.reports import (
    RunView,
    build_report,
    competition_lines,
    iteration_lines,
    results_table,
    status_table,
)
from nemo_openmath.evaluation.reports.formats import apart_lines, seconds_text
from nemo_openmath.launch.code_snapshot import note_code
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.economics.measure import measure
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.generate import SOLUTIONS, load_job, summary
from nemo_openmath.recipe.iteration_reports import IterationReports, write_iterations
from nemo_openmath.recipe.lineage.graph import LINEAGE, lineage_graph
from nemo_openmath.recipe.lineage.run_stages import RunStages, has_unfinished
from nemo_openmath.recipe.lineage.trace import trace, trace_json
from nemo_openmath.recipe.lineage.trace_text import read_line, trace_lines
from nemo_openmath.recipe.problem_report import write_samples
from nemo_openmath.recipe.reference import write_reference
from nemo_openmath.recipe.report_data import run_view
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.server_addresses import read_servers
from nemo_openmath.recipe.setting_docs import first_sentence
from nemo_openmath.recipe.snapshot import changed_inputs

log = logging.getLogger(__name__)

_REMEDY = "give the --output folder of recipe run or generate"


async def run_recipe(
    path: Path, overrides: Sequence[str], output: Path, selection: StageSelection, servers: Path | None = None
) -> None:
    """Run a recipe, then print its results and where the report is. A part of a run reports nothing.

    ``servers``: a file that says where models are served (server_addresses.py).
    """
    begun = time.monotonic()
    run = Run(load_recipe(path, overrides), output)
    note_code(output)
    for changed in changed_inputs(run.recipe, selection.names(run.recipe)):
        log.warning("%s has changed since the run was launched: what is read is what is there now", changed)
    addresses = {} if servers is None else read_servers(servers)
    await run.execute(selection, overrides, addresses, IterationReports(run, alone=selection.only is None))
    if selection.only is None:
        report(run, time.monotonic() - begun)


def report(run: Run, waited: float | None = None) -> None:
    """Write report.json, report.html and lineage.json, and print what is in them.

    ``waited``: the seconds that this command took; None where nothing was run.
    """
    stages = RunStages(run.output, run.recipe)
    graph = lineage_graph(run, stages)
    write_json(run.output / LINEAGE, graph.to_json())
    view = replace(run_view(run, waited), economics=measure(stages), lineage=graph.picture())
    console = Console()
    page = build_report(view, run.output)
    samples = write_samples(run, {s.name: s.manifest for s in view.stages if s.manifest is not None and s.current})
    if view.results:
        console.print(results_table(view.results))
    for line in [*apart_lines(view.apart), *iteration_lines(view.iterations), *competition_lines(view.competition)]:
        console.print(line, soft_wrap=True, highlight=False)
    for sentence in view.left_out:
        console.print(f"[yellow]not shown:[/yellow] {escape(sentence)}", soft_wrap=True, highlight=False)
    for sentence in _control_warnings(view):
        if sentence in run.warned:  # said as the stage ended
            continue
        console.print(f"[yellow]controls:[/yellow] {escape(sentence)}", soft_wrap=True, highlight=False)
    for sentence in view.prompts:
        console.print(f"[yellow]prompt:[/yellow] {escape(sentence)}", soft_wrap=True, highlight=False)
    for sentence in view.standins:
        console.print(f"[yellow]stand-in:[/yellow] {escape(sentence)}", soft_wrap=True)
    if view.note:
        console.print(f"[yellow]note:[/yellow] {escape(view.note)}", soft_wrap=True, highlight=False)
    if waited is not None:
        total = sum(stage.seconds for stage in view.stages)
        times = f"this run took {seconds_text(waited)}; the stages, all runs of them together, {seconds_text(total)}"
        console.print(times, soft_wrap=True, highlight=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    if samples is not None:
        console.print(f"samples of what models said: {samples}", soft_wrap=True, highlight=False)


def _control_warnings(view: RunView) -> list[str]:
    return [sentence for row in view.controls for sentence in row.warnings]


def show_recipe(path: Path, overrides: Sequence[str]) -> None:
    """Print every setting, its value and where it was written, in plain lines that can be searched and compared."""
    recipe = load_recipe(path, overrides)
    width = max(len(".".join(v.key)) for v in recipe.values)
    for value in recipe.values:
        shown = orjson.dumps(value.value, default=str).decode()
        origin = str(value.origin).replace(f"{path.parent}{os.sep}", "")
        print(f"{'.'.join(value.key):<{width}}  {shown}  # {origin}")


def show_status(output: Path) -> None:
    """Print the stages of a run as they are on disk now."""
    run = open_run(output)
    view = run_view(run)
    console = Console()
    console.print(status_table(view.stages))
    lines = [*apart_lines(view.apart), *iteration_lines(view.iterations), *competition_lines(view.competition)]
    for line in [*lines, *view.left_out, *_control_warnings(view)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    _print_solutions(run, view)


def _print_solutions(run: Run, view: RunView) -> None:
    """Print how much is right of what ``openmath generate`` made."""
    if run.recipe.verb == "generate" and any(s.name == SOLUTIONS and s.current for s in view.stages):
        print(summary(run.output))


def write_report(output: Path) -> None:
    """Write the report of a run again, and print what is in it."""
    run = open_run(output)
    write_iterations(run)
    report(run)
    _print_solutions(run, run_view(run))


def print_trace(output: Path, name: str, folder: str | None, *, full: bool, as_json: bool) -> None:
    """Print where a record of a run comes from. ``folder``: the stage, or the folder of one, in which its id is looked
    for."""
    recipe = None
    if has_unfinished(output):
        try:
            recipe = open_run(output).recipe
        except UserError as error:
            log.warning("stages that have not finished are shown without what they read: %s", error)
    stages = RunStages(output, recipe)
    start = None if folder is None else [stages.find(folder)]
    traced = trace(stages, name, start)
    if as_json:
        print(orjson.dumps(trace_json(traced), option=orjson.OPT_INDENT_2).decode())
    else:
        for line in trace_lines(traced, full=full):
            print(line)
    print(read_line(traced), file=sys.stderr)


def show_stages() -> None:
    """Print the kinds of stages with their inputs, what they make and the first sentence about them."""
    table = Table(box=None)
    table.add_column("kind", no_wrap=True)  # a kind is copied into a recipe
    for name in ("inputs", "makes", "what it does"):
        table.add_column(name, overflow="fold")
    for kind, cls in stage_kinds().items():
        table.add_row(kind, ", ".join(cls.ports), cls.product(), first_sentence(cls.__doc__))
    console = Console()
    console.print(table)
    console.print("openmath recipe stages KIND shows the settings of one", highlight=False)


def print_reference(folder: Path) -> None:
    """Write the reference pages and print where they are."""
    for path in write_reference(folder):
        print(path)


def open_run(output: Path) -> Run:
    """Return the run in a folder. Raises UserError where there is none."""
    if not output.is_dir():
        raise UserError("is a file" if output.exists() else "no such folder", file=output, remedy=_REMEDY)
    owner = identity.read(output)
    if owner is None or not isinstance(owner.get("recipe"), str):
        inside = identity.read(output.parent) is not None and (output / PLAN).is_file()
        remedy = f"this is a stage; name its run: {output.parent}" if inside else _REMEDY
        raise UserError("no run here", file=output, remedy=remedy)
    path, overrides = Path(owner["recipe"]), list(owner.get("overrides", ()))
    if isinstance(snapshot := owner.get("snapshot"), str):  # jobs of a launched run were made by it
        path = output / snapshot
    if not path.is_file():
        raise UserError(f"its recipe is not there any more: {path}", file=output, remedy="put the file back")
    load = load_job if owner.get("verb") == "generate" else load_recipe
    return Run(load(path, overrides, Path(owner.get("folder", "."))), output)
