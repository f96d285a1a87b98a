"""What becomes of the units of a stage: a result, a failure, or a refusal by the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from nemo_openmath.core.errors import Incomplete, OpenMathError, Refused, UserError
from nemo_openmath.core.records import Drop, Record, RecordWriter
from nemo_openmath.core.stage.context import StageContext


@dataclass(frozen=True, slots=True)
class Result:
    """What one unit left."""

    records: Sequence[Record] = ()
    drops: Sequence[Drop] = ()
    asked: bool = True
    """False where no engine had to be asked for it."""


class Failures:
    """The units that failed after all retries. Each is kept with its error in ``failed-<shard>.jsonl``. The next run
    retries them, and begins the file anew."""

    def __init__(self, context: StageContext, attempts: int):
        self._stage, self._attempts = context.name, attempts
        self._path = context.output / f"failed-{context.shard:05d}-of-{context.shards:05d}.jsonl"
        self._path.unlink(missing_ok=True)
        self._kinds: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def __len__(self) -> int:
        return self._kinds.total()

    def add(self, key: str, error: OpenMathError) -> None:
        """Note the unit ``key`` and its last error."""
        kind = type(error).__name__
        self._kinds[kind] += 1
        self._example.setdefault(kind, f"{key}: {error}")
        with self._path.open("ab") as file:
            file.write(orjson.dumps({"unit": key, "error": kind, "message": str(error)}) + b"\n")

    def close(self) -> None:
        """Raise Incomplete, which says how many units failed, where any did."""
        if self._kinds:
            kind, count = self._kinds.most_common(1)[0]
            raise Incomplete(
                f"{self._stage}: {len(self)} unit{'s' * (len(self) != 1)} failed after {self._attempts} attempts, "
                f"{count} by {kind} (for "
                f"example {self._example[kind]}); what finished is kept, run again to retry the rest ({self._path})"
            )


class Refusals:
    """The units that the engine refused.

    They are held back until the engine has answered one: an engine that refuses every request is set up wrongly, which
    says nothing of the units. A prompt that is too long says nothing of the engine, and is stored at once.
    """

    SURE = 1000
    """So many refused requests without an answered one among them are no accident."""

    def __init__(self, context: StageContext, writer: RecordWriter):
        self._stage, self._writer = context.name, writer
        self._held: list[tuple[str, Result]] = []
        self._count = 0
        self._example = ""
        self._answered = False

    def add(self, key: str, result: Result, error: Refused) -> None:
        """Take the result of a refused unit, to be stored now or once the engine has answered another."""
        if self._answered or error.reason != Refused.reason:
            self._writer.commit(key, result.records, result.drops)
            return
        self._held.append((key, result))
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
        for key, result in self._held:
            self._writer.commit(key, result.records, result.drops)
        self._held = []

    def close(self) -> None:
        """Raise UserError where requests were made and all were refused."""
        if self._count and not self._answered:
            raise UserError(
                f"{self._stage}: the engine refused every request ({self._count}), the first with: {self._example}",
                remedy="put the engine's settings right and run the same command again",
            )


class UnitLog:
    """Takes the outcome of every unit: results go into the store, failures and refusals aside.

    Leaving it without an error raises UserError where the engine refused every request. What failed is said by
    ``failures.close()``, once all else is in order.
    """

    def __init__(self, context: StageContext, attempts: int):
        self.failures = Failures(context, attempts)
        self.writer = RecordWriter(context.output, shard=context.shard, shards=context.shards)
        if self.writer.lost:
            context.metrics["units_lost_to_damage"] = self.writer.lost
        self.refusals = Refusals(context, self.writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.writer:
            if error is None:
                self.refusals.close()
