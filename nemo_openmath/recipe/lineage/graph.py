"""What a run was made from: its stages, models and files, and what reads what, as data and as a picture.

The data is ``lineage.json`` in the run's folder:

- ``nodes``: name, type (``stage``, ``model``, ``file``, ``teacher``), lane; of a stage its kind, state and counts, of a
  finished one the digest of what it made and what it is in words (``made``); of a file its path and digest
- ``edges``: from, to, the input (``port``), and how many records, or samples, stand there to be read (``records``)
- ``lanes``: the groups of the nodes in order: the iterations of a loop, or else what the trainings divide: all that
  was made before the first model of the run, with it, with the second
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.evaluation.reports.formats import made_text
from nemo_openmath.launch.view_graph import Node, graph_svg
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages, StageInput
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.status import State

LINEAGE = "lineage.json"
_MODELS = ("model", "checkpoints", "quantized", "drafter")  # what a stage makes that is a model
_TRAINS = ("checkpoints",)
_LETTERS = 30  # of a note that fit a box


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A stage, or what no stage makes."""

    name: str
    type: str
    lane: str
    values: Mapping[str, Any]
    """What else is known of it."""
    note: str = ""
    """What it is, in a few words."""

    def drawn(self, before: Sequence[str], *, lane: bool) -> Node:
        """Return it as the picture shows it."""
        state = str(self.values.get("state", State.FINISHED))
        state = "" if state == State.FINISHED else state
        room = _LETTERS - (len(state) + 2 if state else 0)
        return Node(
            name=self.name,
            after=tuple(before),
            state=state,
            note=self.note if len(self.note) <= room else f"{self.note[: room - 1]}…",
            lane=self.lane if lane else "",
            look={"model": "model", "file": "file", "teacher": "file"}.get(self.type, ""),
        )


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """That a stage reads something."""

    source: str
    reader: str
    port: str
    records: int | None
    """Records, or samples, that it finds there; None of a model, a file, and of what has not finished."""


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """The stages, models and files of a run. Nodes stand behind all that they were made from."""

    run: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]

    def to_json(self) -> dict[str, Any]:
        """Return the content of lineage.json."""
        lanes = list(dict.fromkeys(node.lane for node in self.nodes))
        return {
            "run": self.run,
            "lanes": lanes,
            "nodes": [{"name": n.name, "type": n.type, "lane": n.lane, **n.values} for n in self.nodes],
            "edges": [{"from": e.source, "to": e.reader, "port": e.port, "records": e.records} for e in self.edges],
        }

    def picture(self) -> str:
        """Return the picture as SVG: lanes from top to bottom, arrows that others imply left out."""
        before: dict[str, list[str]] = {}
        for edge in self.edges:
            before.setdefault(edge.reader, []).append(edge.source)
        several = len({node.lane for node in self.nodes}) > 1
        nodes = [node.drawn(before.get(node.name, ()), lane=several) for node in self.nodes]
        return graph_svg(nodes, f"Lineage of {self.run}")


def lineage_graph(run: Run, stages: RunStages) -> LineageGraph:
    """Return the graph of a run, finished or not. Stages that a loop ended before are not in it."""
    states = {status.name: status.state for status in run.status()}
    shown = [stage for stage in stages if states.get(stage.name) is not State.NEEDLESS or not stage.own]
    lanes = _lanes(run, stages, shown)
    nodes: list[LineageNode] = []
    outside: dict[Path | None, str] = {}
    edges = []
    for stage in shown:
        for source in stage.inputs:
            before = stages.at(source.path)
            if before is None and source.path not in outside:
                outside[source.path] = _outside_name(source, outside)
                nodes.append(_file_node(outside[source.path], source, next(iter(lanes.values()))))
            name = outside[source.path] if before is None else before.name
            edges.append(LineageEdge(name, stage.name, source.port, None if before is None else _records(before)))
        state = states.get(stage.name) or (State.FINISHED if stage.manifest is not None else State.UNFINISHED)
        nodes.append(_stage_node(stage, state, lanes[stage.name]))
    order = {lane: number for number, lane in enumerate(dict.fromkeys(sorted(lanes.values(), key=_place(run))))}
    return LineageGraph(run.recipe.name, sorted(nodes, key=lambda node: order[node.lane]), edges)


def _stage_node(stage: RunStage, state: State, lane: str) -> LineageNode:
    manifest, kind = stage.manifest, stage_kinds().get(stage.kind)
    values: dict[str, Any] = {"kind": stage.kind, "state": str(state)}
    if manifest is not None:
        counts = {name: count for name, count in manifest.counts.items() if count}
        values |= {"made": made_text(manifest), "counts": counts, "digest": manifest.digest}
    model = kind is not None and kind.makes in _MODELS
    return LineageNode(stage.name, "model" if model else "stage", lane, values, values.get("made", stage.kind))


def _file_node(name: str, source: StageInput, lane: str) -> LineageNode:
    if source.path is None:
        return LineageNode(name, "teacher", lane, {"digest": source.digest}, "the recipe's teacher")
    note = (source.digest or "").partition(":")[2][:12] or (source.digest or "")[:12] or "a file or folder"
    return LineageNode(name, "file", lane, {"path": str(source.path), "digest": source.digest}, note)


def _outside_name(source: StageInput, taken: Mapping[Path | None, str]) -> str:
    """Return a name for what no stage makes: the shortest end of its path that nothing else has."""
    if source.path is None:
        return source.name
    parts = source.path.parts
    names = ("/".join(parts[-length:]) for length in range(min(2, len(parts)), len(parts) + 1))
    return next((name for name in names if name not in taken.values()), str(source.path))


def _records(stage: RunStage) -> int | None:
    """Return how many records, or samples, a stage holds."""
    if stage.manifest is None:
        return None
    counts, metrics = stage.manifest.counts, stage.manifest.metrics
    number = counts.get("records") if counts.get("units") else metrics.get("samples")
    return number if isinstance(number, int) else None


# -- lanes -------------------------------------------------------------------------------------------------------------

_BEFORE, _AFTER = "before the loop", "after the loop"


def _lanes(run: Run, stages: RunStages, shown: list[RunStage]) -> dict[str, str]:
    """Return the lane of each stage: no arrow leads from a later one to an earlier one."""
    loop = run.recipe.loop
    if loop is None:
        depth = dict(_depths(stages))
        return {stage.name: _depth_name(depth[stage.folder], max(depth.values())) for stage in shown}
    inside: set[str] = set()  # the loop, and what is made from it
    lanes = {}
    for stage in stages:
        number = loop.iteration.get(stage.name) if stage.own else None
        behind = any(source.name in inside for source in stages.before(stage))
        if number is not None or behind:
            inside.add(stage.name)
        lanes[stage.name] = f"iteration {number}" if number is not None else _AFTER if behind else _BEFORE
    return lanes


def _depths(stages: RunStages) -> Iterator[tuple[Path, int]]:
    """Yield how many trainings stand before each stage, along the way with the most."""
    depths: dict[Path, int] = {}
    for stage in stages:
        before = stages.before(stage)
        depths[stage.folder] = max((depths[b.folder] + _trains(b) for b in before), default=0)
        yield stage.folder, depths[stage.folder]


def _trains(stage: RunStage) -> bool:
    kind = stage_kinds().get(stage.kind)
    return kind is not None and kind.makes in _TRAINS


def _depth_name(depth: int, deepest: int) -> str:
    if not deepest:
        return "the run"
    return "before the first training" if not depth else f"after training {depth}"


def _place(run: Run) -> Any:
    """Return a key that sorts lanes."""

    def key(lane: str) -> tuple[int, int]:
        number = int("".join(filter(str.isdigit, lane)) or 0)
        return (2 if lane == _AFTER else 1 if number else 0, number)

    return key
