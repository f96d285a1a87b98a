"""Write report.json and report.html of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_openmath.core.records import write_json
from nemo_openmath.evaluation.reports.page import render
from nemo_openmath.evaluation.reports.view import RunView, TrainingCurves, read_curves

JSON, PAGE = "report.json", "report.html"


def build_report(run: RunView, output: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``output`` and return the page's path. Each file appears whole."""
    output.mkdir(parents=True, exist_ok=True)
    curves = {name: read_curves(path) for name, path in run.training.items()}
    write_json(output / JSON, report_json(run, curves))
    page = output / PAGE
    temporary = page.with_name(f".{PAGE}.tmp")
    temporary.write_text(render(run, curves), encoding="utf-8")
    temporary.replace(page)
    return page


def report_json(run: RunView, curves: Mapping[str, TrainingCurves]) -> dict[str, Any]:
    """Return the report as data. These keys and the fields of their rows are a lasting format:

    - ``label``, ``note``: the run's heading, and the recipe's own sentence about its results
    - ``results``: rows of checkpoint, mode, metric, k, value, low, high, problems
    - ``apart``: problems that are in no mean; rows of checkpoint, mode, problems, of, example
    - ``paired``: rows of evaluation.paired.PairedRow
    - ``competition``: rows of stage, model, problems, answered, right, value, low, high, seconds
    - ``funnel``: tables of title, parts, note, steps; a step has name and count
    - ``economics``: ``models``, ``classes``, ``spent``, ``losses``, ``suggestions``: rows with the fields of
      evaluation.reports.economics; ``notes``: sentences about what is in none of them
    - ``controls``: rows of stage, kind, rate, bound, finished, warnings, and the keys of evaluation.controls.measured
    - ``problem_set``: ``stages``: rows with the fields of evaluation.reports.problem_set.StageBalance, and ``dropped``;
      ``agreement``: rows of stage, engine, second_engine and the fields of evaluation.two_models.ModelAgreement;
      ``truth``: rows of evaluation.problems, and ``of``, the stage that measured; ``notes``: what could not be read
    - ``drops``: stage -> reason -> count
    - ``states``, ``seconds``: by stage
    - ``left_out``: sentences about stages that are not as the recipe asks; their numbers are in none of the tables
    - ``prompts``: sentences about models that were asked with another prompt than they were trained on
    - ``standins``: sentences about what stands in for the real thing
    - ``config``: dotted key -> value, origin
    - ``versions``, ``seeds``: by name
    - ``iterations``: of a loop; see RunView.iterations
    - ``losses``: training stage -> steps, loss, lr, grad_norm, tokens, trained_tokens, seconds
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
        "prompts": list(run.prompts),
        "note": run.note,
        "drops": {stage.name: dict(stage.drops) for stage in run.stages if stage.drops and stage.current},
        "seconds": {stage.name: stage.seconds for stage in run.stages if stage.manifest},
        "economics": run.economics.to_json(),
        "problem_set": run.problem_set.to_json(),
        "controls": [row.to_json() for row in run.controls],
        "config": {s.key: {"value": _plain(s.value), "origin": s.origin} for s in run.config},
        "versions": dict(run.versions),
        "seeds": dict(run.seeds),
        "iterations": dict(run.iterations),
        "losses": {name: asdict(of_stage) for name, of_stage in curves.items()},
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
