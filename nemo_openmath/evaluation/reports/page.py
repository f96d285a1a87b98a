"""Make the sections of the report page: from the run's data to what the template prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import orjson
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from nemo_openmath.chat import Kind, Transcript
from nemo_openmath.core.records import Mode
from nemo_openmath.evaluation.metrics import UNBOUNDED
from nemo_openmath.evaluation.reports import figures, formats, svg
from nemo_openmath.evaluation.reports.controls import controls_section
from nemo_openmath.evaluation.reports.economics import economics_section
from nemo_openmath.evaluation.reports.formats import checkpoint_name, in_order, metric_name, mode_name, value_text
from nemo_openmath.evaluation.reports.problem_set import problem_set_section
from nemo_openmath.evaluation.reports.view import Example, Funnel, RunView, TableRows, TrainingCurves

PAGES = ("report.html.j2", "problem_set.html.j2", "controls.html.j2", "samples.html.j2")
SHOWN_CHARACTERS = 8000
"""Most characters of one segment of a transcript. The page says how many are left out."""


def render(run: RunView, curves: Mapping[str, TrainingCurves]) -> str:
    """Return the page as one HTML document that asks nothing of the network."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            css=Markup(text_of("report.css")),
            lead=lead(run),
            results=results(run.results),
            apart=formats.apart_lines(run.apart),
            checkpoints=[checkpoint_name(label) for label in in_order(r["checkpoint"] for r in run.results)],
            differences=differences(run.paired),
            samples=figures.samples(run.results, run.selection_of),
            training=[figures.training(name, of_stage) for name, of_stage in curves.items() if of_stage.steps],
            funnels=[funnel(table) for table in run.funnel],
            drops=[stage for stage in run.stages if stage.drops and stage.current],
            competition=competition(run.competition),
            iterations=iterations(run.iterations),
            examples=[example(e) for e in run.examples],
            economics=economics_section(run.economics),
            problem_set=problem_set_section(run.problem_set),
            controls=controls_section(run.controls),
            times=times(run),
            config=config(run),
            lineage=Markup(run.lineage),
            jobs=Markup(run.jobs),  # it quotes its texts itself
            total=sum(stage.seconds for stage in run.stages),
        )
    )


def lead(run: RunView) -> list[dict[str, str]]:
    """Return the few numbers to see first: pass@1 at the first and the last checkpoint, and what was gained."""
    pass_at_1 = {(r["mode"], r["checkpoint"]): r for r in run.results if r["metric"] == "pass@1"}
    modes = in_order(mode for mode, _ in pass_at_1)
    mode = Mode.TIR if Mode.TIR in modes else modes[0] if modes else None
    labels = [checkpoint for m, checkpoint in pass_at_1 if m == mode]
    tiles = []
    for label in in_order([labels[0], labels[-1]] if labels and mode else []):
        row = pass_at_1[str(mode), label]
        tiles.append(
            {
                "name": f"{mode_name(str(mode))} pass@1, {checkpoint_name(label)}",
                "value": value_text("pass@1", row["value"]),
                "note": formats.interval_text("pass@1", row["low"], row["high"]),
            }
        )
    sides = (mode, mode, "pass@1", labels[0], labels[-1]) if labels else None
    keys = ("mode_before", "mode_after", "metric", "checkpoint_before", "checkpoint_after")
    for row in run.paired:
        if tuple(row[key] for key in keys) == sides:
            note = f"{formats.points_text(row['low'])} to {formats.points_text(row['high'])}, paired"
            tiles.append({"name": "gain in points", "value": formats.points_text(row["difference"]), "note": note})
            break
    if run.results:
        problems = max(row["problems"] for row in run.results)
        tiles.append({"name": "held-out problems", "value": f"{problems:,}", "note": "intervals are over these"})
    if total := sum(stage.seconds for stage in run.stages):
        note = f"{len(run.stages)} stages, all runs of them"
        if run.waited is not None:
            note += f"; the last run took {formats.seconds_text(run.waited)}"
        tiles.append({"name": "time in stages", "value": formats.seconds_text(total), "note": note})
    return tiles


def results(rows: TableRows) -> list[dict[str, Any]]:
    """Return groups (one a mode) of lines (one a metric) of cells (one a checkpoint)."""
    checkpoints = in_order(row["checkpoint"] for row in rows)
    cells = {(row["checkpoint"], row["mode"], row["metric"], row["k"]): row for row in rows}
    groups: dict[str, list[dict[str, Any]]] = {}
    for mode, metric, k in formats.main_rows(rows):
        line = [_cell(metric, cells.get((label, mode, metric, k))) for label in checkpoints]
        groups.setdefault(mode, []).append({"name": metric_name(metric, k), "cells": line})
    return [{"name": mode_name(mode), "lines": lines} for mode, lines in groups.items()]


def _cell(metric: str, row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    low, high = row["low"], row["high"]
    return {
        "value": value_text(metric, row["value"]),
        "range": formats.interval_text(metric, low, high),
        "bar": "" if metric in UNBOUNDED else svg.interval(row["value"], low, high),
    }


def differences(rows: TableRows) -> list[dict[str, Any]]:
    """Return the paired differences on one scale, with a word for what each interval says."""
    shares = [r for r in rows if r["metric"] not in UNBOUNDED]
    start = min([0.0, *(r["low"] for r in shares)])
    end = max([0.0, *(r["high"] for r in shares)])
    pad = 0.05 * (end - start)
    out = []
    for row in rows:
        unbounded = row["metric"] in UNBOUNDED
        low, high, value = row["low"], row["high"], row["difference"]
        text: Callable[[float | None], str] = _signed if unbounded else formats.points_text
        verdict = "unclear" if low is None or low <= 0 <= high else "higher" if low > 0 else "lower"
        out.append(
            {
                "name": _pair_name(row),
                "before": value_text(row["metric"], row["before"]),
                "after": value_text(row["metric"], row["after"]),
                "value": text(value),
                "range": "" if low is None else f"{text(low)} to {text(high)}",
                "bar": "" if unbounded else svg.interval(value, low, high, start=start - pad, end=end + pad, zero=True),
                "verdict": verdict,
                "word": {"unclear": "no clear difference"}.get(verdict, verdict),
                "problems": row["problems"],
            }
        )
    return out


def iterations(loop: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of a loop's table and the sentence below it; empty where there is no loop."""
    if not loop:
        return {}
    rows = []
    for row in loop["iterations"]:
        gain = row["gain"]
        rows.append(
            {
                "name": f"{row['iteration']}: {row['model']}",
                "value": value_text("share", row["value"]),
                "range": formats.interval_text("share", row["low"], row["high"]),
                "bar": svg.interval(row["value"], row["low"], row["high"]),
                "gain": "" if gain is None else f"{formats.points_text(gain['difference'])} over {gain['over']}",
                "gain_range": ""
                if gain is None or gain["low"] is None
                else f"{formats.points_text(gain['low'])} to {formats.points_text(gain['high'])}",
                "word": "the best"
                if row["is_best"]
                else "below its interval"
                if gain and gain["below_interval"]
                else "",
                "tokens": f"{row['tokens']:,}",
            }
        )
    stop, ended = loop["stop"], "The last iteration (most)." if loop["is_over"] else "Not ended."
    if stop is not None:
        ended = f"Ended after iteration {stop['iteration']} of at most {loop['most']}: {stop['reason']}."
    return {"metric": loop["metric"], "rows": rows, "ended": ended}


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1
    text = f"{value:+,.{digits}f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _pair_name(row: Mapping[str, Any]) -> str:
    before, arrow, after = row["metric"].partition(" -> ")
    left, right = _side(row["mode_before"], before), _side(row["mode_after"], after if arrow else before)
    old, new = checkpoint_name(row["checkpoint_before"]), checkpoint_name(row["checkpoint_after"])
    if left == right:
        return f"{left}: {old} → {new}"
    return f"{old}: {left} → {right}" if old == new else f"{old}, {left} → {new}, {right}"


def _side(mode: str, name: str) -> str:
    """Name one side: ``tir`` and ``maj@8`` give ``TIR maj@8``. ``genselect@8`` names its mode itself."""
    family, at, k = name.partition("@")
    known = name if name in ("pass@1", *UNBOUNDED) or not at else f"{family}@k"
    text = metric_name(known, int(k) if at else None)
    return text if mode == Mode.GENSELECT and text.startswith("GenSelect") else f"{mode_name(mode)} {text}"


def funnel(table: Funnel) -> dict[str, Any]:
    """Return steps with what each changed, or parts with their share of the whole."""
    counts = [count for _, count in table.steps]
    whole = max(1, sum(counts))
    top = max([1, *counts])
    lines = [
        {
            "name": name,
            "count": f"{count:,}",
            "share": f"{count / whole:.1%}" if table.parts else _change(counts[i - 1], count) if i else "",
            "bar": svg.bar(count / top, 1 if table.parts else 0),
        }
        for i, (name, count) in enumerate(table.steps)
    ]
    return {"table": table, "lines": lines, "whole": f"{whole:,}"}


def competition(rows: TableRows) -> list[dict[str, str]]:
    """Return the score of each competition as text."""
    return [
        {
            "name": f"{row['model']} ({row['stage']})",
            "right": f"{row['right']} of {row['problems']}",
            "share": value_text("share", row["value"]),
            "range": formats.interval_text("share", row["low"], row["high"]),
            "answered": str(row["answered"]),
            "time": formats.seconds_text(row["seconds"]),
        }
        for row in rows
    ]


def _change(before: int, after: int) -> str:
    if before == after:
        return "no change"
    share = f" ({(after - before) / before:+.1%})" if before else ""
    return f"{after - before:+,}{share}".replace("-", "−")


def example(shown: Example) -> dict[str, Any]:
    """Return the prompt and the segments of a transcript."""
    transcript = Transcript.from_json(dict(shown.transcript))
    parts = []
    for segment in transcript.segments():
        body = (
            segment.body.strip("\n") if segment.kind in (Kind.CODE, Kind.OUTPUT, Kind.NOTICE) else segment.text.strip()
        )
        left_out = max(0, len(body) - SHOWN_CHARACTERS)
        if body:
            parts.append({"kind": str(segment.kind), "text": body[:SHOWN_CHARACTERS], "left_out": left_out})
    return {"shown": shown, "messages": transcript.messages, "parts": parts, "ended": transcript.finished}


def times(run: RunView) -> list[dict[str, Any]]:
    """Return the time of each stage, with what it made."""
    longest = max((stage.seconds for stage in run.stages), default=0.0) or 1.0
    return [
        {
            "stage": stage,
            "seconds": formats.seconds_text(stage.seconds) if stage.manifest else "",
            "made": formats.made_text(stage.manifest) if stage.manifest else "",
            "bar": svg.bar(stage.seconds / longest, 0),
        }
        for stage in run.stages
    ]


def config(run: RunView) -> list[dict[str, Any]]:
    """Return the settings by section, which is the first part of the dotted key."""
    sections: dict[str, list[dict[str, str]]] = {}
    for setting in run.config:
        value = setting.value if isinstance(setting.value, str) else orjson.dumps(setting.value, default=str).decode()
        section, dot, key = setting.key.partition(".")
        line = {"key": key if dot else section, "value": value, "origin": setting.origin}
        sections.setdefault(section if dot else "recipe", []).append(line)
    return [{"name": name, "lines": lines} for name, lines in sections.items()]


@cache
def environment() -> Environment:
    """Return the templates of the pages. What is filled into them is escaped."""
    environment = Environment(
        loader=DictLoader({name: text_of(name) for name in PAGES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = formats.seconds_text
    return environment


def text_of(name: str) -> str:
    """Return a file of ``templates``."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
