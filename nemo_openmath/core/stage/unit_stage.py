"""A stage of independent units: given the units and a coroutine for one, the rest is here."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

from nemo_openmath.core import activity
from nemo_openmath.core.errors import ExitCode, OpenMathError, Refused, RetryableError
from nemo_openmath.core.records import Drop
from nemo_openmath.core.records.ids import partition_of, unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.stage.context import StageContext
from nemo_openmath.core.stage.contract import Stage
from nemo_openmath.core.stage.controls import Controls, Schedule
from nemo_openmath.core.stage.defects import StageDefect
from nemo_openmath.core.stage.outcomes import Result, UnitLog
from nemo_openmath.core.stage.watch import UnitWatch
from nemo_openmath.core.written_tokens import TokenCount, counted_tokens

C = TypeVar("C")
U = TypeVar("U")


class UnitStage(Stage[C], Generic[C, U]):
    """A stage whose units are independent. A subclass gives the units, and a coroutine that does one.

    - Hundreds to thousands of units are in flight at once; memory is bounded by ``concurrency`` units.
    - A unit that raises a retryable error is tried again ``retries`` times.
    - One that still fails is reported and left undone, so that running again retries it. The stage ends as Incomplete
      once all others are finished, unless so many may fail (``context.failed_items``).
    - One that the engine refuses, as it would again, leaves what :meth:`refused` says.
    - Any other error ends the stage. A note at the error names the unit.

    The work is divided into parts (``context.partitions``) by the first input: ``units`` is called for each part of the
    work, and ``context.read`` of this input gives the records of that part alone. All records of a problem are in one
    part. Where the first input holds files of others, the units themselves are divided, by their ids.

    Units whose right outcome is known may be planted among them (:meth:`controls`, core/stage/controls.py).
    """

    divided_inputs: ClassVar[tuple[str, ...]] = ()
    """Further inputs that are read by problem, so that each part of the work reads its own problems of them. Other
    inputs are read whole by every part."""

    splits = True
    control_classes: ClassVar[tuple[str, ...]] = ()
    """Classes of planted units (``Observation.known``) that the stage is to tell from all others: how well it does is
    said of each."""
    concurrency: int = 256
    """Units in flight at once."""
    retries: int = 2
    """How often a unit is tried again."""

    @abstractmethod
    def units(self, context: StageContext) -> Iterable[tuple[str, U]]:
        """Yield (id, payload) of every unit of a part of the work. Ids are content-derived. A payload holds all that
        :meth:`process` needs of the part: units of two parts may be in flight at once."""

    @abstractmethod
    async def process(self, unit: U, context: StageContext) -> Result:
        """Do one unit. Cancelling the task must release what it holds."""

    def refused(self, key: str, unit: U, error: Refused, context: StageContext) -> Result:
        """Return what a unit leaves that the engine refused, or whose prompt is too long: a drop, counted by its
        reason."""
        return Result(drops=[Drop(error.reason, str(error))])

    async def prepare(self, context: StageContext) -> None:
        """Open what all units share."""

    async def before_store(self, key: str, unit: U, result: Result, context: StageContext) -> None:
        """Do what else belongs to a unit that is about to be stored, such as a note about it. A unit that a kill cut
        off behind this is done again, and comes here again. Planted units do not."""

    def controls(self, context: StageContext) -> Controls[U] | None:
        """Return the units that are planted among the real ones; None where none are. Called after :meth:`prepare`."""
        return None

    def count(self, context: StageContext) -> int | None:
        """Return the number of units of this shard; None where counting would cost too much."""
        return None

    async def run(self, context: StageContext) -> None:
        """Do all units of this process that are not done. Raises Incomplete where some failed after all retries, and
        none may."""
        context = replace(context, divided=self._divided())
        await self.prepare(context)
        controls = self.controls(context)
        with UnitLog(context, self.retries + 1) as log:
            context.progress.begin(self.count(context), log.recovered)

            async def work(key: str, unit: tuple[StageContext, U]) -> None:
                part, payload = unit
                await self.do_unit(key, payload, part, log, controls)

            todo = _Todo(self.units, context, log, controls)
            with UnitWatch(context, context.hang_seconds):
                await run_bounded(todo, work, self.concurrency)
        self.check_sum(context, todo.offered)
        log.failures.close()

    def _divided(self) -> tuple[str, ...]:
        first = next(iter(self.ports), "").removesuffix("?")
        return (first, *self.divided_inputs) if first in self.takes else ()

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Check that every record of the first port was one unit: nothing vanishes on its way into the stage. Stages
        that make another number of units of a record override this."""
        port = next(iter(self.ports), "").removesuffix("?")
        number = context.number_read(port)
        if number is not None and number != offered:
            raise StageDefect(f"{self.kind}: {number} {port} went in, {offered} units were made of them")

    async def do_unit(
        self, key: str, unit: U, context: StageContext, log: UnitLog, controls: Controls[U] | None = None
    ) -> Result | None:
        """Do one unit that ``log`` has begun, with its retries, store what it left, and return it; None where it
        failed. Of a planted unit the observation is stored."""

        async def stored(left: Result) -> Result:
            if not context.planted or controls is None:
                with counted_tokens(count):  # a second model may be asked
                    await self.before_store(key, unit, left, context)
                return left
            return Result([await controls.observe(key, left, context.services)])

        result, count = None, TokenCount()
        try:
            with counted_tokens(count):
                result = await self._attempt(key, unit, context)
        except Refused as error:
            result = self.refused(key, unit, error, context)
            log.refusals.add(context, key, await stored(result), count.tokens, error)
        except RetryableError as error:
            log.failures.add(context, key, error)
            if error.exit_code is ExitCode.USER_ERROR:  # the server refuses us, not the unit
                log.refusals.count(error)
            context.progress.failed += not context.planted
            log.end(context)
        else:
            if not (result.records or result.drops):
                raise StageDefect(f"{self.kind}: unit {key} left neither a record nor a reason")
            if result.asked:
                log.refusals.answered()
            log.store(context, key, await stored(result), count.tokens)
        activity.happened()
        if context.planted:
            context.progress.planted += 1
        else:
            context.progress.advance()
        return result

    async def _attempt(self, key: str, unit: U, context: StageContext) -> Result:
        for attempt in range(self.retries + 1):
            try:
                result = await self.process(unit, context)
                if not isinstance(result, Result):
                    remedy = "return Result(records) or Result(drops=[Drop(reason)])"
                    raise StageDefect(f"process() returned {result!r:.80} and not a Result; {remedy}")
                return result
            except RetryableError as error:
                if not error.retryable or attempt == self.retries:
                    raise
            except OpenMathError:
                raise
            except Exception as error:  # a defect, which ends the stage: say where
                error.add_note(f"unit {key} of {self.kind}")
                raise
        raise AssertionError("the loop returns or raises")


class _Todo(Generic[U]):
    """The units that this process has to do: (id, (part of the work, payload)). ``offered`` counts all different units
    of its parts, planted ones left out."""

    def __init__(
        self,
        units: Callable[[StageContext], Iterable[tuple[str, U]]],
        context: StageContext,
        log: UnitLog,
        controls: Controls[U] | None,
    ):
        self._units, self._context, self._log, self._controls = units, context, log, controls
        self.offered = 0

    def __iter__(self) -> Iterator[tuple[str, tuple[StageContext, U]]]:
        if not self._context.divided:
            yield from self._by_unit()
            return
        for part in self._context.parts():
            seen, planter = KeySet(), _Planter(part, self._controls)
            for key, unit in self._units(part):
                if self._is_new(key, seen):
                    yield from self._missing(part, key, unit)
                    yield from self._planted(planter, unit)
            self._complete(planter)

    def _by_unit(self) -> Iterator[tuple[str, tuple[StageContext, U]]]:
        """The units of files of others, divided by their ids."""
        seen, count = KeySet(), self._context.partitions
        parts = {n: _Planter(self._context.part(n), self._controls) for n in self._context.part_numbers()}
        for key, unit in self._units(self._context):
            planter = parts.get(partition_of(key, count))
            if planter is not None and self._is_new(key, seen):
                yield from self._missing(planter.part, key, unit)
                yield from self._planted(planter, unit)
        for planter in parts.values():
            self._complete(planter)

    def _planted(self, planter: _Planter[U], unit: U) -> Iterator[tuple[str, tuple[StageContext, U]]]:
        for key, planted in planter.behind(unit):
            yield from self._missing(planter.aside, key, planted)

    def _complete(self, planter: _Planter[U]) -> None:
        self._log.complete(planter.part)
        if self._controls is not None:
            self._log.complete(planter.aside)

    def _is_new(self, key: str, seen: KeySet) -> bool:
        activity.happened()
        if new := seen.add(unit_key(key)):
            self.offered += 1
        else:
            metrics = self._context.metrics
            metrics["equal_units"] = metrics.get("equal_units", 0) + 1
        return new

    def _missing(self, part: StageContext, key: str, unit: U) -> Iterator[tuple[str, tuple[StageContext, U]]]:
        if not self._log.open(part).done(key):
            self._log.begin(part)
            yield key, (part, unit)


class _Planter(Generic[U]):
    """Plants units in a part of the work. ``part``: the context of its real units; ``aside``: that of its planted
    ones."""

    def __init__(self, part: StageContext, controls: Controls[U] | None):
        self.part, self.aside = part, part.for_controls()
        self._controls = controls
        number = 0 if part.of is None else part.of.number
        self._schedule = None if controls is None else Schedule(controls.rate, part.seed, number, part.partitions)

    def behind(self, unit: U) -> Iterator[tuple[str, U]]:
        """Yield the planted units that stand behind one more real unit."""
        if self._schedule is not None and self._controls is not None and self._controls.counts(unit):
            for number in self._schedule.due():
                yield self._controls.unit(number)


async def run_bounded(
    units: Iterable[tuple[str, U]], work: Callable[[str, U], Awaitable[None]], concurrency: int
) -> None:
    """Run ``work`` over a stream with at most ``concurrency`` in flight. The first error cancels the rest."""
    pending: set[asyncio.Task[None]] = set()
    try:
        for key, unit in units:
            pending.add(asyncio.ensure_future(_call(work, key, unit)))
            if len(pending) >= concurrency:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _call(work: Callable[[str, U], Awaitable[None]], key: str, unit: U) -> None:
    await work(key, unit)
