"""Make tables for the terminal, in the same numbers as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nemo_openmath.evaluation.reports.formats import (
    checkpoint_name,
    count_text,
    drops_text,
    in_order,
    interval_text,
    made_text,
    main_rows,
    metric_name,
    mode_name,
    points_text,
    seconds_text,
    value_text,
)
from nemo_openmath.evaluation.reports.view import StageView

_STATES = {
    "finished": "green",
    "started": "yellow",
    "stale": "yellow",
    "damaged": "red",
    "waiting": "dim",
    "not needed": "dim",
}


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with modes and metrics down, checkpoints across, and 95% intervals beside the values."""
    checkpoints = in_order(row["checkpoint"] for row in rows)
    table = Table(title="Results (95% intervals over problems)", title_justify="left", title_style="bold")
    table.add_column("metric", min_width=12)
    for label in checkpoints:
        table.add_column(checkpoint_name(label), justify="right", no_wrap=True)
    cells = {(row["checkpoint"], row["mode"], row["metric"], row["k"]): row for row in rows}
    section = None
    for mode, metric, k in main_rows(rows):
        if mode != section:
            table.add_section()
            table.add_row(Text(mode_name(mode), style="bold"))
        section = mode
        line: list[str | Text] = [metric_name(metric, k)]
        for label in checkpoints:
            row = cells.get((label, mode, metric, k))
            line.append("–" if row is None else _cell(metric, row))
        table.add_row(*line)
    return table


def competition_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each competition."""
    return [
        f"competition ({row['stage']}, {row['model']}): {row['right']} of {row['problems']} right, "
        f"{value_text('share', row['value'])} ({interval_text('share', row['low'], row['high'])}); "
        f"{row['answered']} answered, {seconds_text(row['seconds'])} used"
        for row in scores
    ]


def iteration_lines(loop: Mapping[str, Any]) -> list[str]:
    """Return a line for each iteration of a loop, and one that says why it ended (RunView.iterations)."""
    if not loop:
        return []
    lines = [f"iterations, by {loop['metric']} on the held-out problems:"]
    for row in loop["iterations"]:
        text = f"  {row['iteration']} {row['model']}: {value_text('share', row['value'])}"
        text += f" ({interval_text('share', row['low'], row['high'])})"
        if (gain := row["gain"]) is not None:
            text += f", {points_text(gain['difference'])} points over {gain['over']}"
            if gain["low"] is not None:
                text += f" ({points_text(gain['low'])} to {points_text(gain['high'])}, paired)"
            text += ": below its interval" if gain["below_interval"] else ""
        text += f"; {count_text(row['tokens'], 'token')} sampled" if row["tokens"] else ""
        lines.append(text + ("; the best" if row["is_best"] else ""))
    if loop["stop"] is not None:
        reason = loop["stop"]["reason"]
        lines.append(f"ended after iteration {loop['stop']['iteration']} of at most {loop['most']}: {reason}")
    elif loop["is_over"]:
        lines.append(f"ended after iteration {loop['most']}, the last one (most)")
    return lines


def _cell(metric: str, row: Mapping[str, Any]) -> Text:
    text = Text(value_text(metric, row["value"]), style="bold" if metric == "pass@1" else "")
    return text.append(f"  {interval_text(metric, row['low'], row['high'])}", style="not bold dim")


def status_table(stages: Sequence[StageView]) -> Table:
    """Return a table of the stages: state, what each made, its time, and its drops by reason."""
    table = Table(title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("made")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("dropped")
    for stage in stages:
        manifest = stage.manifest
        begun = count_text(stage.units, "unit") if stage.units else ""
        table.add_row(
            stage.name,
            Text(stage.state, style=_STATES.get(stage.state, "")),
            made_text(manifest) if manifest else begun,
            seconds_text(stage.seconds) if manifest else "",
            Text(drops_text(stage.drops, limit=4)),
        )
    return table
