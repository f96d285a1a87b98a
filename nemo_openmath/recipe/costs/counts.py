"""How many records each stage of a recipe leaves, by its settings, by files that are there, and by stated shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.costs.assumptions import CostAssumptions
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.synthesis.genselect.groups import Groups
from nemo_openmath.synthesis.genselect.select import GenSelect
from nemo_openmath.synthesis.genselect.tournament import Tournament

# The inputs whose records a stage goes through, the first that it has; what else it reads it looks things up in.
# Of these stages the problems are what they leave.
_MAIN = ("threads", "generations", "rows", "groups", "selections", "tokens", "packs", "data", "files", "problems")
_LEAVES_PROBLEMS = (
    "solutions.majority_answers",
    "solutions.answer_votes",
    "solutions.hardness",
    "genselect.groups",
)
_SAMPLE = 16 << 20  # bytes of a large file whose lines are counted; the rest is taken to be alike


@dataclass(frozen=True)
class StageCounts:
    """How many records go into a stage and come out. None where nothing says it."""

    read: float | None
    """Records of the main input."""
    problems: float | None
    """Records of the input ``problems``, where it has one beside the main one; else as ``read``."""
    left: float | None


def stage_counts(recipe: Recipe, assumptions: CostAssumptions, scale: float = 1.0) -> dict[str, StageCounts]:
    """Return the counts of every stage, in the recipe's order. ``scale``: times as many problems at the sources that
    lead to the first generation."""
    scaled = _sources(recipe) if scale != 1.0 else frozenset()
    counts: dict[str, StageCounts] = {}
    for name, entry in recipe.stages.items():
        read = _sum(entry, main_port(entry), counts)
        problems = _sum(entry, "problems", counts) if "problems" in entry.inputs else read
        left = assumptions.records.get(name)
        if left is None:
            left = _left(entry, read, problems, assumptions)
        if name in scaled and left is not None:
            left *= scale
        counts[name] = StageCounts(read, problems, left)
    return counts


def solved_problems(recipe: Recipe, counts: Mapping[str, StageCounts]) -> float | None:
    """Return how many problems the first generation of a recipe solves; None where it has none or nothing says it."""
    first = next((name for name, e in recipe.stages.items() if isinstance(e.stage, Generate)), None)
    return None if first is None else counts[first].read


def main_port(entry: StageEntry) -> str:
    """Return the input whose records a stage goes through; empty where it has none."""
    if entry.stage.kind in ("problems.convert_proofs", "problems.extract_answers"):
        return "problems"  # the threads are looked up
    if entry.stage.kind == "problems.decontaminate":
        return "problems"
    return next((port for port in _MAIN if port in entry.inputs), "")


def file_rows(path: Path) -> float | None:
    """Return the rows of a JSON Lines file, or of those of a folder; of large ones they are estimated. None where there
    is none."""
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path] if path.suffix == ".jsonl" else []
    files = [file for file in files if file.is_file()]
    return sum(map(_lines, files)) if files else None


def _lines(file: Path) -> float:
    size = file.stat().st_size
    with file.open("rb") as stream:
        sample = stream.read(_SAMPLE)
    lines = sample.count(b"\n") + (0 if sample.endswith(b"\n") or not sample else 1)
    return float(lines) if size <= len(sample) else lines * size / len(sample)


def _sum(entry: StageEntry, port: str, counts: Mapping[str, StageCounts]) -> float | None:
    parts = [counts[name].left if isinstance(name, str) else file_rows(name) for name in entry.inputs.get(port, ())]
    return None if None in parts or not parts else sum(part for part in parts if part is not None)


def _left(entry: StageEntry, read: float | None, problems: float | None, assumptions: CostAssumptions) -> float | None:
    """What a stage leaves, by its settings."""
    config, kept = entry.stage.config, assumptions.kept.get(entry.name, 1.0)
    if entry.stage.record is None and entry.stage.makes not in ("tokens", "packs"):
        return None
    if entry.stage.kind in _LEAVES_PROBLEMS:
        read = problems
    if read is None:  # the demo's own worlds say how large they are
        read = getattr(config, "problems", None) if not entry.inputs else None
    if read is None:
        return None
    if isinstance(entry.stage, Generate):
        solved = min(config.limit or read, read)
        mean = config.samples if config.count == "fixed" else (config.least + config.samples) / 2
        mean = assumptions.samples.get(entry.name, mean)
        return solved * mean * kept
    if isinstance(entry.stage, Groups):
        return read * config.groups * kept
    if isinstance(entry.stage, Tournament):
        return read * config.repeats * kept
    if isinstance(entry.stage, GenSelect):
        return read * config.samples * kept
    return read * kept


def _sources(recipe: Recipe) -> frozenset[str]:
    """The stages without stages before them that lead to the problems of the first generation."""
    first = next((name for name, e in recipe.stages.items() if isinstance(e.stage, Generate)), None)
    if first is None:
        return frozenset()
    waiting, sources, seen = [first], set(), set()
    while waiting:
        name = waiting.pop()
        entry = recipe.stages[name]
        port = main_port(entry)
        above = [n for n in entry.inputs.get(port, ()) if isinstance(n, str)]
        if not above:
            sources.add(name)
        waiting += [n for n in above if n not in seen]
        seen.update(above)
    return frozenset(sources)
