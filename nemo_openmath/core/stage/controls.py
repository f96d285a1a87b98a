"""Controls: units whose right outcome is known, planted among the real ones of a stage while it runs.

A planted unit is a unit of the stage: the same ``process`` does it, with the same engine, settings, retries and
journal. Only what it leaves goes elsewhere. It is compared with what is known, and the comparison is stored in the
folder ``_controls`` within the stage's folder. So no reader of the stage's records, drops or counts meets it.

Where they stand is decided by seed: behind the n-th unit of a part of the work that a model is asked about, whichever
that is. A part that is gone on with plants the same ones at the same places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.records.observations import Observation

if TYPE_CHECKING:
    from nemo_openmath.core.stage.outcomes import Result
    from nemo_openmath.core.stage.services import Services

U = TypeVar("U")

CONTROLS = "_controls"
"""The folder, within that of a stage, of what became of its planted units."""


class Controls(ABC, Generic[U]):
    """The controls of a stage."""

    rate: float
    """Planted units for each real one, above 0 and at most 1."""

    def counts(self, unit: U) -> bool:
        """Return whether a real unit is one of those that the rate speaks of: one for which a model is asked."""
        return True

    @abstractmethod
    def unit(self, number: int) -> tuple[str, U]:
        """Return id and payload of a planted unit. ``number`` counts those of all parts of the work, from 0."""

    @abstractmethod
    async def observe(self, key: str, result: Result, services: Services) -> Observation:
        """Compare what the planted unit ``key`` left with what is known."""


class Schedule:
    """Says which planted units are due behind each real unit of a part of the work.

    Of every ``1 / rate`` real units in a row, one has a planted unit behind it. Which one is drawn, so that the number
    of planted units is the rate's share on average, however small the parts are.
    """

    def __init__(self, rate: float, seed: int, part: int, parts: int):
        self._rate, self._seed, self._part, self._parts = rate, seed, part, parts
        self._real = self._planted = 0

    def due(self) -> Iterator[int]:
        """Count one more real unit, and yield the numbers of the planted units that stand behind it."""
        self._real += 1
        while self._planted + self._draw() < self._real * self._rate:
            yield self._planted * self._parts + self._part
            self._planted += 1

    def _draw(self) -> float:
        """A number in [0, 1) for the next planted unit."""
        return derive_seed(self._seed, "controls", self._part, self._planted) / 2**31
