"""Tables for the terminal, in the same numbers as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nemo_openmath.reports.formats import (
    checkpoint_name,
    drops_text,
    in_order,
    interval_text,
    main_rows,
    metric_name,
    mode_name,
    seconds_text,
    value_text,
)
from nemo_openmath.reports.view import StageView

_STATES = {"finished": "green", "started": "yellow", "stale": "yellow", "failed": "red", "waiting": "dim"}


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Modes and metrics down, checkpoints across, 95% intervals beside the values."""
    checkpoints = in_order(row["checkpoint"] for row in rows)
    table = Table(title="Results (95% intervals over problems)", title_justify="left", title_style="bold")
    table.add_column("mode")
    table.add_column("metric")
    for label in checkpoints:
        table.add_column(checkpoint_name(label), justify="right", no_wrap=True)
    cells = {(row["checkpoint"], row["mode"], row["metric"], row["k"]): row for row in rows}
    shown = None
    for mode, metric, k in main_rows(rows):
        line: list[str | Text] = [mode_name(mode) if mode != shown else "", metric_name(metric, k)]
        if shown not in (None, mode):
            table.add_section()
        shown = mode
        for label in checkpoints:
            row = cells.get((label, mode, metric, k))
            line.append("–" if row is None else _cell(metric, row))
        table.add_row(*line)
    return table


def _cell(metric: str, row: Mapping[str, Any]) -> Text:
    text = Text(value_text(metric, row["value"]), style="bold" if metric == "pass@1" else "")
    return text.append(f"  {interval_text(metric, row['low'], row['high'])}", style="not bold dim")


def status_table(stages: Sequence[StageView]) -> Table:
    """Stage, state, units, records, time, drops by reason."""
    table = Table(title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("units", "records", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("dropped")
    for stage in stages:
        manifest = stage.manifest
        records = manifest.counts.get("records") if manifest else None
        table.add_row(
            stage.name,
            Text(stage.state, style=_STATES.get(stage.state, "")),
            f"{stage.units:,}" if stage.units else "",
            f"{records:,}" if records is not None else "",
            seconds_text(stage.seconds) if manifest else "",
            Text(drops_text(stage.drops, limit=4)),
        )
    return table
