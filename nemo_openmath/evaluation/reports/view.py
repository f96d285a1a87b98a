"""Define the data of a report, and read from a stage's folder what can be read there. Nothing here renders.

``recipe/report_data.py`` fills a :class:`RunView` with a run of a recipe; ``build.py`` makes the report of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.core.records import Generation, Manifest, Mode, read_drops, read_manifest
from nemo_openmath.core.records.bodies import loaded
from nemo_openmath.core.records.store import count_units
from nemo_openmath.evaluation.reports.controls import StageControls
from nemo_openmath.evaluation.reports.economics import Economics
from nemo_openmath.evaluation.reports.problem_set import ProblemSet

TableRows = Sequence[Mapping[str, Any]]
"""Rows of evaluation.metrics, of evaluation.compare or of a competition."""


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of a run."""

    name: str
    state: str
    """A word for people: finished, started, waiting, stale or damaged."""
    kind: str = ""
    manifest: Manifest | None = None
    units: int = 0
    """Units of work that are finished."""
    examples: Mapping[str, str] = field(default_factory=dict)
    """Reason of drops -> the detail of one of them."""
    folder: Path | None = None
    """None where the stage has none."""

    @classmethod
    def read(cls, name: str, folder: Path, state: str | None = None) -> Self:
        """Read a stage's folder. Without a given ``state`` the stage is finished where the folder has a manifest, else
        started or waiting."""
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
    """A table of the data set: what each step left over, or the parts of a whole."""

    title: str
    steps: Sequence[tuple[str, int]]
    """(name, count) of each step, or of each part."""
    parts: bool = False
    """False: each step is what was left of the one before (paper Table 1). True: the steps are the parts of a whole
    (paper Table 2)."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """One resolved setting."""

    key: str
    """The dotted key."""
    value: Any
    origin: str
    """default, override, or file:line."""


@dataclass(frozen=True, slots=True)
class Example:
    """A solution to show."""

    title: str
    transcript: Mapping[str, Any]
    """JSON form of a chat.Transcript."""
    expected_answer: str | None = None
    predicted_answer: str | None = None
    verdict: str | None = None

    @classmethod
    def of(cls, generation: Generation, title: str) -> Self:
        """Return the example that shows this generation."""
        return cls(
            title,
            loaded(generation.transcript),
            generation.expected_answer,
            generation.predicted_answer,
            generation.verdict,
        )


@dataclass(frozen=True, slots=True)
class RunView:
    """A whole run of a recipe, as the report shows it."""

    label: str
    """What ran; the heading."""
    stages: Sequence[StageView]
    """The stages in their order."""
    results: Sequence[Mapping[str, Any]] = ()
    """Rows of evaluation.metrics: checkpoint, mode, metric, k, value, low, high, problems. See :func:`gather`."""
    paired: Sequence[Mapping[str, Any]] = ()
    """Rows of evaluation.compare: see evaluation.paired.PairedRow."""
    apart: Sequence[Mapping[str, Any]] = ()
    """Problems that are in no mean: rows of checkpoint, mode, problems, of, example."""
    funnel: Sequence[Funnel] = ()
    """Tables of the data set."""
    training: Mapping[str, Path] = field(default_factory=dict)
    """Training stage -> its metrics.jsonl."""
    examples: Sequence[Example] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    config: Sequence[ConfigValue] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    standins: Sequence[str] = ()
    """Sentences that name what stands in for the real thing."""
    selection_of: str = Mode.TIR
    """The mode whose solutions GenSelect chose from."""
    competition: Sequence[Mapping[str, Any]] = ()
    """A row for each competition: stage, model, problems, answered, right, value, low, high, seconds."""
    left_out: Sequence[str] = ()
    """Sentences that name stages whose numbers are not those of the recipe as it is now, and why."""
    prompts: Sequence[str] = ()
    """Sentences about models that were asked with another prompt than they were trained on."""
    note: str = ""
    """The recipe's own sentence about its results."""
    waited: float | None = None
    """Seconds that the last run took."""
    economics: Economics = field(default_factory=Economics)
    """What the generated tokens bought."""
    controls: Sequence[StageControls] = ()
    """The planted cases of each stage that has some."""
    problem_set: ProblemSet = field(default_factory=ProblemSet)
    """What became of threads and problems, stage by stage."""
    lineage: str = ""
    """An SVG of what was made from what; empty where it is not drawn."""
    jobs: str = ""
    """An SVG of the jobs of a launched run; empty for a run that was not launched."""
    iterations: Mapping[str, Any] = field(default_factory=dict)
    """What the last decision of a loop says; empty where there is none.

    - ``metric``, ``most``, ``tokens``: what decides, the most iterations, the tokens that were sampled in all
    - ``iterations``: rows of iteration, model, value, low, high, problems, tokens, gain, is_best; ``gain`` is None, or
      holds over (a model), difference, low, high, better, worse, problems, below_interval
    - ``best``: iteration and model
    - ``stop``: None, or rule, iteration and reason; ``is_over``: whether no further iteration is made
    """


@dataclass(frozen=True, slots=True)
class TrainingCurves:
    """The curves of one training stage. All lists have one entry for each logged step."""

    steps: list[int]
    loss: list[float]
    lr: list[float]
    grad_norm: list[float]
    tokens: int
    """Tokens of all steps."""
    trained_tokens: int
    """Those of them that are targets of the loss."""
    seconds: float
    """Seconds of all steps."""


def gather(stages: Sequence[StageView], metric: str) -> list[dict[str, Any]]:
    """Return the rows that current stages left under a metric (``results``, ``paired``, ``apart``), in their order."""
    return [row for s in stages if s.manifest and s.current for row in s.manifest.metrics.get(metric, ())]


def drop_examples(folder: Path, reasons: int | None = None) -> dict[str, str]:
    """Return the first detail of each reason. Reading stops when ``reasons`` of them are found."""
    details: dict[str, str] = {}
    for _, drop in read_drops(folder):
        if not details.get(drop.reason):
            details[drop.reason] = drop.detail
        if len(details) == reasons and all(details.values()):
            break
    return details


def read_curves(path: Path) -> TrainingCurves:
    """Read the curves of a training's metrics.jsonl; a missing file gives empty ones.

    A step that was logged twice, for the training was resumed, counts as it was logged last. A torn line, for the
    training was killed while it wrote, is left out.
    """
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

    return TrainingCurves(
        steps=sorted(rows),
        loss=column("loss"),
        lr=column("lr"),
        grad_norm=column("grad_norm"),
        tokens=int(sum(column("tokens"))),
        trained_tokens=int(sum(column("trained_tokens"))),
        seconds=sum(column("seconds")),
    )
