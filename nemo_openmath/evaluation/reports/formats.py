"""Numbers as people read them; the same on the console and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_openmath.core.records import Manifest, Mode
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.evaluation.metrics import UNBOUNDED

_NAMES = {
    "code_calls": "code calls per solution",
    "tokens": "tokens per solution",
    "unfinished": "unfinished",
    "genselect-single@k": "GenSelect@k, one round",
    "genselect@k": "GenSelect@k",
}
_MODES: dict[str, str] = {Mode.COT: "CoT", Mode.TIR: "TIR", Mode.GENSELECT: "GenSelect"}


def metric_name(metric: str, k: int | None = None) -> str:
    """``maj@k``, 8 -> ``maj@8``."""
    name = _NAMES.get(metric, metric)
    return name if k is None else name.replace("@k", f"@{k}")


def mode_name(mode: str) -> str:
    return _MODES.get(mode, mode)


def checkpoint_name(label: str) -> str:
    """``iteration2`` -> ``iteration 2``: labels are identifiers, names are for reading."""
    head = label.rstrip("0123456789")
    return f"{head} {label[len(head) :]}" if head == "iteration" and head != label else label


def value_text(metric: str, value: float) -> str:
    """Shares in percent, counts as they are."""
    if metric in UNBOUNDED:
        return _rounded(value, 0 if abs(value) >= 100 else 1)
    return f"{_rounded(100 * value, 1)}%"


def _rounded(value: float, digits: int) -> str:
    """With so many decimals, and no minus in front of a zero."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def interval_text(metric: str, low: float | None, high: float | None) -> str:
    """``40.1–50.3``, in the unit of :func:`value_text`; empty where there is no interval. Nothing that is counted here
    can be below zero, so no interval is shown to begin there."""
    if low is None or high is None or low == high:
        return ""
    low, high = max(0.0, low), max(0.0, high)
    return f"{value_text(metric, low)}–{value_text(metric, high)}".replace("%", "")


def points_text(value: float | None) -> str:
    """A difference of shares in percentage points, always signed, with a true minus sign."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def seconds_text(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 05 s``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(size: float) -> str:
    """``12 MB``, ``590.4 GB``: of a disk, in powers of ten."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def drops_text(drops: Mapping[str, int], limit: int | None = None) -> str:
    """``12 reason; 3 other reason``, most frequent first; reasons beyond ``limit`` are summed up, not left out."""
    ranked = sorted(drops.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked if limit is None or len(ranked) <= limit + 1 else ranked[:limit]  # one more is as short as its sum
    parts = [f"{count:,} {reason}" for reason, count in shown]
    if len(shown) < len(ranked):
        rest = ranked[len(shown) :]
        parts.append(f"{sum(count for _, count in rest):,} for {len(rest)} other reasons")
    return "; ".join(parts)


def count_text(count: int, noun: str, plural: str = "") -> str:
    """``1 unit``, ``2 units``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def made_text(manifest: Manifest) -> str:
    """What a finished stage made, in its own units."""
    counts, facts = manifest.counts, manifest.metrics
    if manifest.stage == "competition.solve" and "right" in facts:
        return f"{count_text(counts['records'], 'answer')}, {facts['right']} right"
    if counts.get("units") or counts.get("records"):
        return count_text(counts["records"], "record")
    if "packs" in facts:
        return f"{count_text(facts['packs'], 'pack')} of {count_text(facts['samples'], 'sample')}"
    if "samples" in facts and "tokens" in facts:
        return f"{count_text(facts['samples'], 'sample')}, {count_text(facts['tokens'], 'token')}"
    if facts.get("steps"):
        loss = f", loss {facts['loss']:.3f}" if isinstance(facts.get("loss"), float) else ""
        return f"{count_text(facts['steps'], 'step')}{loss}"
    for fact, noun in (("results", "metric"), ("paired", "comparison")):
        if fact in facts:
            return count_text(len(facts[fact]), noun)
    if "averaged" in facts:
        return f"a model of {count_text(len(facts['averaged']), 'checkpoint')}"
    stage = stage_kinds().get(manifest.stage)
    return "nothing" if stage is not None and stage.makes == "records" else "done"


def apart_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each mode of a checkpoint of which problems are in no mean."""
    return [
        f"{checkpoint_name(row['checkpoint'])}, {mode_name(row['mode'])}: {row['problems']:,} of {row['of']:,} "
        "problems are in no mean: the model could not be asked (longer than its context, or refused), "
        f"for example {row['example']}"
        for row in rows
    ]


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def main_rows(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int | None]]:
    """(mode, metric, k) of the lines of a results table that fits a page: of each metric the largest k that all
    checkpoints of the mode have (else the largest). Code calls are left out of modes that make none."""
    rows = list(rows)
    coded = {r["mode"] for r in rows if r["metric"] == "code_calls" and r["value"] > 0}
    rows = [r for r in rows if r["metric"] != "code_calls" or r["mode"] in coded]
    out: list[tuple[str, str, int | None]] = []
    for mode, metric in in_order((r["mode"], r["metric"]) for r in rows):
        ks: dict[str, set[int | None]] = {}
        for row in rows:
            if (row["mode"], row["metric"]) == (mode, metric):
                ks.setdefault(row["checkpoint"], set()).add(row["k"])
        shared = set.intersection(*ks.values()) or set.union(*ks.values())
        out.append((mode, metric, max(shared, key=lambda k: k or 0)))
    return out
