"""What scoring again changed, for the terminal: the numbers of changes.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from nemo_openmath.evaluation.metrics import UNBOUNDED, split_name
from nemo_openmath.evaluation.reports.formats import metric_name, mode_name, points_text, value_text

ROWS = 20
"""Most pairs of reasons, and most problems, that are printed. The file has all."""
_CHARS = 40


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of changed verdicts by pair of reasons, with the first example of each."""
    table = Table(title="Verdicts that changed", title_justify="left", title_style="bold")
    for name in ("mode", "before", "after"):
        table.add_column(name)
    table.add_column("number", justify="right")
    table.add_column("first example")
    for row in rows[:ROWS]:
        table.add_row(
            mode_name(row["mode"]),
            f"{row['old_verdict']}: {row['old_reason']}",
            f"{row['new_verdict']}: {row['new_reason']}",
            f"{row['generations']:,}",
            _example_text(row["examples"][0]),
        )
    return table


def _example_text(example: Mapping[str, Any]) -> str:
    answer, old = _short(example["answer"]), _short(example["answer_before"])
    both = answer if answer == old else f"{old} → {answer}"
    return f"{both} for {_short(example['expected'])} ({example['generation']})"


def _short(text: str | None) -> str:
    if text is None:
        return "no answer"
    line = " ".join(text.split())
    return line if len(line) <= _CHARS else f"{line[:_CHARS]}…"


def metric_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return every metric before and after, with the paired difference and its interval."""
    table = Table(title="Metrics (paired 95% intervals over problems)", title_justify="left", title_style="bold")
    for name in ("mode", "metric"):
        table.add_column(name)
    for name in ("before", "after", "difference", "better", "worse"):
        table.add_column(name, justify="right")
    for row in rows:
        metric = row["metric"]
        family, k = split_name(metric)
        table.add_row(
            mode_name(row["mode_before"]),
            metric_name(family, None if family == "pass@1" else k),
            value_text(family, row["before"]),
            value_text(family, row["after"]),
            difference_text(family, row["difference"], row["low"], row["high"]),
            str(row["better"]),
            str(row["worse"]),
        )
    return table


def difference_text(metric: str, value: float, low: float | None, high: float | None) -> str:
    """Write a difference with its interval: ``+1.5 (−0.2 to +3.1)``; amounts in their own unit."""
    if metric in UNBOUNDED:
        signed = [None if v is None else f"{v:+,.1f}".replace("-", "−") for v in (value, low, high)]
    else:
        signed = [points_text(v) or None for v in (value, low, high)]
    interval = f" ({signed[1]} to {signed[2]})" if signed[1] and signed[2] else ""
    return f"{signed[0]}{interval}"


def change_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sentences above and below the tables."""
    yield (
        f"{told['generations']:,} generations scored again: {told['changed']:,} verdicts changed, "
        f"{told['other_answer']:,} answers, and {told['other_reason']:,} times the reason alone"
    )
    if told["not_graded_before"]:
        yield f"{told['not_graded_before']:,} had no verdict before, so no metric has a value before"
    for mode, number in told["unknown_counts"].items():
        yield (
            f"{mode_name(mode)}: tokens and code calls are not shown: of {number:,} solutions it is not known how many "
            "of their tokens before the limit are the model's"
        )


def turn_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each mode and metric: which problems turned."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["metric"], row["right"]), []).append(row["problem"])
    for (mode, metric, right), problems in groups.items():
        family, k = split_name(metric)
        name = metric_name(family, None if family == "pass@1" else k)
        shown = ", ".join(problems[:ROWS]) + (f" and {len(problems) - ROWS} more" if len(problems) > ROWS else "")
        number = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        yield f"{number} now {'right' if right else 'wrong'} by {mode_name(mode)} {name}: {shown}"
