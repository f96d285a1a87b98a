"""All that a run knows of a record: its versions, what it was made from, who was asked, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.chat import load_template
from nemo_openmath.chat.prompts import FIELDS
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.merging import merge
from nemo_openmath.core.records.bodies import Body
from nemo_openmath.core.records.encoding import parse_record, record_type
from nemo_openmath.core.records.types import Mode, Record, SftRow
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.data.records.stored import StoredRecord
from nemo_openmath.evaluation.reports.formats import made_text
from nemo_openmath.grading.majority import majority
from nemo_openmath.inference.rollout.formats import FORMATS
from nemo_openmath.recipe.lineage.novelty_votes import novelty_votes
from nemo_openmath.recipe.lineage.packed import PackedAt, packed_places, packed_row
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages, StageInput
from nemo_openmath.recipe.lineage.search import ReadCounts, RecordSearch, StoredDrop, StoredNote

TRANSCRIPT = "transcript"
_TEMPLATES = {
    "problems.extract": {"prompt": "extract-problems"},
    "problems.classify": {
        "invalid_prompt": "classify-invalid",
        "multiple_choice_prompt": "classify-multiple-choice",
        "binary_prompt": "classify-binary",
        "proof_prompt": "classify-proof",
    },
    "problems.convert_proofs": {"prompt": "convert-proof"},
    "problems.extract_answers": {"prompt": "extract-answer"},
    "problems.decontaminate": {"prompt": "decontaminate"},
    "judging.judge": {"prompt": "judge"},
    "solutions.novelty": {"novelty_prompt": "classify-novelty", "significance_prompt": "classify-significance"},
    "solutions.summarize": {"prompt": "summarize"},
    "genselect.select": {"prompt": "genselect"},
    "genselect.targets": {"prompt": "summarize-comparison"},
}
"""Kind of stage -> its settings that name templates, and the shipped ones."""


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
    read_from: tuple[str, ...] = ()
    """Where no version before is left: the stages that this one read it from and that are gone, as far back as is
    known, the last ones first. The last of them made it, or read it from others that nobody knows."""

    @property
    def made_here(self) -> bool:
        """Whether the stage made the record."""
        return self.before is None and not self.read_from


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
    for note in (*search.notes(), *novelty_votes(stages, search.records)):
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
        packed=list(packed_places(stages, whole)) if ordered[0].kind is SftRow else [],
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
        gone = () if before is not None else _gone_before(stages, stage, same[0])
        yield RecordVersion(stage, same, values, before, changed, problem, gone)


def _gone_before(stages: RunStages, stage: RunStage, record: StoredRecord) -> tuple[str, ...]:
    """Return the stages that are gone and that ``stage`` read a record from, which is in none of those that are left.

    A stage passes records on if it takes what it makes. One that makes new records of those that it takes names them as
    their parents.
    """
    kind = record_type(record.fields)
    assert kind is not None
    gone: dict[str, None] = {}
    todo, seen = [stage], {stage.folder}
    while todo:
        for source in _sources(stages, todo.pop(0), kind.__name__):
            if source.path is None or source.path in seen or source.path.is_dir():
                continue
            seen.add(source.path)
            gone[source.name] = None
            if (reader := stages.at(source.path)) is not None:
                todo.append(reader)
    return tuple(gone)


def _sources(stages: RunStages, stage: RunStage, product: str) -> Iterator[StageInput]:
    """Yield the inputs from which a stage passes records of a type on."""
    kind = stage_kinds().get(stage.kind)
    ports = [port for port, taken in kind.takes.items() if taken == product] if kind is not None else []
    for source in stage.inputs if ports else ():
        made = stages.at(source.path)
        makes = stage_kinds().get(made.kind) if made is not None else None
        known = makes is not None and makes.product() != product
        if source.path is not None and not known and source.port in ("", *ports):
            yield source


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
    """Return whom the stage of a version asks, and with which prompts; {} where it asks nobody.

    ``prompts`` are rows of ``prompt``, the template's file or the shipped one's name, and ``digest``, that of its text;
    of a file ``file_sha256``. What the record itself says (``extra["asked"]``: the template that was asked, whether its
    transcript was rewritten) comes first.
    """
    settings, stage = version.stage.settings, version.stage
    if "engine" not in settings:
        return {}
    asked: dict[str, Any] = {"engine": settings["engine"]}
    if settings.get("more_engines"):
        asked["more_engines"] = settings["more_engines"]
    if (mode := settings.get("mode")) is not None:
        asked["mode"] = mode
    own = version.values.get("extra.asked") if version.made_here else None
    digest = own.get("prompt") if isinstance(own, dict) else None
    digests = settings.get("templates") or {}  # of the texts that were asked, by the names of the shipped templates
    asked["prompts"] = [
        _prompt(settings.get(setting), template, digest or digests.get(template))
        for setting, template in _templates(stage).items()
        if not digests or template in digests
    ]
    return asked | ({name: value for name, value in own.items() if name != "prompt"} if isinstance(own, dict) else {})


def _templates(stage: RunStage) -> dict[str, str]:
    """Return the settings of a stage that name templates, and the shipped ones."""
    if stage.kind == "problems.decontaminate" and stage.settings.get("constants") == "same":
        return {"prompt": "decontaminate-family"}
    if stage.kind != "rollout.generate":
        return _TEMPLATES.get(stage.kind, {})
    mode, tool_format = str(stage.settings.get("mode")), stage.settings.get("tool_format", "tags")
    is_known = mode == Mode.TIR and tool_format in FORMATS
    return {"prompt": FORMATS[tool_format].prompt if is_known else mode}


def _prompt(file: str | None, template: str, digest: str | None) -> dict[str, Any]:
    """Return a row about a prompt. ``file``: its name and digest, where it is the user's; ``digest``: that of the text
    that was asked, where a record says it."""
    if file:
        name, _, of_file = file.rpartition(" ")
        return {"prompt": name, "digest": digest, "file_sha256": of_file}
    if template not in FIELDS:
        return {"prompt": "an unknown template", "digest": digest}
    shipped = load_template(template).digest
    if digest in (None, shipped):
        return {"prompt": f"the shipped {template}.txt", "digest": shipped}
    return {"prompt": _shipped(str(digest)), "digest": digest}


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
                "read_from_gone": list(version.read_from),
            }
            for version in record.versions
        ],
        "drops": [{"stage": d.stage.name, "reason": d.reason, "detail": d.detail} for d in record.drops],
        "notes": [{"stage": n.stage.name, "file": n.file.name, **n.values} for n in record.notes],
    }
