"""Run a recipe: each stage once, again only when what it was asked to do or what it reads has changed.

A stage's folder holds ``plan.json`` (the fingerprint that it is being made for) from its first moment and
``manifest.json`` from its last. Before a stage runs, its folder is

- left alone, where its manifest and files are as promised and the fingerprint is that of the recipe as it is now;
- gone on with, where it was begun for this fingerprint and has no manifest;
- kept and added to, where only an incremental setting has risen;
- made anew, where it was made for anything else.

Nothing in the folder is removed before all that the stage reads is there and known to be readable by it (inputs.py).

A stage that leaves nothing has not finished: the run ends there, unless its ``allow_empty`` says that this is meant.
Nor has one of whose units a greater share failed than its ``failed_items`` allows. The last job of an array decides it.

Where a decision ends a loop (iterations.py), the stages behind it are not needed and are left as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from nemo_openmath.core import shared_files
from nemo_openmath.core.errors import DamagedFile, Incomplete, UserError
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.progress import FOLDER as PROGRESS
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records.bodies import closing_files
from nemo_openmath.core.records.manifest import PLAN, Manifest, read_manifest, write_manifest
from nemo_openmath.core.stage import Stage, StageContext, UnitStage
from nemo_openmath.recipe import identity, stage_folder
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.fingerprint import Fingerprints, NotReady
from nemo_openmath.recipe.inputs import check_inputs, check_ready
from nemo_openmath.recipe.lock import nobody_at_work, partition_locks, planning_lock, run_lock
from nemo_openmath.recipe.outcome import (
    control_warnings,
    describe_outcome,
    describe_shard,
    made_nothing,
    make_manifest,
    refuse_failures,
    unread_replies,
)
from nemo_openmath.recipe.preflight import caught, check_output, preflight
from nemo_openmath.recipe.prompt_match import prompt_notes
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.server_addresses import ServerAddress
from nemo_openmath.recipe.services import RecipeServices
from nemo_openmath.recipe.setting_docs import first_sentence
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import StageStatus, State, added_files, change, damage, run_status, stage_status

log = logging.getLogger(__name__)

LONG = 900.0  # seconds of work that no run throws away unasked


class Run:
    """A recipe and its output folder, one sub-folder a stage."""

    def __init__(self, recipe: Recipe, output: Path):
        self.recipe = recipe
        self.output = output
        self._fingerprints = Fingerprints(recipe, output)
        self._said: set[str] = set()
        self.warned: set[str] = set()
        """What was warned about as stages ended."""

    async def execute(
        self,
        selection: StageSelection,
        overrides: Sequence[str] = (),
        servers: Mapping[str, ServerAddress] | None = None,
        finished: Callable[[StageEntry], None] | None = None,
    ) -> None:
        """Run what is missing or changed of the selected stages, in the recipe's order.

        ``overrides``: what the recipe was loaded with, for whoever opens the folder later. ``servers``: where models
        are served, in place of what the recipe says of teacher and student. ``finished``: called with each selected
        stage that is finished, be it now or before. Raises UserError for what can be known to be wrong before the first
        stage runs.
        """
        names = selection.names(self.recipe)
        self._wait_for_inputs(names)
        todo = self._check(names, selection)
        with run_lock(self.output, selection.only, selection.shard, selection.shards):
            self._begin(selection, overrides)
            if todo and selection.only is None:
                what = f"{self.recipe.name} ({self.recipe.path}) in {self.output}"
                log.info("%s: %d of %d stages to do", what, len(todo), len(names))
            self._say_prompts(todo)
            services = RecipeServices(self.recipe, self.output, servers)
            try:
                for number, name in enumerate(names, 1):
                    entry, place = self.recipe.stages[name], f"[{number}/{len(names)}]"
                    if reason := self._fingerprints.needless(entry):
                        log.info("%s %s: not needed, %s", place, name, reason)
                        continue
                    await self._run_stage(entry, services, selection, place)
                    if finished is not None and self._status(name).state is State.FINISHED:
                        finished(entry)
            finally:
                await services.close()

    def status(self) -> Iterator[StageStatus]:
        """Yield every stage as it stands now, without running anything."""
        return run_status(self.recipe, self.output, self._fingerprints)

    def folder(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.output / name

    def lost_work(self, names: Sequence[str]) -> Iterator[UserError]:
        """Yield what running ``names`` would refuse because long work lies in a stage's folder, as far as that can be
        known before the inputs of a stage are made."""
        for name in names:
            entry, status, folder = self.recipe.stages[name], self._status(name), self.folder(name)
            if status.state in (State.FINISHED, State.MISSING):
                continue
            try:
                fingerprint, inputs = self._fingerprints.of(entry)
            except NotReady:
                continue
            is_begun = status.state is State.UNFINISHED and stage_folder.is_planned(folder, fingerprint)
            if is_begun or _is_mendable(entry, status, fingerprint):
                continue
            if status.state is State.DAMAGED or not stage_folder.holds_smaller(entry, folder, self._fingerprints):
                yield from caught(partial(_refuse_long_work, folder, _described(entry, status, inputs)))

    def _check(self, names: Sequence[str], selection: StageSelection) -> list[str]:
        """Raise UserError for all that can be known to be wrong now. Return the stages that are to be done, as far as
        can be seen: those that are not finished, and what reads them."""
        check_output(self.output, [self.recipe.path, *self.recipe.extends])
        if not selection.replace or selection.only is not None:
            identity.check(self.recipe, self.output)
        states = {status.name: status.state for status in self.status()}
        todo = [name for name in names if states[name] not in (State.FINISHED, State.NEEDLESS)]
        preflight(self.recipe, todo, self.output, layouts=selection.only is None)
        self._refuse_stale_inputs(names)
        self._refuse_added_files(names)
        return todo

    def _wait_for_inputs(self, names: Sequence[str]) -> None:
        """In a job of Slurm, wait until this machine sees the stages that the job was queued behind: another one may
        have finished them a moment ago. What is missing all the same is refused by whoever needs it."""
        if "SLURM_JOB_ID" not in os.environ:
            return
        for name in names:
            for above in self.recipe.runs_after(entry := self.recipe.stages[name]):
                folder = self.folder(above)
                if self._fingerprints.needless(entry) or self._fingerprints.needless(self.recipe.stages[above]):
                    continue
                if above not in names:
                    shared_files.until_seen(partial(_unfinished, folder), folder)

    def _begin(self, selection: StageSelection, overrides: Sequence[str]) -> None:
        """Make the output folder that of this recipe."""
        if selection.only is None:
            for name in identity.take_over(self.recipe, self.output):
                log.info("%s: of another recipe, removed", name)
        identity.write(self.recipe, overrides, self.output)

    def _status(self, name: str) -> StageStatus:
        return stage_status(self.recipe.stages[name], self.folder(name), self._fingerprints)

    def _refuse_stale_inputs(self, names: Sequence[str]) -> None:
        """Raise UserError where a stage would be made from one that was made for other settings, and that the selection
        leaves as it is: the result would be shown as that of the recipe's settings."""
        checked: set[str] = set(names)
        todo = [(reader, name) for reader in names for name in self._above(self.recipe.stages[reader])]
        while todo:
            reader, name = todo.pop()
            if name in checked:
                continue
            checked.add(name)
            if self._fingerprints.needless(self.recipe.stages[name]):
                continue
            status = self._status(name)
            if status.other or status.state is State.DAMAGED:
                why = status.reason or "files of it are gone or cut"
                raise UserError(
                    f"stage {name!r} is {status.state} ({why}), and {reader!r} depends on it",
                    file=self.folder(name),
                    remedy="run it first, or leave out --from and --only",
                )
            todo += [(reader, above) for above in self._above(self.recipe.stages[name])]

    def _above(self, entry: StageEntry) -> list[str]:
        """The stages that a stage reads, and the decisions by which it is needed or not."""
        return [*self.recipe.read_by(entry), *entry.gates]

    def _refuse_added_files(self, names: Sequence[str]) -> None:
        """Raise UserError where a stage would be made in a folder that holds files of somebody else: its readers would
        take them for its own, and they would go with it when it is made anew."""
        for name in names:
            status = self._status(name)
            if status.state is State.MISSING:
                refuse_foreign_folder(self.folder(name), f"the folder of stage {name!r}", (PLAN,))
            if status.state is State.DAMAGED and status.manifest is not None:
                folder = self.folder(name)
                if added := added_files(status.manifest, folder):
                    raise UserError(f"is not of stage {name!r}", file=folder / added[0], remedy="move it away")

    async def _run_stage(
        self, entry: StageEntry, services: RecipeServices, selection: StageSelection, place: str
    ) -> None:
        """Bring one stage to its manifest. ``place``: its number among the selected ones, for people."""
        status = self._status(entry.name)
        if status.state is State.FINISHED:
            return
        try:
            fingerprint, inputs = self._fingerprints.of(entry)
        except NotReady as error:
            raise UserError(str(error), remedy="run it first, or leave out --from") from error
        folder = self.folder(entry.name)
        record = self.output / PROGRESS / f"{entry.name}.{selection.shard:05d}-of-{selection.shards:05d}.json"
        with Progress(entry.name, record=record) as progress:
            log.info("%s %s: %s", place, entry.name, _does(entry.stage))
            context = self._context(entry, services, selection, progress)
            check_inputs(entry, context.inputs, layouts=selection.only is None or not entry.stage.launched)
            if not selection.prepare:  # a job of another machine makes it then
                check_ready(entry, context.inputs)
            self._say_prompts([entry.name])  # rows that were read by now say on which prompt a model was trained
            with planning_lock(context):
                if selection.shards > 1 and (status := self._status(entry.name)).state is State.FINISHED:
                    return
                context.partitions = self._prepare_folder(entry, status, fingerprint, inputs, selection, progress)
            if selection.prepare:
                await entry.stage.prepare_launch(context)
                return
            with stage_folder.stopwatch(folder) as spent, _named(entry), partition_locks(context), closing_files():
                if selection.shards > 1 and not stage_folder.is_planned(folder, fingerprint):
                    raise UserError("is being made for other settings by now", file=folder, remedy="end one of the two")
                await entry.stage.run(context)
            await services.release_model()
            with planning_lock(context):  # one job of an array sees that it is the last
                if not stage_folder.is_last_shard(folder, context):
                    progress.log(describe_shard(context))
                    return
                manifest = self._finish(entry, fingerprint, inputs, context, spent())
            progress.log(describe_outcome(manifest))
            for sentence in [*control_warnings(entry, manifest), *unread_replies(entry, manifest)]:
                self.warned.add(sentence)
                log.warning("%s", sentence)

    def _say_prompts(self, names: Sequence[str]) -> None:
        """Warn, once, where a model is asked with another prompt than it was trained on."""
        for sentence in prompt_notes(self.recipe, self.output, names):
            if sentence not in self._said:
                self._said.add(sentence)
                log.warning("%s", sentence)

    def _finish(
        self, entry: StageEntry, fingerprint: str, inputs: dict[str, str], context: StageContext, seconds: float
    ) -> Manifest:
        """Write the manifest of a stage whose work is done. Raises Incomplete where too many units of it failed, and
        UserError where it left nothing."""
        folder = self.folder(entry.name)
        stage_folder.remove_foreign_failures(folder, context.partitions)
        try:
            refuse_failures(entry, context)
        except Incomplete:
            stage_folder.forget_failed_parts(folder, range(context.partitions), context.partitions)
            raise
        manifest = make_manifest(entry, fingerprint, inputs, context, seconds)
        reads, may_allow = self.recipe.read_by(entry), self.recipe.verb == "recipe"
        if not entry.allow_empty and (empty := made_nothing(entry, manifest, folder, reads, may_allow=may_allow)):
            stage_folder.write_plan(folder, entry.stage, fingerprint, context.partitions, made_nothing=True)
            raise empty
        write_manifest(folder, manifest)
        return manifest

    def _prepare_folder(
        self,
        entry: StageEntry,
        status: StageStatus,
        fingerprint: str,
        inputs: dict[str, str],
        selection: StageSelection,
        progress: Progress,
    ) -> int:
        """Keep of the stage's folder what is a part of what is asked for now, and write the plan. Return into how many
        parts the work is divided."""
        folder = self.folder(entry.name)
        begun_for_this = status.state is State.UNFINISHED and stage_folder.is_planned(folder, fingerprint)
        if begun_for_this and status.manifest is not None:  # it finished when more units might fail
            progress.log(f"{status.reason}: they are tried again")
            stage_folder.reopen(folder)
        if status.state is State.MISSING or begun_for_this:
            if not entry.allow_empty and stage_folder.left_nothing(folder):  # what it worked with was wrong
                with nobody_at_work(folder, selection.shards):
                    shutil.rmtree(folder)
        else:
            with nobody_at_work(folder, selection.shards):
                self._keep_or_remove(entry, status, fingerprint, inputs, selection, progress)
        partitions = stage_folder.partitions_of(folder, entry.stage, self.recipe.partitions, selection)
        folder.mkdir(parents=True, exist_ok=True)
        stage_folder.write_plan(folder, entry.stage, fingerprint, partitions)
        if not selection.prepare:
            own = range(selection.shard, partitions, selection.shards)
            stage_folder.forget_failed_parts(folder, own, partitions)
        return max(1, partitions)

    def _keep_or_remove(
        self,
        entry: StageEntry,
        status: StageStatus,
        fingerprint: str,
        inputs: dict[str, str],
        selection: StageSelection,
        progress: Progress,
    ) -> None:
        """Treat a folder that is damaged, or was made for other settings or inputs: keep the whole units of what is
        still asked for, and what an incremental setting adds to; remove anything else. Of an array the first job does
        this for all. Raises UserError where long work would be thrown away unasked."""
        folder = self.folder(entry.name)
        if _is_mendable(entry, status, fingerprint):
            progress.log(f"damaged ({status.reason}): what is whole of it is kept")
            stage_folder.reopen(folder)
            return
        what = _described(entry, status, inputs)
        if status.state is not State.DAMAGED and stage_folder.holds_smaller(entry, folder, self._fingerprints):
            progress.log(f"{what}: what is there is kept")
            stage_folder.reopen(folder)
            return
        if not selection.replace:
            _refuse_long_work(folder, what)
        progress.log(f"{what}: made again")
        shutil.rmtree(folder)

    def _context(
        self, entry: StageEntry, services: RecipeServices, selection: StageSelection, progress: Progress
    ) -> StageContext:
        present = self._fingerprints.inputs(entry)
        inputs = {
            port: [name if isinstance(name, Path) else self.folder(name) for name in present.get(port, ())]
            for port in (declared.removesuffix("?") for declared in entry.stage.ports)
        }
        return StageContext(
            name=entry.name,
            inputs=inputs,
            output=self.folder(entry.name),
            seed=entry.seed,
            services=services,
            progress=progress,
            shard=selection.shard,
            shards=selection.shards,
            hang_seconds=self.recipe.hang_seconds,
            failed_items=entry.failed_items,
        )


def _unfinished(folder: Path) -> str:
    """Return what a stage lacks to be finished and whole, as this machine sees it; "" where it is."""
    try:
        manifest = read_manifest(folder)
    except (DamagedFile, OSError) as error:
        return str(error)
    return "its manifest is not there" if manifest is None else damage(manifest, folder)


def _described(entry: StageEntry, status: StageStatus, inputs: dict[str, str]) -> str:
    """The state of a stage that is not what is asked for, and why."""
    difference = status.reason or change(status.manifest, entry, inputs)
    return f"{status.state} ({difference})" if difference else str(status.state)


def _refuse_long_work(folder: Path, what: str) -> None:
    if (work := stage_folder.seconds_of_work(folder)) > LONG:
        raise UserError(
            f"{what}, and {work / 3600:.1f} hours of work lie there",
            file=folder,
            remedy="make it anew with --replace (recipe run), remove that folder, or give another --output",
        )


def _is_mendable(entry: StageEntry, status: StageStatus, fingerprint: str) -> bool:
    """Return whether a damaged folder is of what is asked for now, by a stage that does again what is not whole."""
    manifest = status.manifest if status.state is State.DAMAGED else None
    return manifest is not None and manifest.fingerprint == fingerprint and isinstance(entry.stage, UnitStage)


def _does(stage: Stage) -> str:
    """What a stage does, in the first sentence of its text."""
    sentence = first_sentence(type(stage).__doc__).replace("``", "")
    return sentence if sentence.endswith("...") else sentence.removesuffix(".")


@contextlib.contextmanager
def _named(entry: StageEntry) -> Iterator[None]:
    """Say which stage an error is of that names no file itself. What is no error of ours gets a note that says it."""
    try:
        yield
    except UserError as error:
        if error.file is None and type(error) is UserError and f"{entry.name}: " not in error.problem:
            raise entry.error(error.problem, error.remedy) from error
        raise
    except Exception as error:
        error.add_note(f"stage {entry.name!r} ({entry.stage.kind})")
        raise
