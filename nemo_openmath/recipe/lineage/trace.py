"""All that a run knows of a record: its versions, what it was made from, who was asked, and what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_openmath.chat import load_template
from nemo_openmath.chat.prompts import FIELDS
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.merging import merge
from nemo_openmath.core.records.bodies import Body
from nemo_openmath.core.records.encoding import parse_record, record_type
from nemo_openmath.core.records.types import Record, SftRow
from nemo_openmath.data.packs.plan import PLAN as PACKS
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.records.stored import StoredRecord
from nemo_openmath.data.tokens.token_file import MANIFEST as TOKENS
from nemo_openmath.data.tokens.token_file import TokenFolder
from nemo_openmath.evaluation.reports.formats import made_text
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages, StageInput
from nemo_openmath.recipe.lineage.search import ReadCounts, RecordSearch, StoredDrop, StoredNote

TRANSCRIPT = "transcript"
_TEMPLATES = {
    "problems.extract": "extract-problems",
    "problems.classify": "classify",
    "problems.convert_proofs": "convert-proof",
    "problems.extract_answers": "extract-answer",
    "problems.decontaminate": "decontaminate",
    "solutions.summarize": "summarize",
    "judging.judge": "judge",
    "genselect.select": "genselect",
}
"""Kind of stage -> its shipped template; that of a rollout is named like its mode."""


@dataclass(frozen=True, slots=True)
class RecordVersion:
    """A record as one stage left it."""

    stage: RunStage
    lines: list[StoredRecord]
    """Its lines there: several where equal records are one."""
    values: dict[str, Any]
    """All fields, those of ``extra`` under their own names (``extra.source``); of the transcript its digest."""
    before: RunStage | None
    """The stage whose version it continues; None where it was made here."""
    changed: dict[str, tuple[Any, Any]]
    """Field -> (value in the version before, value now)."""
    problem: str = ""
    """Why equal records are none, where they contradict each other."""


@dataclass(frozen=True, slots=True)
class TracedRecord:
    """A record with all that is stored about it."""

    id: str
    kind: type[Record] | None
    """None where it is in no folder."""
    versions: list[RecordVersion]
    parents: list[str]
    drops: list[StoredDrop]
    notes: list[StoredNote]

    @property
    def last(self) -> RecordVersion:
        return self.versions[-1]

    @property
    def first(self) -> RecordVersion:
        return self.versions[0]


@dataclass(frozen=True, slots=True)
class ModelStep:
    """A stage on the way to a model, or a file at its beginning."""

    name: str
    kind: str
    """Empty of a file or folder."""
    made: str
    """In words: its counts."""
    reads: tuple[str, ...] = ()
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class PackedAt:
    """Where a row lies as tokens."""

    stage: str
    place: str
    """In words."""


@dataclass(frozen=True)
class Trace:
    """A record and everything behind it, children before their parents."""

    run: Path
    records: list[TracedRecord]
    models: dict[str, list[ModelStep]]
    """Model -> the stages that it was made by, the last one first."""
    packed: list[PackedAt]
    made_of: dict[str, int]
    """Stage -> records there that name the first record."""
    unfinished: list[str]
    """Stages that have not finished: more may come of them."""
    gone: dict[str, list[str]]
    """What stages were made from and that is not there any more -> those stages."""
    left_out: int
    """Ancestors that were not followed, because there are too many."""
    read: ReadCounts = field(default_factory=ReadCounts)


def trace(stages: RunStages, name: str, start: list[RunStage] | None = None) -> Trace:
    """Follow a record back to where it began.

    ``name``: its id, the beginning of it, or ``PACKS:PACK:SAMPLE`` for a sample of a stage's packs, both counted from
    0. ``start``: the stages in which the beginning of an id is looked for. Raises UserError where there is no such
    record, or several.
    """
    search = RecordSearch(stages, start)
    whole = packed_row(stages, name) if name.count(":") == 2 else search.resolve(name)
    search.follow(whole)
    drops: dict[str, list[StoredDrop]] = {}
    for drop in search.drops():
        drops.setdefault(drop.unit, []).append(drop)
    notes: dict[str, list[StoredNote]] = {}
    for note in search.notes():
        notes.setdefault(note.unit, []).append(note)
    if not search.records[whole] and whole not in drops:
        raise search.not_there(whole, stages.output)
    records = {
        record: TracedRecord(
            record,
            record_type(lines[0][1].fields) if lines else None,
            list(_versions(stages, lines)),
            _parents(lines),
            drops.get(record, []),
            notes.get(record, []),
        )
        for record, lines in search.records.items()
    }
    ordered = [records[record] for record in _ordered(records, whole)]
    return Trace(
        run=stages.output,
        records=ordered,
        models=_models(stages, ordered),
        packed=list(_packed(stages, ordered[0])),
        made_of=dict(search.made_of),
        unfinished=[stage.name for stage in stages if stage.begun and stage.manifest is None],
        gone=stages.gone(),
        left_out=search.left_out,
        read=search.read,
    )


def _parents(lines: list[tuple[RunStage, StoredRecord]]) -> list[str]:
    parents: dict[str, None] = {}
    for _, record in lines:
        parents |= dict.fromkeys(map(str, record.fields.get("parents", ())))
        if isinstance(problem := record.fields.get("problem_id"), str):
            parents[problem] = None
    return list(parents)


def _ordered(records: dict[str, TracedRecord], first: str) -> list[str]:
    """Return the ids with every record behind all that name it."""
    done: dict[str, None] = {}
    path: list[tuple[str, Iterator[str]]] = [(first, iter(records[first].parents))]
    begun = {first}
    while path:
        parent = next((p for p in path[-1][1] if p in records and p not in begun), None)
        if parent is None:
            done[path.pop()[0]] = None
        else:
            begun.add(parent)
            path.append((parent, iter(reversed(records[parent].parents))))
    return list(reversed(done))


def _versions(stages: RunStages, lines: list[tuple[RunStage, StoredRecord]]) -> Iterator[RecordVersion]:
    by_stage: dict[Path, tuple[RunStage, list[StoredRecord]]] = {}
    for stage, record in lines:
        by_stage.setdefault(stage.folder, (stage, []))[1].append(record)
    known: dict[Path, dict[str, Any]] = {}
    for stage, same in by_stage.values():
        values, problem = _merged(same)
        known[stage.folder] = values
        before = next((source for source in stages.before(stage) if source.folder in known), None)
        earlier = known[before.folder] if before is not None else {}
        changed = {
            name: (earlier.get(name), values.get(name))
            for name in [*values, *(n for n in earlier if n not in values)]
            if before is not None and earlier.get(name) != values.get(name)
        }
        yield RecordVersion(stage, same, values, before, changed, problem)


def _merged(lines: list[StoredRecord]) -> tuple[dict[str, Any], str]:
    """Return the fields of a record whose versions in a folder are these, and why they are none."""
    if len(lines) == 1:
        return _values(lines[0].fields, lines[0].transcript), ""
    kind = record_type(lines[0].fields)
    assert kind is not None
    try:
        whole = merge([parse_record(line.line, kind, line.file, line.row) for line in lines], majority)
    except UserError as error:
        return _values(lines[0].fields, lines[0].transcript), str(error)
    fields = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    return _values({k: v for k, v in fields.items() if k != TRANSCRIPT}, fields.get(TRANSCRIPT)), ""


def _values(fields: dict[str, Any], transcript: Any) -> dict[str, Any]:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    extra: dict[str, Any] = values.pop("extra", None) or {}  # type: ignore[assignment]
    values.pop("id", None)
    values |= {f"extra.{name}": value for name, value in extra.items()}
    if transcript is not None:
        values[TRANSCRIPT] = transcript.digest if isinstance(transcript, Body) else "in its line"
    return values


def asked_of(version: RecordVersion) -> dict[str, Any]:
    """Return whom the stage of a version asks, and with which prompt; {} where it asks nobody.

    ``prompt`` is the template's file or the shipped one's name, ``digest`` that of its text. What the record itself
    says of the prompt (``extra["asked"]``: another template, a transcript that was rewritten) comes first.
    """
    settings, stage = version.stage.settings, version.stage
    if "engine" not in settings or "prompt" not in settings:
        return {}
    asked: dict[str, Any] = {"engine": settings["engine"]}
    if settings.get("more_engines"):
        asked["more_engines"] = settings["more_engines"]
    if (mode := settings.get("mode")) is not None:
        asked["mode"] = mode
    template = str(mode) if stage.kind == "rollout.generate" else _TEMPLATES.get(stage.kind, "")
    if settings["prompt"]:
        file, _, digest = str(settings["prompt"]).rpartition(" ")
        asked |= {"prompt": file, "file_sha256": digest}
    elif template in FIELDS:
        asked |= {"prompt": f"the shipped {template}.txt", "digest": load_template(template).digest}
    own = version.values.get("extra.asked")
    if version.before is None and isinstance(own, dict):
        if "prompt" in own and own["prompt"] != asked.get("digest"):
            asked |= {"digest": own["prompt"]}
            if not settings["prompt"]:
                asked["prompt"] = _shipped(str(own["prompt"]))
        asked |= {name: value for name, value in own.items() if name != "prompt"}
    return asked


def _shipped(digest: str) -> str:
    """Return the shipped template with this digest, in words."""
    name = next((name for name in FIELDS if load_template(name).digest == digest), None)
    return "a template that is not shipped any more" if name is None else f"the shipped {name}.txt"


# -- models ------------------------------------------------------------------------------------------------------------


def _models(stages: RunStages, records: list[TracedRecord]) -> dict[str, list[ModelStep]]:
    """Return the models that made or changed one of the records."""
    models: dict[str, list[ModelStep]] = {}
    for record in records:
        for version in record.versions:
            if version.before is not None and not version.changed:
                continue
            for source in version.stage.inputs:
                if source.port == "engine" and source.name not in models:
                    models[source.name] = list(model_steps(stages, source))
    return models


def model_steps(stages: RunStages, model: StageInput) -> Iterator[ModelStep]:
    """Yield how a model was made, back to the records and files that it was made from, each once."""
    todo, seen = [model], set[Path | None]()
    while todo:
        source = todo.pop(0)
        if source.path in seen:
            continue
        seen.add(source.path)
        stage = stages.at(source.path)
        if stage is None:
            yield ModelStep(source.name, "", "", digest=source.digest)
            continue
        manifest = stage.manifest
        made = made_text(manifest) if manifest is not None else "not finished" if stage.begun else "is gone"
        yield ModelStep(stage.name, stage.kind, made, tuple(given.name for given in stage.inputs), source.digest)
        if manifest is None or not manifest.counts.get("units"):  # behind records stand other traces
            todo += stage.inputs


# -- tokens and packs --------------------------------------------------------------------------------------------------


def packed_row(stages: RunStages, name: str) -> str:
    """Return the id of the row that is a sample of a pack, named ``STAGE:PACK:SAMPLE``."""
    stage_name, pack_text, sample_text = name.split(":")
    stage = stages.named(stage_name)
    if stage is None or not (stage.folder / PACKS).is_file():
        packs = ", ".join(s.name for s in stages if (s.folder / PACKS).is_file()) or "none is there"
        raise UserError(f"{stage_name!r} is no stage with packs", file=stages.output, remedy=f"name one: {packs}")
    if not (pack_text.isdigit() and sample_text.isdigit()):
        raise UserError(f"{name}: no sample of a pack", remedy="write STAGE:PACK:SAMPLE with numbers from 0")
    plan = PackPlan(stage.folder)
    rows = plan.rows(int(pack_text))
    if int(sample_text) >= len(rows):
        problem = f"pack {pack_text} has no sample {sample_text}"
        raise UserError(problem, file=stage.folder, remedy=f"choose 0 to {len(rows) - 1}")
    return plan.samples[rows[int(sample_text)]].id


def _packed(stages: RunStages, record: TracedRecord) -> Iterator[PackedAt]:
    """Yield where a row lies in token files and packs, and which trainings read those."""
    if record.kind is not SftRow:
        return
    hashed = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=8).digest(), "little")
    for stage in stages:
        try:
            if (stage.folder / PACKS).is_file():
                yield from _in_packs(stages, stage, hashed)
            for folder in sorted(path.parent for path in stage.folder.glob(f"tokens-*/{TOKENS}")):
                tokens = TokenFolder(folder, verify_bytes=0)
                for sample in np.flatnonzero(tokens.id_hashes() == hashed).tolist():
                    yield PackedAt(stage.name, f"sample {sample} of {folder.name}, {tokens.length(sample):,} tokens")
        except (DamagedFile, UserError) as error:
            yield PackedAt(stage.name, f"cannot be read: {error}")


def _in_packs(stages: RunStages, stage: RunStage, hashed: int) -> Iterator[PackedAt]:
    plan = PackPlan(stage.folder)
    samples = np.flatnonzero(plan.samples.id_hashes() == hashed)
    if not len(samples):
        return
    places = np.flatnonzero(np.isin(np.asarray(plan.entries), samples))
    ends = np.asarray(plan.pack_end)
    packs = np.searchsorted(ends, places, side="right")
    readers = ", ".join(s.name for s in stages if s.reads(stage))
    read_by = f", read by {readers}" if readers else ""
    if not len(places):
        yield PackedAt(stage.name, f"in none of its packs: too long, or not of its mixture{read_by}")
    for place, pack in zip(places.tolist(), packs.tolist(), strict=True):
        start = int(ends[pack - 1]) if pack else 0
        number = int(ends[pack]) - start
        yield PackedAt(stage.name, f"pack {pack}, sample {place - start} (of {number:,}){read_by}")


# -- as JSON -----------------------------------------------------------------------------------------------------------


def trace_json(of: Trace) -> dict[str, Any]:
    """Return a trace as data. Transcripts are named by digest; ``openmath records show`` prints them."""
    return {
        "run": str(of.run),
        "id": of.records[0].id,
        "records": [_record_json(record) for record in of.records],
        "models": {
            name: [
                {"name": s.name, "kind": s.kind, "made": s.made, "reads": list(s.reads), "digest": s.digest}
                for s in steps
            ]
            for name, steps in of.models.items()
        },
        "packed": [{"stage": at.stage, "place": at.place} for at in of.packed],
        "made_of": dict(of.made_of),
        "unfinished": of.unfinished,
        "gone": of.gone,
        "left_out": of.left_out,
        "read": {
            "folders": len(of.read.folders),
            "files": of.read.files,
            "lines": of.read.lines,
            "bytes": of.read.size,
            "seconds": round(of.read.seconds, 3),
        },
    }


def _record_json(record: TracedRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "type": record.kind.__name__ if record.kind is not None else None,
        "gone": not record.versions,
        "parents": record.parents,
        "versions": [
            {
                "stage": version.stage.name,
                "kind": version.stage.kind,
                "finished": version.stage.manifest is not None,
                "before": version.before.name if version.before is not None else None,
                "lines": [{"file": str(line.file), "row": line.row} for line in version.lines],
                "values": version.values,
                "changed": {name: list(change) for name, change in version.changed.items()},
                "asked": asked_of(version),
                "contradiction": version.problem,
            }
            for version in record.versions
        ],
        "drops": [{"stage": d.stage.name, "reason": d.reason, "detail": d.detail} for d in record.drops],
        "notes": [{"stage": n.stage.name, "file": n.file.name, **n.values} for n in record.notes],
    }
