"""A trace as text for people: a paragraph for each record, then the models, then the texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.types import Generation, Group, Problem, SftRow, Thread
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.data.records.shown import excerpt, printable, texts_of, transcript_of
from nemo_openmath.recipe.lineage.trace import (
    TRANSCRIPT,
    ModelStep,
    RecordVersion,
    Trace,
    TracedRecord,
    asked_of,
)

SHORT = 1500
"""Characters of a text that are printed, unless all are asked for."""
_PARENTS = 4  # ids that are named in a line
_VALUE = 60  # characters of a value
_MADE = {
    Generation: ("predicted_answer", "expected_answer", "verdict", "verdict_reason", "finish", "completion_tokens"),
    Problem: ("category", "problem_type", "expected_answer", "pass_rate"),
    SftRow: ("mode", "expected_answer", "problem_source", "pass_rate"),
    Group: ("answers", "correct", "expected_answer"),
    Thread: (),
}
"""Type -> the fields that are shown where a record was made."""
_QUIET = ("parents", "problem_id", "sample", "prompt_tokens", "runner_tokens", "budget", "thinks")


def trace_lines(trace: Trace, *, full: bool = False) -> Iterator[str]:
    """Yield the lines of a trace. ``full``: with all texts of all records, whole."""
    names = {record.id: number for number, record in enumerate(trace.records, 1)}
    for record in trace.records:
        yield f"{names[record.id]}. {record.id}  {_title(record)}"
        yield from (f"   {line}" for line in _record_lines(record, names))
        if record is trace.records[0]:
            yield from (f"   {at.stage:<12} {at.place}" for at in trace.packed)
            if trace.made_of:
                counts = ", ".join(f"{count:,} in {stage}" for stage, count in reversed(trace.made_of.items()))
                yield f"   records that name it: {counts}"
    if trace.left_out:
        yield f"{trace.left_out:,} more ancestors were not followed"
    for model, steps in trace.models.items():
        yield ""
        yield f"model {model}"
        yield from (f"   {line}" for line in _model_lines(model, steps))
    yield from _texts(trace, names, full)
    if trace.unfinished or trace.gone:
        yield ""
    for name, readers in trace.gone.items():
        yield f"gone: {name}, of which {', '.join(readers)} was made"
    if trace.unfinished:
        yield f"not finished, so that more may come: {', '.join(trace.unfinished)}"


def read_line(trace: Trace) -> str:
    """Return what was read for a trace, in words."""
    read = trace.read
    size = f"{read.size / 1e6:,.1f} MB"
    return f"read {read.lines:,} records, {read.files:,} files ({size}) of {len(read.folders)} stages"


def _title(record: TracedRecord) -> str:
    if record.kind is None:
        return "is in no folder: gone, or no record"
    values = record.last.values
    words = {
        Generation: f"a solution ({values.get('mode')}) by {values.get('model')}",
        SftRow: "a training row",
        Group: f"a group of {len(values.get('members', ()))} solutions",
        Problem: "a problem",
        Thread: "a thread",
    }
    return words.get(record.kind, record.kind.__name__)


def _record_lines(record: TracedRecord, names: dict[str, int]) -> Iterator[str]:
    if record.parents:
        shown = [f"{parent[:22]} ({names[parent]})" if parent in names else parent for parent in record.parents]
        more = f" and {len(shown) - _PARENTS:,} more" if len(shown) > _PARENTS else ""
        yield f"made from    {', '.join(shown[:_PARENTS])}{more}"
    told: set[str] = set()
    for version in record.versions:
        yield f"{version.stage.name:<12} {_version_text(version, record)}"
        if (version.before is None or version.changed) and (asked := _asked_text(version)):
            yield f"{'':<12} asked: {asked}"
        for line in _beside(record, version.stage.name):
            yield f"{'':<12} {line}"
        told.add(version.stage.name)
    for stage in dict.fromkeys([*(drop.stage.name for drop in record.drops), *(n.stage.name for n in record.notes)]):
        if stage not in told:
            for line in _beside(record, stage):
                yield f"{stage:<12} {line}"


def _beside(record: TracedRecord, stage: str) -> Iterator[str]:
    """Yield what a stage says of a record beside it."""
    for drop in record.drops:
        if drop.stage.name == stage:
            detail = f" ({excerpt(drop.detail, 160)})" if drop.detail else ""
            makes = stage_kinds()[drop.stage.kind].record if drop.stage.kind in stage_kinds() else record.kind
            yield f"{'dropped' if makes is record.kind else 'nothing made of it'}: {drop.reason}{detail}"
    for note in record.notes:
        if note.stage.name == stage:
            values = ", ".join(f"{name} {_text(value)}" for name, value in note.values.items() if name != "problem")
            yield f"{note.file.name.partition('-')[0]}: {values}"


def _version_text(version: RecordVersion, record: TracedRecord) -> str:
    merged = f" [{len(version.lines)} equal records are one]" if len(version.lines) > 1 else ""
    if version.problem:
        return f"contradiction: {version.problem}"
    if version.before is not None:
        if not version.changed:
            return f"unchanged from {version.before.name}{merged}"
        return f"{_changes(version)}{merged}"
    fields = _MADE.get(record.kind, ()) if record.kind is not None else ()
    values = [f"{name} {_text(version.values[name])}" for name in fields if version.values.get(name) is not None]
    kind = version.stage.kind or "records"
    made = f"made by {kind}"
    if version.read_from and any(other.made_here for other in record.versions):
        made = f"as {kind} left it, which read it from {version.read_from[0]}, and that is gone"
    elif version.read_from:
        types = {name.partition("-")[0] for name in record.parents}  # a stage may make records of those of their type
        or_made = f"made by {kind}, or its" if record.id.partition("-")[0] in types else "its"
        made = f"{or_made} maker is gone: {kind} read it from {' <- '.join(version.read_from)}"
    return f"{made}{': ' if values else ''}{', '.join(values)}{merged}"


def _changes(version: RecordVersion) -> str:
    parts = []
    for name, (before, after) in version.changed.items():
        if name == TRANSCRIPT:
            parts.append("another text")
        elif name not in _QUIET or before is not None:
            parts.append(f"{name}: {_text(before)} -> {_text(after)}")
    return "; ".join(parts) or "other bookkeeping alone"


def _asked_text(version: RecordVersion) -> str:
    asked = asked_of(version)
    if not asked:
        return ""
    prompts = [
        row["prompt"] + (f" (template {row['digest']})" if row["digest"] else "") for row in asked.pop("prompts")
    ]
    rest = ", ".join(f"{name} {_text(value)}" for name, value in asked.items() if name != "engine")
    with_prompt = f", with {' and '.join(prompts)}" if prompts else ""
    return f"{asked['engine']}{with_prompt}{', ' if rest else ''}{rest}"


def _text(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return excerpt("[" + ", ".join(map(_text, value)) + "]", 2 * _VALUE)
    if isinstance(value, dict):
        return excerpt("{" + ", ".join(f"{name} {_text(entry)}" for name, entry in value.items()) + "}", 2 * _VALUE)
    return f"{value:,}" if type(value) is int else excerpt(str(value), _VALUE)


def _model_lines(model: str, steps: list[ModelStep]) -> Iterator[str]:
    for step in steps:
        if step.kind:
            reads = f"  <- {', '.join(step.reads)}" if step.reads else ""
            yield f"{step.name:<12} {step.kind}: {step.made}{reads}"
        elif step.name == "teacher":
            yield f"{step.name:<12} the recipe's teacher: {excerpt(step.digest or '-', 100)}"
        else:
            yield f"{step.name:<12} a folder that no stage made{f', {step.digest[:23]}...' if step.digest else ''}"


def _texts(trace: Trace, names: dict[str, int], full: bool) -> Iterator[str]:
    """Yield the texts of the first record, of its problem and of the thread; with ``full`` those of all."""
    shown: set[Any] = set()
    for record in trace.records:
        if not record.versions or not (full or record is trace.records[0] or record.kind in (Problem, Thread)):
            continue
        for name, text in _texts_of(record):
            key = hash((name, text))
            if text.strip() and key not in shown:
                shown.add(key)
                body = printable(text.strip("\n"))
                left_out = len(body) - SHORT if not full else 0
                if left_out > 0:
                    body = f"{body[:SHORT]}\n... {left_out:,} more characters (--full)"
                yield ""
                yield f"--- {names[record.id]}. {name}"
                yield body


def _texts_of(record: TracedRecord) -> Iterator[tuple[str, str]]:
    values, line = record.last.values, record.last.lines[0]
    for name in ("problem", "forum_post", "forum_discussions"):
        if values.get(name) and record.kind in (Problem, Thread):
            yield name, str(values[name])
    try:
        transcript = transcript_of(line)
    except UserError as error:
        yield "its text", str(error)
        return
    if transcript is not None:
        yield from texts_of(transcript)
