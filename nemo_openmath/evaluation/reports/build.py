"""report.json and report.html of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_openmath.core.records import write_json
from nemo_openmath.evaluation.reports.page import render
from nemo_openmath.evaluation.reports.view import Losses, RunView, read_losses

JSON, PAGE = "report.json", "report.html"


def build_report(run: RunView, output: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``output``; returns the page's path. Each appears whole."""
    output.mkdir(parents=True, exist_ok=True)
    losses = {name: read_losses(path) for name, path in run.training.items()}
    write_json(output / JSON, report_json(run, losses))
    page = output / PAGE
    temporary = page.with_name(f".{PAGE}.tmp")
    temporary.write_text(render(run, losses), encoding="utf-8")
    temporary.replace(page)
    return page


def report_json(run: RunView, losses: Mapping[str, Losses]) -> dict[str, Any]:
    """The report as data; these keys and the fields of their rows are fixed.

    ``results``: {checkpoint, mode, metric, k, value, low, high, problems}. ``paired``: see evaluation.paired.PairedRow.
    ``funnel``: {title, parts, note, steps: {name, count}}. ``drops``: stage -> reason -> count. ``seconds``: by stage.
    ``config``: dotted key -> {value, origin}. ``losses``: training stage -> {steps, loss, lr, grad_norm, tokens,
    trained_tokens, seconds}. ``standins``: sentences. ``states``: of each stage. ``competition``: {stage, model,
    problems, answered, right, value, low, high, seconds}. ``left_out``: sentences about stages that are not as the
    recipe asks: their numbers are in none of the tables. ``note``: the recipe's own. ``apart``: {checkpoint, mode,
    problems, of, example}: problems that are in no mean.
    """
    fields = ("checkpoint", "mode", "metric", "k", "value", "low", "high", "problems")
    return {
        "label": run.label,
        "standins": list(run.standins),
        "results": [{name: row[name] for name in fields} for row in run.results],
        "apart": [dict(row) for row in run.apart],
        "paired": [dict(row) for row in run.paired],
        "funnel": [
            {
                "title": table.title,
                "parts": table.parts,
                "note": table.note,
                "steps": [{"name": name, "count": count} for name, count in table.steps],
            }
            for table in run.funnel
        ],
        "competition": [dict(row) for row in run.competition],
        "states": {stage.name: stage.state for stage in run.stages},
        "left_out": list(run.left_out),
        "note": run.note,
        "drops": {stage.name: dict(stage.drops) for stage in run.stages if stage.drops and stage.current},
        "seconds": {stage.name: stage.seconds for stage in run.stages if stage.manifest},
        "config": {s.key: {"value": _plain(s.value), "origin": s.origin} for s in run.config},
        "versions": dict(run.versions),
        "seeds": dict(run.seeds),
        "losses": {name: asdict(curves) for name, curves in losses.items()},
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
