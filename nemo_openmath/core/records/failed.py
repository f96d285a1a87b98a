"""Units of a stage that failed after all retries: ``failed-00000-of-00001.jsonl`` beside the records of a partition.

A line is ``{unit, error, message}``. The units are in no journal, so whoever runs the stage again tries them again. A
stage that may finish with some of them (``failed_items``) counts them in its manifest among the units and the drops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import orjson

from nemo_openmath.core.errors import Incomplete, UserError

FAILED = "failed"  # among the counts of a manifest: units that failed


@dataclass(frozen=True, slots=True)
class FailedUnit:
    """A unit that failed, and its last error."""

    unit: str
    error: str
    """The error's class, such as ``EngineError``."""
    message: str

    @property
    def reason(self) -> str:
        """What is counted where the stage finishes without it."""
        return f"failed after all attempts: {self.error}"

    def line(self) -> bytes:
        """Return the line of the file."""
        return orjson.dumps(self) + b"\n"


@dataclass
class FailedTally:
    """How many units failed, by which errors."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Class of an error -> units."""
    reasons: Counter[str] = field(default_factory=Counter)
    """``FailedUnit.reason`` -> units."""
    examples: dict[str, FailedUnit] = field(default_factory=dict)
    """Class of an error -> the first unit."""

    @classmethod
    def read(cls, folder: Path) -> FailedTally:
        """Count the failed units of a folder."""
        tally = cls()
        for unit in read_failed(folder):
            tally.add(unit)
        return tally

    @property
    def total(self) -> int:
        return self.kinds.total()

    def add(self, unit: FailedUnit) -> None:
        """Count a unit."""
        self.kinds[unit.error] += 1
        self.reasons[unit.reason] += 1
        self.examples.setdefault(unit.error, unit)

    def error(self, stage: str, attempts: int, allowed: str, file: Path) -> Incomplete:
        """Return the error of a stage that cannot finish without these units. ``allowed``: how many of them may fail,
        and what says so; ``file``: where they stand."""
        kind, count = self.kinds.most_common(1)[0]
        example = self.examples[kind]
        failed = f"{self.total} unit{'s' * (self.total != 1)} failed after {attempts} attempt{'s' * (attempts != 1)}"
        return Incomplete(
            f"{stage}: {failed}, {count} by {kind} (for example {example.unit}: {example.message}), and {allowed}; "
            f"what finished is kept, run again to retry the rest ({file})"
        )


def num_may_fail(share: float, units: int) -> int:
    """Return how many of ``units`` a share is, rounded down: the share that was written, not its nearest binary
    number."""
    return int(Fraction(repr(share)) * units)


def allowance(share: float, units: int) -> str:
    """Return how many of ``units`` may fail, and what says so, in words."""
    number = num_may_fail(share, units)
    return f"failed_items ({share:g} of {units:,}) allows {f'{number:,}' if number else 'none'}"


def read_failed(folder: Path) -> Iterator[FailedUnit]:
    """Yield the units of a folder that failed when they were last tried. Raises UserError naming file and row of a
    broken line."""
    for path in sorted(folder.glob("failed-*.jsonl")):
        with path.open("rb") as file:
            for row, line in enumerate(file, 1):
                try:
                    yield FailedUnit(**orjson.loads(line))
                except (ValueError, TypeError) as error:
                    problem, remedy = f"not a failed unit ({error})", "delete the file and run the stage again"
                    raise UserError(problem, file=path, row=row, remedy=remedy) from error
