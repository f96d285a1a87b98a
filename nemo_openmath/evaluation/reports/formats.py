"""Write numbers as people read them. The console and the page show the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_openmath.core.records import Manifest, Mode
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.evaluation.metrics import UNBOUNDED

_NAMES = {
    "called": "called code",
    "code_calls": "code calls per solution",
    "tokens": "tokens per solution",
    "unfinished": "unfinished",
    "genselect-single@k": "GenSelect@k, one round",
    "genselect@k": "GenSelect@k",
}
_MODES: dict[str, str] = {Mode.COT: "CoT", Mode.TIR: "TIR", Mode.GENSELECT: "GenSelect"}


def metric_name(metric: str, k: int | None = None) -> str:
    """Return a metric's name with its k: ``maj@k`` and 8 give ``maj@8``."""
    name = _NAMES.get(metric, metric)
    return name if k is None else name.replace("@k", f"@{k}")


def mode_name(mode: str) -> str:
    return _MODES.get(mode, mode)


def checkpoint_name(label: str) -> str:
    """Return the name of a label: ``iteration2`` gives ``iteration 2``. Labels are identifiers, names are read."""
    head = label.rstrip("0123456789")
    return f"{head} {label[len(head) :]}" if head == "iteration" and head != label else label


def value_text(metric: str, value: float) -> str:
    """Write a share in percent and an amount as it is."""
    if metric in UNBOUNDED:
        return _rounded(value, 0 if abs(value) >= 100 else 1)
    return f"{_rounded(100 * value, 1)}%"


def _rounded(value: float, digits: int) -> str:
    """Write a number with so many decimals, and no minus in front of a zero."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def interval_text(metric: str, low: float | None, high: float | None) -> str:
    """Write ``40.1–50.3`` in the unit of :func:`value_text`; the text is empty where there is no interval.

    Nothing that is counted here can be below zero, so no interval is shown to begin there.
    """
    if low is None or high is None or low == high:
        return ""
    low, high = max(0.0, low), max(0.0, high)
    return f"{value_text(metric, low)}–{value_text(metric, high)}".replace("%", "")


def points_text(value: float | None) -> str:
    """Write a difference of shares in percentage points, always signed, with a true minus sign."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def seconds_text(seconds: float) -> str:
    """Write seconds as ``0.4 s``, ``12 s``, ``4 min 05 s`` or ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(size: float) -> str:
    """Write bytes as ``12 MB`` or ``590.4 GB``, in powers of ten as disks are sold."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def drops_text(drops: Mapping[str, int], limit: int | None = None) -> str:
    """Write ``12 reason; 3 other reason``, the most frequent first. Reasons beyond ``limit`` are summed up."""
    ranked = sorted(drops.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked if limit is None or len(ranked) <= limit + 1 else ranked[:limit]  # one more is as short as its sum
    parts = [f"{count:,} {reason}" for reason, count in shown]
    if len(shown) < len(ranked):
        others = ranked[len(shown) :]
        parts.append(f"{sum(count for _, count in others):,} for {len(others)} other reasons")
    return "; ".join(parts)


def count_text(count: int, noun: str, plural: str = "") -> str:
    """Write ``1 unit`` or ``2 units``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def made_text(manifest: Manifest) -> str:
    """Return what a finished stage made, in its own units."""
    counts, metrics = manifest.counts, manifest.metrics
    if manifest.stage == "competition.solve" and "right" in metrics:
        return f"{count_text(counts['units'], 'answer')}, {metrics['right']} right"
    if counts.get("units") or counts.get("records"):
        return count_text(counts["records"], "record")
    if "packs" in metrics:
        return f"{count_text(metrics['packs'], 'pack')} of {count_text(metrics['samples'], 'sample')}"
    if "samples" in metrics and "tokens" in metrics:
        return f"{count_text(metrics['samples'], 'sample')}, {count_text(metrics['tokens'], 'token')}"
    if metrics.get("steps"):
        loss = f", loss {metrics['loss']:.3f}" if isinstance(metrics.get("loss"), float) else ""
        return f"{count_text(metrics['steps'], 'step')}{loss}"
    for metric, noun in (("results", "metric"), ("paired", "comparison")):
        if metric in metrics:
            return count_text(len(metrics[metric]), noun)
    if "averaged" in metrics:
        return f"a model of {count_text(len(metrics['averaged']), 'checkpoint')}"
    stage = stage_kinds().get(manifest.stage)
    return "nothing" if stage is not None and stage.makes == "records" else "done"


def apart_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each mode of a checkpoint of which problems are in no mean."""
    return [
        f"{checkpoint_name(row['checkpoint'])}, {mode_name(row['mode'])}: {row['problems']:,} of {row['of']:,} "
        "problems are in no mean: the model could not be asked (longer than its context, or refused), "
        f"for example {row['example']}"
        for row in rows
    ]


def in_order(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values in order of their first appearance."""
    return list(dict.fromkeys(values))


def main_rows(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int | None]]:
    """Return (mode, metric, k) of the lines of a results table that fits a page.

    Each metric is shown at the largest k that all checkpoints of the mode have, else at the largest. Code calls are
    left out of modes that make none.
    """
    rows = list(rows)
    coded = {r["mode"] for r in rows if r["metric"] == "code_calls" and r["value"] > 0}
    rows = [r for r in rows if r["metric"] != "code_calls" or r["mode"] in coded]
    lines: list[tuple[str, str, int | None]] = []
    for mode, metric in in_order((r["mode"], r["metric"]) for r in rows):
        ks: dict[str, set[int | None]] = {}
        for row in rows:
            if (row["mode"], row["metric"]) == (mode, metric):
                ks.setdefault(row["checkpoint"], set()).add(row["k"])
        shared = set.intersection(*ks.values()) or set.union(*ks.values())
        lines.append((mode, metric, max(shared, key=lambda k: k or 0)))
    return lines
