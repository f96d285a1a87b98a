"""The numbers of a comparison as pictures: curves by samples, accuracy by run, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from nemo_openmath.evaluation.comparison.numbers import TENTHS, ModeComparison
from nemo_openmath.evaluation.reports import svg
from nemo_openmath.evaluation.reports.formats import interval_text, metric_name, value_text

COLOURS = 5
CURVES = {"maj@k": "Majority of k samples", "pass@k": "Any of k samples right", "genselect@k": "GenSelect among k"}
"""Metric -> title of its panel (paper Figure 2)."""
LENGTH_TITLE, RATES_TITLE = "Length of solutions", "Problems by their share of right samples"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its title."""

    title: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class NamedAxis(svg.Axis):
    """An axis with names at some of its places."""

    names: Mapping[float, str] = field(default_factory=dict)

    def ticks(self) -> list[float]:
        """Return the places that have a name."""
        return list(self.names)


def panels(numbers: ModeComparison, colours: dict[str, int]) -> list[Picture]:
    """Return the pictures of one benchmark and mode. ``colours``: letter of a run -> its colour."""
    drawn = [_curves(numbers, metric, colours) for metric in CURVES]
    drawn += [_by_run(numbers), _lengths(numbers, colours), _pass_rates(numbers, colours)]
    return [panel for panel in drawn if panel is not None]


def _note(row: dict[str, Any], name: str = "") -> str:
    text = f"{metric_name(row['metric'], row['k'])}: {value_text(row['metric'], row['value'])}"
    inside = interval_text(row["metric"], row["low"], row["high"])
    return f"{name} {text}".strip() + (f" ({inside})" if inside else "")


def _line(rows: Sequence[dict[str, Any]], label: str, colour: int) -> svg.Line:
    return svg.Line(
        [row["k"] for row in rows],
        [row["value"] for row in rows],
        label,
        [row["low"] for row in rows],
        [row["high"] for row in rows],
        colour,
        notes=[_note(row, label) for row in rows],
    )


def _share_axis(rows: Sequence[dict[str, Any]]) -> svg.Axis:
    highest = max(row["high"] for row in rows)
    return svg.Axis(0.0, min(1.0, max(0.05, highest * 1.05)), text=lambda v: f"{100 * v:.0f}%")


def _curves(numbers: ModeComparison, metric: str, colours: dict[str, int]) -> Picture | None:
    """Accuracy against the number of samples, a line for each run; nothing where no run has two points."""
    rows = {letter: those for letter in numbers.runs if (those := numbers.rows(letter, metric))}
    if not any(len(those) > 1 for those in rows.values()):
        return None
    lines = [_line(those, letter, colours[letter]) for letter, those in rows.items()]
    every = [row for those in rows.values() for row in those]
    least, most = min(row["k"] for row in every), max(row["k"] for row in every)
    words = "; ".join(f"{_note(those[0], letter)}, {_note(those[-1])}" for letter, those in rows.items())
    chart = svg.line_chart(
        lines,
        x=svg.Axis(least, most, "candidates (k)" if metric == "genselect@k" else "samples (k)", log=True),
        y=_share_axis(every),
        title=CURVES[metric],
        description=words,
    )
    return Picture(CURVES[metric], chart)


def _by_run(numbers: ModeComparison) -> Picture | None:
    """Accuracy of one run after the other, in the order in which they were named (paper Figure 4)."""
    lines, every = [], []
    for colour, metric in enumerate(("pass@k", "maj@k", "genselect@k")):
        of_run = [{row["k"]: row for row in numbers.rows(letter, metric)} for letter in numbers.runs]
        shared = set.intersection(*(set(rows) for rows in of_run))
        ks = [1, max(shared)] if metric == "pass@k" and shared else [max(shared)] if shared else []
        for k in dict.fromkeys(ks):
            if k == 1 and metric == "maj@k":
                continue
            rows = [by_k[k] for by_k in of_run]
            label = metric_name(rows[0]["metric"], k)
            notes = [_note(row, letter) for letter, row in zip(numbers.runs, rows, strict=True)]
            lines.append(
                svg.Line(
                    list(range(len(rows))),
                    [row["value"] for row in rows],
                    label,
                    [row["low"] for row in rows],
                    [row["high"] for row in rows],
                    3 if metric == "pass@k" and k > 1 else colour,
                    notes=notes,
                )
            )
            every += rows
    if not lines:
        return None
    title = "Accuracy by run, in the order given"
    words = "; ".join(note for line in lines for note in line.notes)
    names = {float(n): letter for n, letter in enumerate(numbers.runs)}
    x = NamedAxis(-0.25, len(names) - 0.75, "run", text=names.__getitem__, names=names)
    return Picture(title, svg.line_chart(lines, x=x, y=_share_axis(every), title=title, description=words))


def _stairs(edges: Sequence[float], shares: Sequence[float], label: str, colour: int) -> svg.Line:
    """Return the outline of a histogram."""
    x = [edge for edge in edges for _ in (0, 1)]
    y = [0.0, *(share for share in shares for _ in (0, 1)), 0.0]
    return svg.Line(x, y, label, colour=colour)


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def _histogram(
    edges: Sequence[float], counts: dict[str, list[int]], colours: dict[str, int], x: svg.Axis, title: str, words: str
) -> Picture:
    shares = {letter: _shares(of_run) for letter, of_run in counts.items()}
    lines = [_stairs(edges, of_run, "", colours[letter]) for letter, of_run in shares.items()]
    highest = max(max(of_run) for of_run in shares.values())
    y = svg.Axis(0.0, highest * 1.05, text=lambda v: f"{100 * v:.0f}%")
    return Picture(title, svg.line_chart(lines, x=x, y=y, title=title, description=words))


def _lengths(numbers: ModeComparison, colours: dict[str, int]) -> Picture | None:
    if not numbers.lengths:
        return None
    words = "; ".join(
        f"{letter}: half of the solutions have at most {q['median']:,.0f} tokens, nine of ten at most {q['p90']:,.0f}, "
        f"the longest {q['longest']:,.0f}"
        for letter, q in numbers.quantiles.items()
    )
    edges = numbers.length_edges
    x = svg.Axis(edges[0], edges[-1], "tokens of a solution", text=_thousands)
    return _histogram(edges, numbers.lengths, colours, x, LENGTH_TITLE, words)


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _pass_rates(numbers: ModeComparison, colours: dict[str, int]) -> Picture | None:
    if not numbers.pass_rates:
        return None
    words = "; ".join(
        f"{letter}: {counts[0]} problems have no right sample, {counts[-1]} have right ones only"
        for letter, counts in numbers.pass_rates.items()
    )
    edges = list(range(TENTHS + 3))  # none, ten tenths, all
    names = {0.5: "none", **{1 + TENTHS * share: f"{share:.0%}" for share in (0.25, 0.5, 0.75)}, TENTHS + 1.5: "all"}
    x = NamedAxis(edges[0], edges[-1], "share of right samples", text=names.__getitem__, names=names)
    return _histogram(edges, numbers.pass_rates, colours, x, RATES_TITLE, words)
