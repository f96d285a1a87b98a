"""A sweep of merges, evaluated: a recipe file is written, run, and its results put side by side (paper, Table 10).

The recipe has, for every ratio, a merge, generations of the benchmark by it, grades and metrics, in this order; so at
most one candidate is served at a time, and a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from rich.console import Console
from rich.table import Table

from nemo_openmath.checkpoints.methods import NEEDS_BASE, Method
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode
from nemo_openmath.evaluation.reports.formats import interval_text, value_text
from nemo_openmath.evaluation.stage import RESULTS
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.preflight import check_output
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.written import options_of

RECIPE = "sweep.yaml"
OPTIONS = {
    "seed": "--seed",
    "checkpoints.merge.method": "--method",
    "checkpoints.merge.weights": "--sweep",
    "checkpoints.merge.density": "--density",
    "rollout.generate.samples": "--samples",
}
"""What the command line calls the settings of the recipe."""
_COLUMNS = ("maj", "pass", "tokens", "code_calls")


@dataclass(frozen=True)
class Sweep:
    """Candidates (1 - r) A + r B that are merged and evaluated."""

    models: tuple[Path, Path]
    """A and B."""
    ratios: tuple[float, ...]
    """The parts r of B."""
    benchmark: Path
    """The problems on which each candidate is evaluated."""
    method: Method = "linear"
    """How the models are merged."""
    base: Path | None = None
    """The model both were trained from; needed by task_arithmetic, ties and dare."""
    density: float = 0.5
    """The share of each difference that ties and dare keep."""
    seed: int = 0
    """The seed of the recipe, and of dare."""
    mode: Literal[Mode.COT, Mode.TIR] = Mode.TIR
    """How candidates solve the problems: ``cot`` or ``tir``."""
    samples: int = 16
    """Solutions of each problem, and the k of maj@k and pass@k."""

    def recipe(self, folder: Path) -> dict[str, Any]:
        """Return the content of the recipe file in ``folder``."""
        models = [_path(model, folder) for model in self.models]
        stages: dict[str, Any] = {"benchmark": {"run": "problems.read_problems", "from": _path(self.benchmark, folder)}}
        for ratio in self.ratios:
            name = candidate(ratio)
            inputs: dict[str, Any] = {"models": models}
            merge: dict[str, Any] = {
                "run": "checkpoints.merge",
                "method": self.method,
                "weights": [round(1 - ratio, 10), ratio],
            }
            if self.method in NEEDS_BASE:
                if self.base is None:
                    raise UserError(f"{self.method} needs a base", remedy="add --base: what both were trained from")
                inputs["base"] = _path(self.base, folder)
                merge["density"] = self.density
            stages[name] = {**merge, "from": inputs}
            stages[f"{name}_solved"] = {
                "run": "rollout.generate",
                "from": "benchmark",
                "engine": name,
                "mode": str(self.mode),
                "samples": self.samples,
                "temperature": 0.6,
                "top_p": 0.95,
                "max_tokens": 32768,  # (5.2)
                **({"budgets": [8, 8]} if self.mode == Mode.TIR else {}),
            }
            stages[f"{name}_graded"] = {"run": "solutions.grade", "from": f"{name}_solved"}
            stages[f"{name}_results"] = {
                "run": "evaluation.metrics",
                "from": {"generations": f"{name}_graded", "problems": "benchmark"},
                "checkpoint": f"ratio {ratio:g}",
                "ks": sorted({1, self.samples}),
            }
        return {"name": "sweep", "seed": self.seed, "stages": stages}


def candidate(ratio: float) -> str:
    """Return the name of a stage: ``ratio_0_3`` for 0.3."""
    return f"ratio_{ratio:g}".replace(".", "_").replace("-", "minus_")


def _path(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path, folder)
    return relative if "/" in relative else f"./{relative}"


async def run_sweep(sweep: Sweep, output: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Write ``output/sweep.yaml``, run it in ``output``, print the table and return its rows.

    ``overrides`` are those of the recipe. A ``*`` in one stands for every candidate:
    ``stages.*_solved.max_tokens=256``.
    """
    if len(set(sweep.ratios)) != len(sweep.ratios) or not sweep.ratios:
        raise UserError("the ratios of a sweep differ from each other", remedy="write --sweep 0,0.1,...,1")
    if sweep.samples < 1:
        raise UserError(f"samples = {sweep.samples}", remedy="at least 1")
    content = sweep.recipe(output)
    check_output(output, [output / RECIPE])
    output.mkdir(parents=True, exist_ok=True)
    (output / RECIPE).write_text(yaml.safe_dump(content, sort_keys=False))
    names = [candidate(ratio) for ratio in sweep.ratios]
    settings = [text.replace("*", name) for text in overrides for name in (names if "*" in text else names[:1])]
    recipe = load_recipe(output / RECIPE, settings, options=options_of(content, OPTIONS))
    run = Run(recipe, output)
    await run.execute(StageSelection(), settings)
    rows = [_row(ratio, run.folder(f"{candidate(ratio)}_results"), sweep.samples) for ratio in sweep.ratios]
    Console().print(_table(rows, sweep))
    return rows


def _row(ratio: float, folder: Path, k: int) -> dict[str, Any]:
    row: dict[str, Any] = {"ratio": ratio}
    for result in orjson.loads((folder / RESULTS).read_bytes()):
        kind = result["metric"].split("@")[0]
        if kind in _COLUMNS and result["k"] in (None, k):
            row[kind] = (result["value"], result["low"], result["high"])
    return row


def _table(rows: Sequence[dict[str, Any]], sweep: Sweep) -> Table:
    """A table of ratio, maj@k, pass@k, length and code calls, with the 95% interval over problems in brackets."""
    a, b = (model.name for model in sweep.models)
    table = Table(title=f"(1 - r) {a} + r {b}, {sweep.method} (paper, Table 10)")
    for name in ("r", f"maj@{sweep.samples}", f"pass@{sweep.samples}", "tokens", "code calls"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(f"{row['ratio']:g}", *(_cell(row.get(kind), kind in ("maj", "pass")) for kind in _COLUMNS))
    return table


def _cell(value: tuple[float, float | None, float | None] | None, share: bool) -> str:
    if value is None:
        return "-"
    metric = "share" if share else "tokens"
    interval = interval_text(metric, value[1], value[2])
    return value_text(metric, value[0]).removesuffix("%") + (f" [{interval}]" if interval else "")
