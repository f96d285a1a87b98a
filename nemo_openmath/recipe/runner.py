"""Run a recipe: each stage once, again only when what it was asked to do or what it reads has changed.

A stage's folder holds ``plan.json`` (the fingerprint that it is being made for) from its first moment and
``manifest.json`` from its last. A folder whose plan is not today's is made anew; one without a manifest is gone on
with; one whose manifest and files are as promised is left alone. A stage that leaves nothing has not finished: the run
ends there, unless its ``allow_empty`` says that this is meant.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import DamagedFile, UserError, of_the_system
from nemo_openmath.core.merging import count_records
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Manifest, read_drops, read_manifest, write_json
from nemo_openmath.core.records.lineage import remembered_digest, versions
from nemo_openmath.core.records.manifest import MANIFEST, PLAN, write_manifest
from nemo_openmath.core.records.store import count_units, shard_counts
from nemo_openmath.core.stage import Stage, StageContext, UnitStage
from nemo_openmath.evaluation.reports.formats import count_text, made_text
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, StageEntry
from nemo_openmath.recipe.lock import run_lock
from nemo_openmath.recipe.preflight import check_output, preflight
from nemo_openmath.recipe.services import RecipeServices

log = logging.getLogger(__name__)

_NOTHING = "made_nothing"
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
    """``reason``: why it is stale. ``other``: it was itself made for other settings or inputs than today's."""

    name: str
    state: State
    manifest: Manifest | None
    reason: str = ""
    other: bool = False


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
        """Stage names in order. Raises UserError for an unknown one, and where nothing would be selected."""
        names = list(recipe.stages)
        first, last = self.only or self.start, self.only or self.until
        if self.only is None and (self.shards > 1 or self.prepare):
            raise UserError("--shard and --prepare are of one stage", remedy="name it with --only")
        if self.only is not None and (self.start or self.until):
            raise UserError("--only is one stage; --from and --until name more", remedy="give one or the other")
        begin = names.index(recipe.entry(first).name) if first else 0
        end = names.index(recipe.entry(last).name) if last else len(names) - 1
        if end < begin:
            raise UserError(f"--from {first} comes after --until {last}: nothing to run", remedy="exchange the two")
        if self.only is not None and self.shards > 1 and not isinstance(recipe.entry(self.only).stage, UnitStage):
            raise UserError(f"stage {self.only!r} cannot be split into shards", remedy="leave out --shard")
        return names[begin : end + 1]


class Run:
    """A recipe and its output folder, one sub-folder a stage."""

    def __init__(self, recipe: Recipe, output: Path):
        self.recipe = recipe
        self.output = output
        self._digests: dict[Path, str] = {}

    def status(self) -> Iterator[StageStatus]:
        """Every stage as it stands now, without running anything. What was made from a stage that is not as the recipe
        asks is stale, too: its numbers are not those of the recipe."""
        causes: dict[str, str] = {}
        for entry in self.recipe.stages.values():
            status = self._status(entry)
            cause = next((causes[name] for name in self._reads(entry) if name in causes), None)
            if status.state is State.FINISHED and cause is not None:
                status = replace(status, state=State.CHANGED, reason=f"made from another {cause}")
            if status.state is not State.FINISHED:
                causes[entry.name] = entry.name if status.other or cause is None else cause
            yield status

    async def execute(self, selection: Selection, overrides: Sequence[str] = ()) -> None:
        """Run what is missing or changed of the selected stages, in the recipe's order. ``overrides``: what the recipe
        was loaded with, for whoever opens the folder later. Raises UserError for what can be known to be wrong before
        the first stage runs."""
        names = selection.names(self.recipe)
        check_output(self.output)
        if not selection.replace or selection.only is not None:
            identity.check(self.recipe, self.output)
        todo = self._todo(names)
        preflight(self.recipe, todo, self.output, layouts=selection.only is None)
        self._refuse_stale_inputs(names)
        self._refuse_added(names)
        with run_lock(self.output, selection.only, selection.shard, selection.shards):
            for name in identity.take_over(self.recipe, self.output) if selection.only is None else ():
                log.info("%s: of another recipe, removed", name)
            identity.write(self.recipe, overrides, self.output)
            if todo and selection.only is None:
                what = f"{self.recipe.name} ({self.recipe.path}) in {self.output}"
                log.info("%s: %d of %d stages to do", what, len(todo), len(names))
            services = RecipeServices(self.recipe, self.output)
            try:
                for number, name in enumerate(names, 1):
                    await self._run_stage(self.recipe.stages[name], services, selection, f"[{number}/{len(names)}]")
            finally:
                await services.close()

    def folder(self, name: str) -> Path:
        return self.output / name

    def _todo(self, names: Sequence[str]) -> list[str]:
        """The stages that will be run as far as can be seen now: those that are not finished, and what reads them."""
        states = {status.name: status.state for status in self.status()}
        return [name for name in names if states[name] is not State.FINISHED]

    def _reads(self, entry: StageEntry) -> list[str]:
        """Stages that a stage reads."""
        named = [n for names in entry.inputs.values() for n in names if isinstance(n, str)]
        return [*named, *(name for name in entry.stage.engines() if name in self.recipe.stages)]

    def _refuse_stale_inputs(self, names: Sequence[str]) -> None:
        """Raises UserError where a stage would be made from one that was made for other settings, and that the
        selection leaves as it is: the result would be shown as that of today's settings."""
        checked: set[str] = set(names)
        todo = [(reader, name) for reader in names for name in self._reads(self.recipe.stages[reader])]
        while todo:
            reader, name = todo.pop()
            if name in checked:
                continue
            checked.add(name)
            status = self._status(self.recipe.stages[name])
            if status.other or status.state is State.DAMAGED:
                why = status.reason or "files of it are gone or cut"
                raise UserError(
                    f"stage {name!r} is {status.state} ({why}), and {reader!r} depends on it",
                    file=self.folder(name),
                    remedy="run it first, or leave out --from and --only",
                )
            todo += [(reader, below) for below in self._reads(self.recipe.stages[name])]

    def _refuse_added(self, names: Sequence[str]) -> None:
        """Raises UserError where a stage would be made anew whose folder holds files of somebody else: they would go
        with it."""
        for name in names:
            status = self._status(self.recipe.stages[name])
            if status.state is State.DAMAGED and status.manifest is not None:
                folder = self.folder(name)
                if added := _added(status.manifest, folder):
                    raise UserError(f"is not of stage {name!r}", file=folder / added[0], remedy="move it away")

    def _status(self, entry: StageEntry) -> StageStatus:
        folder = self.folder(entry.name)
        try:
            manifest = read_manifest(folder)
        except DamagedFile:
            return StageStatus(entry.name, State.DAMAGED, None)
        if manifest is None:
            begun = (folder / PLAN).exists()
            return StageStatus(entry.name, State.UNFINISHED if begun else State.MISSING, None)
        if reason := _damage(manifest, folder):
            return StageStatus(entry.name, State.DAMAGED, manifest, reason)
        try:
            fingerprint, inputs = self._fingerprint(entry)
        except _NotReady as error:
            return StageStatus(entry.name, State.CHANGED, manifest, str(error))
        if fingerprint == manifest.fingerprint:
            return StageStatus(entry.name, State.FINISHED, manifest)
        reason = _change(manifest, entry, inputs)
        return StageStatus(entry.name, State.CHANGED, manifest, reason, other=True)

    async def _run_stage(self, entry: StageEntry, services: RecipeServices, selection: Selection, place: str) -> None:
        folder = self.folder(entry.name)
        status = self._status(entry)
        if status.state is State.FINISHED:
            return
        try:
            fingerprint, inputs = self._fingerprint(entry)
        except _NotReady as error:
            raise UserError(str(error), remedy="run it first, or leave out --from") from error
        with Progress(entry.name) as progress:
            log.info("%s %s: %s", place, entry.name, _does(entry.stage))
            if status.state is not State.MISSING and not _planned(folder, fingerprint, status.state):
                self._make_way(entry, status, inputs, selection, progress)
            else:
                _refuse_other_shards(folder, selection)
                if not entry.allow_empty:
                    _forget_nothing(folder, selection)
            folder.mkdir(parents=True, exist_ok=True)
            incremental = {name: getattr(entry.stage.config, name) for name in entry.stage.incremental}
            plan = {"fingerprint": fingerprint, "grows": incremental}
            write_json(folder / PLAN, plan)
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
            with _stopwatch(folder) as spent, _named(entry):
                await entry.stage.run(context)
            await services.release_model()
            if not _last_shard(folder, context):
                progress.log(f"shard {context.shard} of {context.shards} done")
                return
            manifest = _manifest(entry, folder, fingerprint, inputs, context, spent())
            if not entry.allow_empty and (nothing := self._nothing(entry, manifest)):
                write_json(folder / PLAN, {**plan, _NOTHING: True})
                raise nothing
            write_manifest(folder, manifest)
            progress.log(_line(manifest))

    def _nothing(self, entry: StageEntry, manifest: Manifest) -> UserError | None:
        """The error of a stage that left nothing; None where it left something."""
        counts, folder = manifest.counts, self.folder(entry.name)
        untried = manifest.metrics.get("untried", 0)
        made = counts["records"] - untried if entry.stage.makes == "records" else manifest.metrics.get("samples")
        if made != 0:
            return None
        remedy = f"see {folder}{os.sep}drops-*.jsonl and mend what feeds it"
        if self.recipe.verb == "recipe":
            remedy += ", or write allow_empty: true in this stage where that is meant"
        if untried:
            example = manifest.metrics.get("untried_example", "see `finish` in its records")
            return entry.error(f"made nothing: none of {untried:,} could be tried ({example})", remedy)
        if not manifest.drops:
            read = ", ".join(self._reads(entry)) or "what it reads"
            return entry.error(f"made nothing: nothing to work on is in {read}", remedy)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in list(manifest.drops.items())[:3])
        reasons += ", ..." if len(manifest.drops) > 3 else ""
        first = next(iter(manifest.drops))
        example = next((d.detail for _, d in read_drops(folder) if d.reason == first and d.detail), "")
        shown = f" (such as: {' '.join(example.split())[:120]})" if example else ""
        return entry.error(f"made nothing; dropped: {reasons}{shown}", remedy)

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
        change = f" ({said})" if (said := _change(status.manifest, entry, inputs)) else ""
        if status.state is not State.DAMAGED and self._has_grown(entry, folder):
            _refuse_other_shards(folder, selection)
            progress.log(f"{status.state}{change}: what is there is kept")
            for path in [folder / MANIFEST, *folder.glob(f"{_SHARD}*")]:
                path.unlink(missing_ok=True)
            return
        if (work := _spent(folder)) > LONG and not selection.replace:
            raise UserError(
                f"{status.state}{change}, and {work / 3600:.1f} hours of work lie there",
                file=folder,
                remedy="make it anew with --replace, or give another --output",
            )
        progress.log(f"{status.state}{change}: made again")
        shutil.rmtree(folder)

    def _has_grown(self, entry: StageEntry, folder: Path) -> bool:
        """Whether what lies there is what this stage makes with smaller values of its incremental settings."""
        try:
            plan = orjson.loads((folder / PLAN).read_bytes())
            previous = entry.stage.previous_version(plan["grows"])
        except (OSError, ValueError, KeyError):
            return False
        if previous is None:
            return False
        return bool(self._fingerprint(replace(entry, stage=previous))[0] == plan["fingerprint"])

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
                try:
                    self._digests[name] = remembered_digest(name, self.output / _DIGESTS)
                except OSError as error:
                    raise of_the_system(error, error.filename or name) or error from error
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
        return self.recipe.teacher.digest()

    def _path(self, name: str | Path) -> Path:
        return name if isinstance(name, Path) else self.folder(name)


class _NotReady(Exception):
    pass


def _does(stage: Stage) -> str:
    """What a stage does, in its first sentence."""
    text = " ".join((type(stage).__doc__ or "").strip().split("\n\n", 1)[0].split())
    sentence = text.partition(". ")[0].replace("``", "")
    return sentence if sentence.endswith("...") else sentence.removesuffix(".")


def _forget_nothing(folder: Path, selection: Selection) -> None:
    """Where the last attempt left nothing, what it had to work with was wrong: nothing of it is gone on with."""
    try:
        nothing = orjson.loads((folder / PLAN).read_bytes()).get(_NOTHING)
    except (OSError, ValueError, AttributeError):
        return
    if nothing and selection.shards > 1:
        raise UserError(
            "made nothing", file=folder, remedy="mend its inputs, run it once with --prepare, then the array"
        )
    if nothing:
        shutil.rmtree(folder)


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
        return bool(orjson.loads((folder / PLAN).read_bytes())["fingerprint"] == fingerprint)
    except (OSError, ValueError, KeyError):
        return False


def _spent(folder: Path) -> float:
    """Seconds of work that lie in a stage's folder: what is noted, and what a killed last attempt did not note."""
    noted, plan = folder / _SECONDS, folder / PLAN
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
        return f"{key} was {was!r:.80}, is {now!r:.80}"
    if manifest.metrics.get("seed", entry.seed) != entry.seed:
        return f"seed was {manifest.metrics['seed']}, is {entry.seed}"
    changed = (name for name in [*inputs, *manifest.inputs] if inputs.get(name) != manifest.inputs.get(name))
    return next((f"input {Path(name).name} has changed" for name in changed), "made by another version")


def _differences(was: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(was.keys() | now.keys()):
        left, right = was.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(left, right))
        elif left != right:
            yield key, left, right


def _last_shard(folder: Path, context: StageContext) -> bool:
    """Note that this shard is done, with what it measured; True once all are, and then their metrics are summed."""
    if context.shards == 1:
        return True
    write_json(folder / f"{_SHARD}{context.shard:05d}-of-{context.shards:05d}.json", context.metrics)
    done = sorted(folder.glob(f"{_SHARD}*-of-{context.shards:05d}.json"))
    if len(done) < context.shards:
        return False
    total: Counter[str] = Counter()
    for path in done:
        total.update({k: v for k, v in orjson.loads(path.read_bytes()).items() if isinstance(v, int | float)})
    context.metrics.clear()
    context.metrics.update(total)
    return True


@contextlib.contextmanager
def _named(entry: StageEntry) -> Iterator[None]:
    """Say which stage an error is of that names no file itself."""
    try:
        yield
    except UserError as error:
        if error.file is None and type(error) is UserError and f"{entry.name}: " not in error.problem:
            raise entry.error(error.problem, error.remedy) from error
        raise


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
    drops.update(context.metrics.pop("dropped", {}))  # of stages that do not keep records
    counts = {
        "units": count_units(folder),
        **count_records(folder, majority),
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
        metrics={**context.metrics, "seed": entry.seed, "files": file_sizes(folder)},
    )


_NOT_CONTENT = (MANIFEST, PLAN, _SECONDS)


def file_sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of what a finished stage holds: a cheap check that nobody removed or cut a file."""
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in _NOT_CONTENT and not p.name.startswith(".")
    }


def _damage(manifest: Manifest, folder: Path) -> str:
    """How the files of a finished stage differ from those that it made; "" where they do not."""
    made, found = manifest.metrics.get("files", {}), file_sizes(folder)
    if gone := made.keys() - found.keys():
        return f"{min(gone)} is gone"
    if added := _added(manifest, folder):
        return f"{added[0]} is not of this stage"
    return next((f"{name} has another size" for name, size in found.items() if made[name] != size), "")


def _added(manifest: Manifest, folder: Path) -> list[str]:
    """Files in the folder of a finished stage that it did not make."""
    return sorted(file_sizes(folder).keys() - manifest.metrics.get("files", {}).keys())


def _line(manifest: Manifest) -> str:
    counts = manifest.counts
    text = made_text(manifest)
    if merged := counts.get("merged"):
        text += f", {count_text(merged, 'duplicate')} merged"
    if disagreeing := counts.get("disagreeing"):
        text += f", {disagreeing} given different answers ({counts['undecided']} without a majority)"
    if counts["drops"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in list(manifest.drops.items())[:3])
        text += f", dropped {counts['drops']} ({reasons}{', ...' if len(manifest.drops) > 3 else ''})"
    return f"{text}, {manifest.seconds:.1f} s"
