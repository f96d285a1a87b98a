"""What the verbs of ``openmath recipe`` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from nemo_openmath.errors import UserError
from nemo_openmath.pipeline.stage import stage_kinds
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.runner import Run, Selection
from nemo_openmath.recipe.view import run_view
from nemo_openmath.records import write_json
from nemo_openmath.reports import build_report, results_table, status_table

_RUN = "run.json"


async def run_recipe(path: Path, overrides: Sequence[str], output: Path, selection: Selection) -> None:
    """Run, then print the results and where the report is (a part of a run reports nothing)."""
    recipe = load_recipe(path, overrides)
    recipe.check_files(selection.names(recipe))  # what is wrong is said before anything is written
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / _RUN, {"recipe": str(path.resolve()), "overrides": list(overrides), "command": sys.argv})
    run = Run(recipe, output)
    await run.execute(selection)
    if selection.only is None:
        report(run)


def report(run: Run) -> None:
    """Write report.json and report.html and say what is in them."""
    view = run_view(run)
    console = Console()
    page = build_report(view, run.output)
    if view.results:
        console.print(results_table(view.results))
    for sentence in view.standins:
        console.print(f"[yellow]stand-in:[/yellow] {sentence}", soft_wrap=True)
    console.print(f"report: {os.path.relpath(page)}", soft_wrap=True, highlight=False)


def show_recipe(path: Path, overrides: Sequence[str]) -> None:
    """Every setting, its value and where it came from; plain lines, so that they can be searched and compared."""
    recipe = load_recipe(path, overrides)
    width = max(len(".".join(v.key)) for v in recipe.values)
    for value in recipe.values:
        shown = orjson.dumps(value.value, default=str).decode()
        origin = str(value.origin).replace(f"{path.parent}{os.sep}", "")
        print(f"{'.'.join(value.key):<{width}}  {shown}  # {origin}")


def show_status(output: Path) -> None:
    """The stages of a run, as they are on disk now."""
    Console().print(status_table(run_view(opened(output)).stages))


def write_report(output: Path) -> None:
    report(opened(output))


def show_stages() -> None:
    """Kinds of stages with their inputs and first lines of documentation."""
    table = Table(box=None)
    for name in ("kind", "inputs", "makes", "what it does"):
        table.add_column(name, overflow="fold")
    for kind, cls in stage_kinds().items():
        text = (cls.__doc__ or "").strip().split("\n\n", 1)[0].replace("\n", " ")
        table.add_row(kind, ", ".join(cls.ports), cls.makes, " ".join(text.split()))
    Console().print(table)


def opened(output: Path) -> Run:
    """The run in a folder. Raises UserError where there is none."""
    try:
        facts: dict[str, Any] = orjson.loads((output / _RUN).read_bytes())
    except FileNotFoundError:
        raise UserError("no run here", file=output, remedy="give the --output folder of recipe run") from None
    recipe: Recipe = load_recipe(facts["recipe"], facts["overrides"])
    return Run(recipe, output)
