"""What becomes of the units of a stage: a result, a failure, or a refusal by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nemo_openmath.core.errors import ExitCode, OpenMathError, Refused, UserError
from nemo_openmath.core.records import Drop, Record, RecordWriter
from nemo_openmath.core.records.failed import FailedTally, FailedUnit
from nemo_openmath.core.records.manifest import sync
from nemo_openmath.core.records.store import count_lines, partition_files
from nemo_openmath.core.stage.context import StageContext
from nemo_openmath.core.stage.controls import CONTROLS


@dataclass(frozen=True, slots=True)
class Result:
    """What one unit left."""

    records: Sequence[Record] = ()
    drops: Sequence[Drop] = ()
    asked: bool = True
    """False where no engine had to be asked for it."""


class Failures:
    """The units that failed after all retries. Each is kept with its error (core/records/failed.py). The next run
    retries them, and begins the files anew. Planted units that failed are kept, too, and keep no stage from ending."""

    def __init__(self, context: StageContext, attempts: int):
        self._context, self._attempts = context, attempts
        for number in context.part_numbers():
            for folder in (context.output, context.output / CONTROLS):
                self._path(folder, number).unlink(missing_ok=True)
        self._files: set[Path] = set()
        self._tally = FailedTally()
        self._wrong_input = False

    def add(self, part: StageContext, key: str, error: OpenMathError) -> None:
        """Note the unit ``key`` of a part of the work, and its last error."""
        failed = FailedUnit(key, type(error).__name__, str(error))
        if not part.planted:
            self._tally.add(failed)
            self._wrong_input |= error.exit_code is ExitCode.USER_ERROR
        self._files.add(path := self._path(part.output, _number(part)))
        with path.open("ab") as file:
            file.write(failed.line())

    def close(self) -> None:
        """Make the files durable. Raises Incomplete, which says how many units failed, where none may fail and where
        some did for wrong input, which is no accident of these units."""
        if not self._files:
            return
        paths = sorted(self._files)
        for path in [*paths, *sorted({path.parent for path in paths})]:
            sync(path)
        if not self._tally.total or (self._context.failed_items and not self._wrong_input):
            return
        allowed = "failed_items allows no wrong input" if self._context.failed_items else "failed_items (0) allows none"
        own = next(path for path in paths if path.parent.name != CONTROLS)
        raise self._tally.error(self._context.name, self._attempts, allowed, own)

    def _path(self, folder: Path, number: int) -> Path:
        return partition_files(folder, number, self._context.partitions)["failed"]


class Refusals:
    """The units that the engine refused.

    They are held back until the engine has answered one: an engine that refuses every request is set up wrongly, which
    says nothing of the units. A prompt that is too long says nothing of the engine, and is stored at once.
    """

    SURE = 1000
    """So many refused requests without an answered one among them are no accident."""

    def __init__(self, context: StageContext, store: Callable[[StageContext, str, Result, int], None]):
        self._stage, self._store = context.name, store
        self._held: list[tuple[StageContext, str, Result, int]] = []
        self._count = 0
        self._example = ""
        self._answered = False

    def add(self, context: StageContext, key: str, result: Result, tokens: int, error: Refused) -> None:
        """Take the result of a refused unit, to be stored now or once the engine has answered another. ``tokens``: what
        models wrote for it all the same."""
        if self._answered or error.reason != Refused.reason:
            self._store(context, key, result, tokens)
            return
        self._held.append((context, key, result, tokens))
        self.count(error)

    def count(self, error: OpenMathError) -> None:
        """Count a refused request of a unit that is held back or has failed. Raises UserError after ``SURE`` of
        them."""
        self._count += 1
        self._example = self._example or str(error)
        if self._count >= self.SURE:
            self.close()

    def answered(self) -> None:
        """Note that the engine answered: it is set up rightly, and what was held back is stored."""
        self._answered = True
        held, self._held = self._held, []
        for context, key, result, tokens in held:
            self._store(context, key, result, tokens)

    def close(self) -> None:
        """Raise UserError where requests were made and all were refused."""
        if self._count and not self._answered:
            raise UserError(
                f"{self._stage}: the engine refused every request ({self._count}), the first with: {self._example}",
                remedy="put the engine's settings right and run the same command again",
            )


class _Opened:
    """The store of a part of the work, while units of it are in flight."""

    def __init__(self, context: StageContext, number: int):
        self.writer = RecordWriter(context.output, partition=number, partitions=context.partitions)
        self.pending = 0
        self.complete = False
        """Whether all its units have been handed out."""
        if self.writer.lost:
            context.metrics["units_lost_to_damage"] = context.metrics.get("units_lost_to_damage", 0) + self.writer.lost


class UnitLog:
    """Takes the outcome of every unit: results go into the store, failures and refusals aside.

    The store of each part of the work is open from its first unit to its last. Planted units have stores of their own,
    in the folder of their context. Leaving the log without an error raises UserError where the engine refused every
    request. What failed is said by ``failures.close()``, once all else is in order.
    """

    def __init__(self, context: StageContext, attempts: int):
        self._context = context
        self._opened: dict[tuple[Path, int], _Opened] = {}
        self.failures = Failures(context, attempts)
        self.refusals = Refusals(context, self.store)
        self.recovered = sum(
            count_lines(partition_files(context.output, number, context.partitions)["journal"])
            for number in context.part_numbers()
        )
        """Units that an earlier attempt finished."""

    def open(self, context: StageContext) -> RecordWriter:
        """Return the store of the part of the work that ``context`` is of."""
        if (place := _place(context)) not in self._opened:
            self._opened[place] = _Opened(context, _number(context))
        return self._opened[place].writer

    def begin(self, context: StageContext) -> None:
        """Note a unit that was handed out."""
        self.open(context)
        self._opened[_place(context)].pending += 1

    def store(self, context: StageContext, key: str, result: Result, tokens: int) -> None:
        """Store what a unit left. ``tokens``: what models wrote for it, records, drops and what was asked again."""
        self.open(context).commit(key, result.records, result.drops, tokens)
        self.end(context)

    def end(self, context: StageContext) -> None:
        """Note that a unit has ended, stored or not."""
        opened = self._opened[_place(context)]
        opened.pending -= 1
        self._close(context)

    def complete(self, context: StageContext) -> None:
        """Note that all units of a part of the work have been handed out."""
        self.open(context)
        self._opened[_place(context)].complete = True
        self._close(context)

    def _close(self, context: StageContext) -> None:
        opened = self._opened[_place(context)]
        if opened.complete and not opened.pending:
            self._opened.pop(_place(context)).writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for opened in self._opened.values():
                stack.enter_context(opened.writer)
            if error is None:
                self.refusals.close()


def _place(context: StageContext) -> tuple[Path, int]:
    """Return what tells the store of a part of the work from others."""
    return context.output, _number(context)


def _number(context: StageContext) -> int:
    return 0 if context.of is None else context.of.number
