"""The page of a comparison: one HTML document that asks nothing of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from nemo_openmath.data.records.shown import excerpt, printable
from nemo_openmath.evaluation.comparison.drawing import COLOURS, panels
from nemo_openmath.evaluation.comparison.numbers import DifferingProblem, ModeComparison
from nemo_openmath.evaluation.comparison.reading import WrittenMode
from nemo_openmath.evaluation.metrics import split_name
from nemo_openmath.evaluation.reports import page as report_page
from nemo_openmath.evaluation.reports.formats import interval_text, metric_name, value_text
from nemo_openmath.evaluation.viewer.filters import RowFilter

SHOWN = 100
"""Most problems of a table on the page; the JSON file has all."""
_TEMPLATE = "comparison.html.j2"
_TEXT = 180


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the page says of a run."""

    letter: str
    name: str
    folders: list[str]
    models: list[str]
    grader: str = ""
    """What graded it; "" where no manifest says so."""


@dataclass(frozen=True, slots=True)
class RunComparison:
    """All that is compared."""

    runs: list[RunFacts]
    modes: list[ModeComparison]
    notes: list[str] = field(default_factory=list)
    """What is not compared, and what a reader has to know."""
    viewer: str = ""
    """Address of ``openmath view``, to which problems are linked; "" for no links."""
    view_command: str = ""
    """What serves the pages that are linked; "" likewise."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json. Its keys and the fields of its rows are a lasting format."""
        return {
            "runs": [
                {"letter": r.letter, "name": r.name, "folders": r.folders, "models": r.models, "grader": r.grader}
                for r in self.runs
            ],
            "comparisons": [numbers.to_json() for numbers in self.modes],
            "notes": self.notes,
        }


def render(comparison: RunComparison) -> str:
    """Return the page."""
    colours = {run.letter: number % COLOURS for number, run in enumerate(comparison.runs)}
    sections = [_section(numbers, comparison, colours, n) for n, numbers in enumerate(comparison.modes)]
    css = report_page.text_of("report.css") + _text_of("comparison.css")
    title = " and ".join(printable(run.name) for run in comparison.runs[:3]) + (
        f" and {len(comparison.runs) - 3} more" if len(comparison.runs) > 3 else ""
    )
    template = _environment().get_template(_TEMPLATE)
    return template.render(
        title=title,
        css=Markup(css),
        runs=[_run(run, colours) for run in comparison.runs],
        graders=any(run.grader for run in comparison.runs),
        sections=sections,
        notes=[printable(note) for note in comparison.notes],
        view_command=printable(comparison.view_command),
    )


def title_of(numbers: ModeComparison) -> str:
    """Return the heading of a benchmark and mode."""
    name = WrittenMode(numbers.mode, numbers.chosen_from).name
    return f"{numbers.benchmark}, {name}" if numbers.benchmark else name


def samples_text(numbers: ModeComparison, letter: str) -> str:
    """Return how many samples a problem has: ``16``, or ``12 to 16``."""
    fewest, most = numbers.samples[letter]
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def difference_rows(numbers: ModeComparison) -> list[dict[str, Any]]:
    """Return the paired differences as texts; the name of a row has no mode, for the heading says it."""
    names = []
    for row in numbers.differences:
        metric, k = split_name(row["metric"])
        names.append(f"{metric_name(metric, k)}: {row['checkpoint_before']} → {row['checkpoint_after']}")
    rows = report_page.differences(numbers.differences)
    return [row | {"name": name} for name, row in zip(names, rows, strict=True)]


def vote_word(vote: float) -> str:
    """Return what a vote came to, in a word."""
    return "right" if vote > 0.5 else "tied" if vote == 0.5 else "wrong"


def _run(run: RunFacts, colours: dict[str, int]) -> dict[str, Any]:
    return {
        "letter": run.letter,
        "colour": colours[run.letter],
        "name": printable(run.name),
        "folders": [printable(folder) for folder in run.folders],
        "models": ", ".join(printable(model) for model in run.models),
        "grader": printable(run.grader),
    }


def _section(
    numbers: ModeComparison, comparison: RunComparison, colours: dict[str, int], number: int
) -> dict[str, Any]:
    differing = numbers.differing
    return {
        "id": f"part{number}",
        "title": printable(title_of(numbers)),
        "problems": numbers.problems,
        "facts": [_facts(numbers, letter) for letter in numbers.runs],
        "cut": [letter for letter in numbers.runs if numbers.samples[letter][0] < numbers.samples[letter][1]],
        "panels": panels(numbers, colours),
        "letters": numbers.runs,
        "colours": colours,
        "curves": list(curve_rows(numbers)),
        "differences": difference_rows(numbers),
        "differing": [_differing(row, numbers, comparison) for row in differing[:SHOWN]],
        "more": max(0, len(differing) - SHOWN),
        "number_differing": len(differing),
    }


def _facts(numbers: ModeComparison, letter: str) -> dict[str, Any]:
    q = {name: f"{value:,.0f}" for name, value in numbers.quantiles.get(letter, {}).items()}
    return {
        "letter": letter,
        "samples": samples_text(numbers, letter),
        "left_out": f"{numbers.left_out[letter]:,}",
        "not_asked": f"{numbers.not_asked[letter]:,}",
        "undecided": f"{numbers.undecided[letter]:,}",
        "tokens": [q.get(name, "not known") for name in ("mean", "median", "p90", "longest")],
    }


def curve_rows(numbers: ModeComparison) -> list[dict[str, Any]]:
    """Return a line for each metric with its k, with a cell for each run: a value with its interval, or nothing."""
    cells: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row in numbers.results:
        cells.setdefault((row["metric"], row["k"]), {})[row["run"]] = row
    return [
        {
            "name": metric_name(metric, k),
            "cells": [_cell(metric, of_runs.get(letter)) for letter in numbers.runs],
        }
        for (metric, k), of_runs in cells.items()
    ]


def _cell(metric: str, row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "–", ""
    return value_text(metric, row["value"]), interval_text(metric, row["low"], row["high"])


def _differing(row: DifferingProblem, numbers: ModeComparison, comparison: RunComparison) -> dict[str, Any]:
    base, links = comparison.viewer.rstrip("/"), {}
    if base:
        address = RowFilter(problem=row.problem, mode=str(numbers.mode)).address()
        links["all"] = f"{base}/solutions{address}"
        pair = [row.first[letter] for letter in _apart(row)]
        links["pair"] = f"{base}/compare?" + urlencode({"a": pair[0], "b": pair[1]})
    return {
        "text": excerpt(row.text, _TEXT) or printable(row.problem),
        "expected": "" if row.expected is None else excerpt(row.expected, 40),
        "links": links,
        "pair": " and ".join(_apart(row)),
        "cells": [
            {
                "word": vote_word(row.vote[letter]),
                "share": f"{round(row.right[letter] * row.samples[letter]):,} of {row.samples[letter]:,}",
            }
            for letter in numbers.runs
        ],
    }


def _apart(row: DifferingProblem) -> list[str]:
    """Return two runs of which one has the problem right and the other has not, in their order."""
    right = [letter for letter, vote in row.vote.items() if vote > 0.5]
    wrong = [letter for letter, vote in row.vote.items() if vote <= 0.5]
    return sorted([right[0], wrong[0]], key=list(row.vote).index)


@cache
def _environment() -> Environment:
    return Environment(
        loader=DictLoader({_TEMPLATE: _text_of(_TEMPLATE)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text_of(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
