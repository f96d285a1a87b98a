"""What a report is made of: plain data that the recipe runner fills in. Nothing here renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.core.records import Generation, Manifest, Mode, read_drops, read_manifest
from nemo_openmath.core.records.store import count_units


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of a run. ``state``: a word for people (finished, started, waiting, stale, damaged). ``units``: units
    of work that are finished. ``examples``: drop reason -> the detail of one drop. ``folder`` is None where the stage
    has none."""

    name: str
    state: str
    kind: str = ""
    manifest: Manifest | None = None
    units: int = 0
    examples: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def read(cls, name: str, folder: Path, state: str | None = None) -> Self:
        """Look at a stage's folder: finished where it has a manifest, else started or waiting."""
        try:
            manifest = read_manifest(folder)
        except DamagedFile:
            manifest = None
        units = manifest.counts.get("units", 0) if manifest else count_units(folder)
        if state is None:
            state = "finished" if manifest else "started" if units else "waiting"
        examples = drop_examples(folder, len(manifest.drops) if manifest else None)
        return cls(name, state, manifest.stage if manifest else "", manifest, units, examples, folder)

    @property
    def current(self) -> bool:
        """Whether its numbers are those of the recipe as it is now."""
        return self.state == "finished" and self.manifest is not None

    @property
    def drops(self) -> dict[str, int]:
        return self.manifest.drops if self.manifest else {}

    @property
    def seconds(self) -> float:
        return self.manifest.seconds if self.manifest else 0.0


@dataclass(frozen=True, slots=True)
class Funnel:
    """A table of the data set. ``parts`` False: each step is what was left of the one before (paper Table 1);
    True: the steps are the parts of a whole (paper Table 2)."""

    title: str
    steps: Sequence[tuple[str, int]]
    parts: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """One resolved setting. ``key`` is dotted; ``origin`` is default, override, or file:line."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Example:
    """A transcript to show. ``transcript``: JSON form of transcripts.Transcript."""

    title: str
    transcript: Mapping[str, Any]
    expected_answer: str | None = None
    predicted_answer: str | None = None
    verdict: str | None = None

    @classmethod
    def of(cls, generation: Generation, title: str) -> Self:
        return cls(
            title, generation.transcript, generation.expected_answer, generation.predicted_answer, generation.verdict
        )


@dataclass(frozen=True, slots=True)
class RunView:
    """A whole run.

    ``label``: what ran, a heading. ``stages``: in order. ``results``: rows of evaluation.metrics (``checkpoint``,
    ``mode``, ``metric``, ``k``, ``value``, ``low``, ``high``, ``problems``); ``paired``: rows of evaluation.compare;
    ``apart``: {checkpoint, mode, problems, of, example} of the problems that are in no mean;
    :func:`gather` collects them from the stages. ``training``: training stage -> its metrics.jsonl (rows of step,
    loss, grad_norm, lr, tokens, trained_tokens, seconds). ``standins``: sentences naming what stands in for the real
    thing. ``selection_of``: the mode whose solutions GenSelect chose from. ``competition``: a row for each competition
    (``stage``, ``model``, ``problems``, ``answered``, ``right``, ``value``, ``low``, ``high``, ``seconds``).
    ``left_out``: sentences that name stages whose numbers are not this recipe's, and why; ``note``: the recipe's own
    sentence about its results; ``waited``: seconds that the last run of it took.
    """

    label: str
    stages: Sequence[StageView]
    results: Sequence[Mapping[str, Any]] = ()
    paired: Sequence[Mapping[str, Any]] = ()
    apart: Sequence[Mapping[str, Any]] = ()
    funnel: Sequence[Funnel] = ()
    training: Mapping[str, Path] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    config: Sequence[ConfigValue] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    standins: Sequence[str] = ()
    selection_of: str = Mode.TIR
    competition: Sequence[Mapping[str, Any]] = ()
    left_out: Sequence[str] = ()
    note: str = ""
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """Curves of one training stage, one entry a logged step; equal lengths."""

    steps: list[int]
    loss: list[float]
    lr: list[float]
    grad_norm: list[float]
    tokens: int
    trained_tokens: int
    seconds: float


def gather(stages: Sequence[StageView], fact: str) -> list[dict[str, Any]]:
    """Rows that the stages left under a fact (``results``, ``paired``, ``apart``), in order of the stages."""
    return [row for s in stages if s.manifest and s.current for row in s.manifest.metrics.get(fact, ())]


def drop_examples(folder: Path, reasons: int | None = None) -> dict[str, str]:
    """The first detail of each reason; reading stops when ``reasons`` are found."""
    out: dict[str, str] = {}
    for _, drop in read_drops(folder):
        if not out.get(drop.reason):
            out[drop.reason] = drop.detail
        if len(out) == reasons and all(out.values()):
            break
    return out


def read_losses(path: Path) -> Losses:
    """Curves of a metrics.jsonl. A step logged twice (training was resumed) counts as logged last; a torn line
    (training was killed in it) is left out. ``tokens``, ``trained_tokens`` and ``seconds`` of a row are those of its
    step; here they are summed."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        rows[int(row["step"])] = row
    ordered = [rows[step] for step in sorted(rows)]

    def column(name: str) -> list[float]:
        return [float(row.get(name) or 0.0) for row in ordered]

    return Losses(
        steps=sorted(rows),
        loss=column("loss"),
        lr=column("lr"),
        grad_norm=column("grad_norm"),
        tokens=int(sum(column("tokens"))),
        trained_tokens=int(sum(column("trained_tokens"))),
        seconds=sum(column("seconds")),
    )
