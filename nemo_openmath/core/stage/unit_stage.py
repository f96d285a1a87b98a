"""A stage of independent units: given the units and a coroutine for one, the rest is here."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from nemo_openmath.core.errors import ExitCode, OpenMathError, Refused, RetryableError
from nemo_openmath.core.records import Drop, RecordWriter
from nemo_openmath.core.records.ids import in_shard, unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.stage.context import StageContext
from nemo_openmath.core.stage.contract import Stage
from nemo_openmath.core.stage.defects import StageDefect
from nemo_openmath.core.stage.outcomes import Result, UnitLog

C = TypeVar("C")
U = TypeVar("U")


class UnitStage(Stage[C], Generic[C, U]):
    """A stage whose units are independent. A subclass gives the units, and a coroutine that does one.

    - Hundreds to thousands of units are in flight at once; memory is bounded by ``concurrency`` units.
    - A unit that raises a retryable error is tried again ``retries`` times.
    - One that still fails is reported and left undone, so that running again retries it. The stage ends as Incomplete
      once all others are finished.
    - One that the engine refuses, as it would again, leaves what :meth:`refused` says.
    - Any other error ends the stage. A note at the error names the unit.
    """

    concurrency: int = 256
    """Units in flight at once."""
    retries: int = 2
    """How often a unit is tried again."""

    @abstractmethod
    def units(self, context: StageContext) -> Iterable[tuple[str, U]]:
        """Yield (id, payload) of every unit. Ids are content-derived."""

    @abstractmethod
    async def process(self, unit: U, context: StageContext) -> Result:
        """Do one unit. Cancelling the task must release what it holds."""

    def refused(self, key: str, unit: U, error: Refused, context: StageContext) -> Result:
        """Return what a unit leaves that the engine refused, or whose prompt is too long: a drop, counted by its
        reason."""
        return Result(drops=[Drop(error.reason, str(error))])

    async def prepare(self, context: StageContext) -> None:
        """Open what all units share."""

    def count(self, context: StageContext) -> int | None:
        """Return the number of units of this shard; None where counting would cost too much."""
        return None

    async def run(self, context: StageContext) -> None:
        """Do all units of this shard that are not done. Raises Incomplete where some failed after all retries."""
        await self.prepare(context)
        with UnitLog(context, self.retries + 1) as log:
            context.progress.begin(self.count(context), log.writer.recovered)

            async def work(key: str, unit: U) -> None:
                await self.do_unit(key, unit, context, log)

            todo = _Todo(self.units(context), context, log.writer)
            await run_bounded(todo, work, self.concurrency)
        self.check_sum(context, todo.offered)
        log.failures.close()

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Check that every record of the first port was one unit: nothing vanishes on its way into the stage. Stages
        that make another number of units of a record override this."""
        port = next(iter(self.ports), "")
        number = context.records_read.get(port, offered)
        if number != offered:
            raise StageDefect(f"{self.kind}: {number} {port} went in, {offered} units were made of them")

    async def do_unit(self, key: str, unit: U, context: StageContext, log: UnitLog) -> Result | None:
        """Do one unit, with its retries, store what it left, and return it; None where it failed."""
        result = None
        try:
            result = await self._attempt(key, unit, context)
        except Refused as error:
            result = self.refused(key, unit, error, context)
            log.refusals.add(key, result, error)
        except RetryableError as error:
            log.failures.add(key, error)
            if error.exit_code is ExitCode.USER_ERROR:  # the server refuses us, not the unit
                log.refusals.count(error)
            context.progress.failed += 1
        else:
            if not (result.records or result.drops):
                raise StageDefect(f"{self.kind}: unit {key} left neither a record nor a reason")
            if result.asked:
                log.refusals.answered()
            log.writer.commit(key, result.records, result.drops)
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
    """The units of a stage that this shard has to do: (id, payload). ``offered`` counts all different units."""

    def __init__(self, units: Iterable[tuple[str, U]], context: StageContext, writer: RecordWriter):
        self._units, self._context, self._writer = units, context, writer
        self.offered = 0

    def __iter__(self) -> Iterator[tuple[str, U]]:
        context, seen = self._context, KeySet()
        for key, unit in self._units:
            if not seen.add(unit_key(key)):
                context.metrics["equal_units"] = context.metrics.get("equal_units", 0) + 1
                continue
            self.offered += 1
            if in_shard(key, context.shard, context.shards) and not self._writer.done(key):
                yield key, unit


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
