"""Run folders made by hand: stages as the runner leaves them, without running any."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.core.records import Drop, Generation, Manifest, Record, RecordWriter, content_id, write_json
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.manifest import DIVIDED, PLAN, write_manifest
from nemo_openmath.core.tokenizer import Message


def write_stage(
    run: Path,
    name: str,
    kind: str,
    records: Iterable[Record] = (),
    *,
    reads: Sequence[str] = (),
    drops: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    partitions: int = 1,
    finished: bool = True,
) -> Path:
    """Write a stage of records. ``drops``: unit -> reason. Records with equal ids are versions of one."""
    folder = run / name
    records = list(records)
    for number in range(partitions):
        with RecordWriter(folder, partition=number, partitions=partitions) as writer:
            for count, record in enumerate(records):
                if partition_of(getattr(record, record.owner), partitions) == number:
                    writer.commit(record.id if not writer.done(record.id) else f"{record.id}:{count}", [record])
            for unit, reason in (drops or {}).items():
                if number == 0:
                    writer.commit(unit, drops=[Drop(reason, f"example of {reason}")])
    write_json(folder / PLAN, {"fingerprint": name})
    if finished:
        reasons = list((drops or {}).values())
        counts = {"units": len(records) + len(reasons), "records": len({r.id for r in records}), "drops": len(reasons)}
        manifest = Manifest(
            stage=kind,
            fingerprint=name,
            digest=name,
            counts=counts,
            drops={reason: reasons.count(reason) for reason in reasons},
            config=dict(settings or {}),
            inputs=dict.fromkeys(reads, "digest"),
            metrics={DIVIDED: True} if partitions > 1 else {},
        )
        write_manifest(folder, manifest)
    return folder


def solution(
    problem: str, sample: int = 0, *, text: str = "<think>Hm.</think>It is \\boxed{4}.", **values: Any
) -> Generation:
    """Return a solution that has finished."""
    spans = (Span(Author.MODEL, text),)
    given = {"mode": "tir", "model": "m", "finish": "stop", "completion_tokens": 100} | values
    return Generation(
        id=content_id("generation", problem, sample, given["model"], given["mode"]),
        parents=(problem,),
        problem_id=problem,
        sample=sample,
        transcript=Transcript((Message("user", "What is 2 + 2?"),), spans).to_json(),
        **given,
    )


def shuffle_lines(folder: Path) -> None:
    """Turn the order of the records of a finished stage around."""
    for part in folder.glob("part-*.jsonl"):
        part.write_bytes(b"".join(reversed(part.read_bytes().splitlines(keepends=True))))


def rows(text: str) -> list[Any]:
    """Return the rows of lines of JSON."""
    return [orjson.loads(line) for line in text.splitlines()]
