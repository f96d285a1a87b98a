"""Run a recipe: each stage once, again only when what it was asked to do or what it reads has changed.

A stage's folder holds ``plan.json`` (the fingerprint that it is being made for) from its first moment and
``manifest.json`` from its last. A folder whose plan is not today's is made anew; one without a manifest is gone on
with; one whose manifest and files are as promised is left alone.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.errors import DamagedFile, UserError
from nemo_openmath.pipeline import Progress, StageContext, UnitStage
from nemo_openmath.pipeline.merging import count_records
from nemo_openmath.recipe.file import Recipe, StageEntry
from nemo_openmath.recipe.services import RecipeServices
from nemo_openmath.records import Manifest, read_drops, read_manifest, write_json
from nemo_openmath.records.lineage import remembered_digest, versions
from nemo_openmath.records.manifest import MANIFEST, write_manifest
from nemo_openmath.records.store import count_units, shard_counts

_PLAN = "plan.json"
_SECONDS = "seconds.json"
_SHARD = ".done-"
_DIGESTS = ".digests"
LONG = 900.0  # seconds of work that no run throws away unasked


class State(StrEnum):
    FINISHED = "finished"
    CHANGED = "stale"  # finished, but for another configuration or other inputs
    UNFINISHED = "started"
    DAMAGED = "damaged"  # finished once, and files are gone or cut since
    MISSING = "waiting"


@dataclass(frozen=True, slots=True)
class StageStatus:
    name: str
    state: State
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which stages to run: from ``start`` up to and including ``until``, or ``only`` one; of it perhaps only shard
    ``shard`` of ``shards`` (a job of an array). ``prepare``: only write down what a launcher's processes will do.
    ``replace``: also what took long is made anew where it no longer is what the recipe asks for."""

    start: str | None = None
    until: str | None = None
    only: str | None = None
    shard: int = 0
    shards: int = 1
    prepare: bool = False
    replace: bool = False

    def names(self, recipe: Recipe) -> list[str]:
        """Stage names in order. Raises UserError for an unknown one."""
        names = list(recipe.stages)
        first, last = self.only or self.start, self.only or self.until
        if self.only is None and (self.shards > 1 or self.prepare):
            raise UserError("--shard and --prepare are of one stage", remedy="name it with --only")
        begin = names.index(recipe.entry(first).name) if first else 0
        end = names.index(recipe.entry(last).name) if last else len(names) - 1
        return names[begin : end + 1]


class Run:
    """A recipe and its output folder, one sub-folder a stage."""

    def __init__(self, recipe: Recipe, output: Path):
        self.recipe = recipe
        self.output = output
        self._digests: dict[Path, str] = {}

    def status(self) -> Iterator[StageStatus]:
        """Every stage as it stands now, without running anything."""
        for entry in self.recipe.stages.values():
            yield self._status(entry)

    async def execute(self, selection: Selection) -> None:
        """Run what is missing or changed of the selected stages, in the recipe's order."""
        self.output.mkdir(parents=True, exist_ok=True)
        services = RecipeServices(self.recipe, self.output)
        try:
            for name in selection.names(self.recipe):
                await self._run_stage(self.recipe.stages[name], services, selection)
        finally:
            await services.close()

    def folder(self, name: str) -> Path:
        return self.output / name

    def _status(self, entry: StageEntry) -> StageStatus:
        folder = self.folder(entry.name)
        try:
            manifest = read_manifest(folder)
        except DamagedFile:
            return StageStatus(entry.name, State.DAMAGED, None)
        if manifest is None:
            begun = (folder / _PLAN).exists()
            return StageStatus(entry.name, State.UNFINISHED if begun else State.MISSING, None)
        if manifest.facts.get("files") != file_sizes(folder):
            return StageStatus(entry.name, State.DAMAGED, manifest)
        try:
            same = self._fingerprint(entry)[0] == manifest.fingerprint
        except _NotReady:
            same = False
        return StageStatus(entry.name, State.FINISHED if same else State.CHANGED, manifest)

    async def _run_stage(self, entry: StageEntry, services: RecipeServices, selection: Selection) -> None:
        folder = self.folder(entry.name)
        status = self._status(entry)
        if status.state is State.FINISHED:
            return
        try:
            fingerprint, inputs = self._fingerprint(entry)
        except _NotReady as error:
            raise UserError(str(error), remedy="run it first, or leave out --from") from error
        with Progress(entry.name) as progress:
            if status.state is not State.MISSING and not _planned(folder, fingerprint, status.state):
                self._make_way(entry, status, inputs, selection, progress)
            else:
                _refuse_other_shards(folder, selection)
            folder.mkdir(parents=True, exist_ok=True)
            grows = {name: getattr(entry.stage.config, name) for name in entry.stage.grows}
            write_json(folder / _PLAN, {"fingerprint": fingerprint, "grows": grows})
            if selection.shards > 1 and not isinstance(entry.stage, UnitStage):
                raise UserError(f"stage {entry.name!r} cannot be split into shards", remedy="leave out --shard")
            context = StageContext(
                name=entry.name,
                inputs={port: [self._path(n) for n in names] for port, names in entry.inputs.items()},
                output=folder,
                seed=entry.seed,
                services=services,
                progress=progress,
                shard=selection.shard,
                shards=selection.shards,
            )
            if selection.prepare:
                await entry.stage.prepare_launch(context)
                return
            with _stopwatch(folder) as spent:
                await entry.stage.run(context)
            await services.release_model()
            if not _last_shard(folder, context):
                progress.say(f"shard {context.shard} of {context.shards} done")
                return
            manifest = _manifest(entry, folder, fingerprint, inputs, context, spent())
            write_manifest(folder, manifest)
            progress.say(_line(manifest))

    def _make_way(
        self,
        entry: StageEntry,
        status: StageStatus,
        inputs: dict[str, str],
        selection: Selection,
        progress: Progress,
    ) -> None:
        """A folder made for other settings or inputs: keep what is a part of what is wanted now, or remove all."""
        folder = self.folder(entry.name)
        if selection.shards > 1:
            raise UserError(
                f"{status.state}: made for other settings or inputs",
                file=folder,
                remedy="run the command once with --prepare instead of --shard, or remove the folder",
            )
        change = _change(status.manifest, entry, inputs)
        if status.state is not State.DAMAGED and self._has_grown(entry, folder):
            _refuse_other_shards(folder, selection)
            progress.say(f"{status.state}{change}: what is there is kept")
            for path in [folder / MANIFEST, *folder.glob(f"{_SHARD}*")]:
                path.unlink(missing_ok=True)
            return
        if (work := _spent(folder)) > LONG and not selection.replace:
            raise UserError(
                f"{status.state}{change}, and {work / 3600:.1f} hours of work lie there",
                file=folder,
                remedy="make it anew with --replace, or give another --output",
            )
        progress.say(f"{status.state}{change}: made again")
        shutil.rmtree(folder)

    def _has_grown(self, entry: StageEntry, folder: Path) -> bool:
        """Whether what lies there is what this stage makes with smaller values of the settings that grow."""
        try:
            plan = orjson.loads((folder / _PLAN).read_bytes())
            smaller = entry.stage.smaller(plan["grows"])
        except (OSError, ValueError, KeyError):
            return False
        if smaller is None:
            return False
        return bool(self._fingerprint(replace(entry, stage=smaller))[0] == plan["fingerprint"])

    def _fingerprint(self, entry: StageEntry) -> tuple[str, dict[str, str]]:
        """(fingerprint, input -> digest). Raises _NotReady where an input has not been made."""
        by_port: dict[str, list[str]] = {}
        flat: dict[str, str] = {}
        for port, names in entry.inputs.items():
            for name in names:
                flat[str(name)] = self._digest(name)
                by_port.setdefault(port, []).append(flat[str(name)])
        for engine in entry.stage.engines():
            digest = self._engine_digest(engine)
            flat[engine] = digest
            by_port.setdefault("engine", []).append(digest)
        return entry.stage.fingerprint(by_port, entry.seed), flat

    def _digest(self, name: str | Path) -> str:
        if isinstance(name, Path):
            if not name.exists():
                raise _NotReady(f"no such file or folder: {name}")
            if name not in self._digests:
                self._digests[name] = remembered_digest(name, self.output / _DIGESTS)
            return self._digests[name]
        try:
            manifest = read_manifest(self.folder(name))
        except DamagedFile:
            manifest = None
        if manifest is None:
            raise _NotReady(f"stage {name!r} has not finished")
        return manifest.digest

    def _engine_digest(self, engine: str) -> str:
        if engine in self.recipe.stages:
            return self._digest(engine)
        if engine != "teacher":
            return self._digest(self.recipe.relative(engine))
        teacher = self.recipe.teacher
        if not teacher.is_stand_in:
            return f"{teacher.model} {teacher.api}"
        return orjson.dumps(teacher.stand_in).decode()

    def _path(self, name: str | Path) -> Path:
        return name if isinstance(name, Path) else self.folder(name)


class _NotReady(Exception):
    pass


def _refuse_other_shards(folder: Path, selection: Selection) -> None:
    """Work divided in two ways would be done twice. What only prepares divides nothing."""
    if not selection.prepare and (others := shard_counts(folder) - {selection.shards}):
        how = f"an array of {others.pop()}" if others != {1} else "one job"
        raise UserError(f"begun as {how}", file=folder, remedy="go on as begun, or remove the folder")


def _planned(folder: Path, fingerprint: str, state: State) -> bool:
    """Whether what lies there is a part of what is wanted now."""
    if state is not State.UNFINISHED:
        return False
    try:
        return bool(orjson.loads((folder / _PLAN).read_bytes())["fingerprint"] == fingerprint)
    except (OSError, ValueError, KeyError):
        return False


def _spent(folder: Path) -> float:
    """Seconds of work that lie in a stage's folder: what is noted, and what a killed last attempt did not note."""
    noted, plan = folder / _SECONDS, folder / _PLAN
    before = float(orjson.loads(noted.read_bytes())) if noted.exists() else 0.0
    begun = plan.stat().st_mtime if plan.exists() else time.time()
    if noted.exists() and noted.stat().st_mtime >= begun:
        return before
    return before + max(0.0, max(p.stat().st_mtime for p in [folder, *folder.rglob("*")]) - begun)


def _change(manifest: Manifest | None, entry: StageEntry, inputs: dict[str, str]) -> str:
    """The first difference between what a finished stage was made for and what is asked for now, in words."""
    if manifest is None:
        return ""
    for key, was, now in _differences(manifest.config, entry.stage.settings()):
        return f" ({key} was {was!r:.80}, is {now!r:.80})"
    changed = (name for name in [*inputs, *manifest.inputs] if inputs.get(name) != manifest.inputs.get(name))
    return next((f" (input {Path(name).name} has changed)" for name in changed), "")


def _differences(was: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(was.keys() | now.keys()):
        left, right = was.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(left, right))
        elif left != right:
            yield key, left, right


def _last_shard(folder: Path, context: StageContext) -> bool:
    """Note that this shard is done, with what it measured; True once all are, and then their facts are summed."""
    if context.shards == 1:
        return True
    write_json(folder / f"{_SHARD}{context.shard:05d}-of-{context.shards:05d}.json", context.facts)
    done = sorted(folder.glob(f"{_SHARD}*-of-{context.shards:05d}.json"))
    if len(done) < context.shards:
        return False
    total: Counter[str] = Counter()
    for path in done:
        total.update({k: v for k, v in orjson.loads(path.read_bytes()).items() if isinstance(v, int | float)})
    context.facts.clear()
    context.facts.update(total)
    return True


@contextlib.contextmanager
def _stopwatch(folder: Path) -> Iterator[Callable[[], float]]:
    """Seconds spent on a stage, earlier attempts included unless they were killed."""
    path = folder / _SECONDS
    before = float(orjson.loads(path.read_bytes())) if path.exists() else 0.0
    begun = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - begun

    try:
        yield spent
    finally:
        with contextlib.suppress(OSError):  # a full disk must not hide the error that matters
            write_json(path, round(spent(), 3))


def _manifest(
    entry: StageEntry, folder: Path, fingerprint: str, inputs: dict[str, str], context: StageContext, seconds: float
) -> Manifest:
    drops = Counter(drop.reason for _, drop in read_drops(folder))
    drops.update(context.facts.pop("dropped", {}))  # of stages that do not keep records
    counts = {
        "units": count_units(folder),
        **count_records(folder),
        "drops": drops.total(),
    }
    return Manifest(
        stage=entry.stage.kind,
        fingerprint=fingerprint,
        digest=entry.stage.digest(folder),
        counts=counts,
        drops=dict(drops.most_common()),
        config=entry.stage.settings(),
        inputs=inputs,
        versions=versions(),
        seconds=round(seconds, 2),
        facts={**context.facts, "seed": entry.seed, "files": file_sizes(folder)},
    )


_NOT_CONTENT = (MANIFEST, _PLAN, _SECONDS)


def file_sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of what a finished stage holds: a cheap check that nobody removed or cut a file."""
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in _NOT_CONTENT and not p.name.startswith(".")
    }


def _line(manifest: Manifest) -> str:
    counts = manifest.counts
    text = f"{counts['records']} records" if counts["units"] else "done"
    if merged := counts.get("merged"):
        text += f", {merged} more versions of them merged"
    if disagreeing := counts.get("disagreeing"):
        text += f", {disagreeing} given different answers ({counts['undecided']} without a majority)"
    if counts["drops"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in list(manifest.drops.items())[:3])
        text += f", dropped {counts['drops']} ({reasons}{', ...' if len(manifest.drops) > 3 else ''})"
    return f"{text}, {manifest.seconds:.1f} s"
