"""Draw the figures of the report page: accuracy against samples, and the curves of trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from nemo_openmath.core.records import Mode
from nemo_openmath.evaluation.reports import formats, svg
from nemo_openmath.evaluation.reports.formats import checkpoint_name, in_order, metric_name, mode_name, value_text
from nemo_openmath.evaluation.reports.view import TableRows, TrainingCurves

_CURVES = (("pass@k", "pass", 0), ("maj@k", "majority", 1), ("genselect@k", "GenSelect", 2))
"""(Metric, label, colour) of the curves of a panel."""


def samples(rows: TableRows, selection_of: str) -> list[dict[str, Any]]:
    """Draw accuracy against the number of samples (paper Figure 2): a panel for each mode and checkpoint, one scale."""
    panels: list[tuple[str, str, list[svg.Line]]] = []
    for mode in in_order(r["mode"] for r in rows if r["metric"] == "maj@k"):
        for checkpoint in in_order(r["checkpoint"] for r in rows):
            lines = [
                line
                for metric, label, colour in _CURVES
                if (line := _sample_curve(rows, mode, checkpoint, metric, label, colour, selection_of)) is not None
            ]
            if any(len(line.x) > 1 for line in lines):
                panels.append((mode, checkpoint, lines))
    highest = max((h or v for _, _, lines in panels for p in lines for v, h in _tops(p)), default=1.0)
    most = max((line.x[-1] for _, _, lines in panels for line in lines), default=1.0)
    x = svg.Axis(1, most, "samples (k)", log=True)
    y = svg.Axis(0.0, min(1.0, max(0.05, highest * 1.05)), text=lambda v: f"{100 * v:.0f}%")
    out = []
    for mode, checkpoint, lines in panels:
        title = f"{mode_name(mode)}, {checkpoint_name(checkpoint)}"
        words = "; ".join(
            f"{p.label} {100 * p.y[0]:.1f}% at {p.x[0]:g}, {100 * p.y[-1]:.1f}% at {p.x[-1]:g}" for p in lines
        )
        chart = svg.line_chart(lines, x=x, y=y, title=f"Accuracy against samples: {title}", description=words)
        out.append({"title": title, "chart": chart})
    return out


def _tops(line: svg.Line) -> list[tuple[float, float | None]]:
    return list(zip(line.y, line.high or [None] * len(line.y), strict=True))


def _sample_curve(
    rows: TableRows, mode: str, checkpoint: str, metric: str, label: str, colour: int, selection_of: str
) -> svg.Line | None:
    if metric == "genselect@k":
        if mode != selection_of:
            return None
        mode = Mode.GENSELECT
    metrics = ("pass@1", "pass@k") if metric == "pass@k" else (metric,)
    points = sorted(
        (r for r in rows if r["checkpoint"] == checkpoint and r["mode"] == mode and r["metric"] in metrics),
        key=lambda r: r["k"],
    )
    if not points:
        return None
    notes = [
        f"{metric_name(metric, r['k'])}: {value_text(metric, r['value'])} "
        f"({formats.interval_text(metric, r['low'], r['high'])})"
        for r in points
    ]
    low, high = [r["low"] for r in points], [r["high"] for r in points]
    return svg.Line([r["k"] for r in points], [r["value"] for r in points], label, low, high, colour, notes=notes)


def training(name: str, curves: TrainingCurves) -> dict[str, Any]:
    """Return the facts of a training stage, and charts of its loss, gradient norm and learning rate."""
    steps = [float(step) for step in curves.steps]
    x = svg.Axis(steps[0], max(steps[-1], steps[0] + 1), "step")

    def chart(what: str, values: list[float], colour: int, text: Callable[[float], str], smoothed: bool) -> Markup:
        finite = [v for v in values if v == v and abs(v) != float("inf")] or [0.0]
        low, high = min(finite), max(finite)
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        start = 0.0 if low >= 0 and low < 0.35 * high else low - pad
        y = svg.Axis(start, high + pad, text=text)
        lines = [svg.Line(steps, values, faint=smoothed, colour=colour)]
        if smoothed:
            lines.append(svg.Line(steps, svg.smooth(values, max(1, len(values) // 60)), colour=colour))
        words = f"from {text(values[0])} at step {curves.steps[0]} to {text(values[-1])} at step {curves.steps[-1]}"
        return svg.line_chart(lines, x=x, y=y, title=f"{what} of {name}", description=words)

    last = curves.loss[-max(1, len(curves.loss) // 20) :]
    facts = [("steps", f"{curves.steps[-1]:,}"), ("loss at the end", f"{sum(last) / len(last):.3f}")]
    if curves.tokens:
        facts += [
            ("tokens", f"{curves.tokens:,}"),
            ("of them targets of the loss", f"{curves.trained_tokens / curves.tokens:.0%}"),
        ]
    if curves.seconds:
        facts.append(("time", formats.seconds_text(curves.seconds)))
        facts.append(("tokens per second", f"{curves.tokens / curves.seconds:,.0f}"))
    return {
        "name": name,
        "facts": facts,
        "charts": [
            ("Loss", chart("Loss", curves.loss, 0, lambda v: f"{v:.4g}", len(steps) > 20)),
            ("Gradient norm", chart("Gradient norm", curves.grad_norm, 1, lambda v: f"{v:.3g}", len(steps) > 20)),
            ("Learning rate", chart("Learning rate", curves.lr, 2, _power, False)),
        ],
    }


def _power(value: float) -> str:
    """Write ``3e-4``, which is short enough for an axis."""
    if value == 0:
        return "0"
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if abs(value) < 0.01 else f"{value:g}"
