"""How each stage of a run stands: finished, stale, started, damaged or waiting, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.core.records import Manifest, read_manifest
from nemo_openmath.core.records.failed import FAILED, allowance, num_may_fail
from nemo_openmath.core.records.manifest import MANIFEST, PLAN
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.fingerprint import Fingerprints, NotReady
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.stage_folder import SECONDS


class State(StrEnum):
    """How a stage's folder stands to what the recipe asks for."""

    FINISHED = "finished"
    CHANGED = "stale"  # finished, but for another configuration or other inputs
    UNFINISHED = "started"
    DAMAGED = "damaged"  # finished once, and files are gone or cut since
    MISSING = "waiting"
    NEEDLESS = "not needed"  # a loop ended before it


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage as it is on disk."""

    name: str
    state: State
    manifest: Manifest | None
    reason: str = ""
    """Why it is stale, damaged or not needed."""
    other: bool = False
    """It was itself made for other settings or inputs than the recipe has now; otherwise only what it reads was."""


def run_status(recipe: Recipe, output: Path, fingerprints: Fingerprints) -> Iterator[StageStatus]:
    """Yield every stage as it stands now.

    What was made from a stage that is not as the recipe asks is stale, too: its numbers are not those of the recipe.
    """
    causes: dict[str, str] = {}  # stage -> the stage because of which it is not finished
    for entry in recipe.stages.values():
        is_decided = not any(gate in causes for gate in entry.gates)
        if is_decided and (reason := fingerprints.needless(entry)):
            yield StageStatus(entry.name, State.NEEDLESS, None, reason)
            continue
        status = stage_status(entry, output / entry.name, fingerprints)
        cause = next((causes[name] for name in recipe.read_by(entry) if name in causes), None)
        if status.state is State.FINISHED and cause is not None:
            status = replace(status, state=State.CHANGED, reason=f"made from another {cause}")
        if status.state is not State.FINISHED:
            causes[entry.name] = entry.name if status.other or cause is None else cause
        yield status


def stage_status(entry: StageEntry, folder: Path, fingerprints: Fingerprints) -> StageStatus:
    """Return how a stage itself stands, whatever the stages that it reads are made from."""
    try:
        manifest = read_manifest(folder)
    except DamagedFile:
        return StageStatus(entry.name, State.DAMAGED, None)
    if manifest is None:
        begun = (folder / PLAN).exists()
        return StageStatus(entry.name, State.UNFINISHED if begun else State.MISSING, None)
    if reason := damage(manifest, folder):
        return StageStatus(entry.name, State.DAMAGED, manifest, reason)
    try:
        fingerprint, inputs = fingerprints.of(entry)
    except NotReady as error:
        return StageStatus(entry.name, State.CHANGED, manifest, str(error))
    if fingerprint == manifest.fingerprint:
        failed, units = manifest.counts.get(FAILED, 0), manifest.counts.get("units", 0)
        if failed > num_may_fail(entry.failed_items, units):
            why = f"{failed:,} unit{'s' * (failed != 1)} failed, and {allowance(entry.failed_items, units)}"
            return StageStatus(entry.name, State.UNFINISHED, manifest, why, other=True)
        return StageStatus(entry.name, State.FINISHED, manifest)
    return StageStatus(entry.name, State.CHANGED, manifest, change(manifest, entry, inputs), other=True)


def change(manifest: Manifest | None, entry: StageEntry, inputs: dict[str, str]) -> str:
    """Return the first difference between what a finished stage was made for and what is asked for now, in words."""
    if manifest is None:
        return ""
    for key, before, now in _differences(manifest.config, entry.stage.settings()):
        return f"{key} was {before!r:.80}, is {now!r:.80}"
    if manifest.metrics.get("seed", entry.seed) != entry.seed:
        return f"seed was {manifest.metrics['seed']}, is {entry.seed}"
    changed = (name for name in [*inputs, *manifest.inputs] if inputs.get(name) != manifest.inputs.get(name))
    return next((f"input {Path(name).name} has changed" for name in changed), "made by another version")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(left, right))
        elif left != right:
            yield key, left, right


_NOT_CONTENT = (MANIFEST, PLAN, SECONDS, "suspect-ranks.json")
_NOT_CONTENT_FOLDER = "stacks"  # of ranks and stages that hung, for people


def file_sizes(folder: Path) -> dict[str, int]:
    """Return name -> bytes of what a finished stage holds: a cheap check that nobody removed or cut a file."""
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in _NOT_CONTENT and not _is_aside(p.relative_to(folder))
    }


def _is_aside(path: Path) -> bool:
    """Whether a file of a stage is a working file, or one for people: hidden, or in such a folder."""
    return path.parts[0] == _NOT_CONTENT_FOLDER or any(part.startswith(".") for part in path.parts)


def damage(manifest: Manifest, folder: Path) -> str:
    """Return how the files of a finished stage differ from those that it made; "" where they do not."""
    promised, present = manifest.metrics.get("files", {}), file_sizes(folder)
    if gone := promised.keys() - present.keys():
        return f"{min(gone)} is gone"
    if added := added_files(manifest, folder):
        return f"{added[0]} is not of this stage"
    return next((f"{name} has another size" for name, size in present.items() if promised[name] != size), "")


def added_files(manifest: Manifest, folder: Path) -> list[str]:
    """Return the files in the folder of a finished stage that it did not make."""
    return sorted(file_sizes(folder).keys() - manifest.metrics.get("files", {}).keys())
