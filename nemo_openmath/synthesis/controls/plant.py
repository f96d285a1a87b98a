"""A stage that asks a model, with known cases planted among its units: settings, and the cases in their order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from nemo_openmath.core.bounds import Share
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.core.records.observations import Observation
from nemo_openmath.core.stage import ADDED, RUNTIME, Controls, Result, Services, StageContext, UnitStage
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import Case

KEY = "control-"
"""How the id of a planted unit begins."""
DETAIL = 500
"""Most letters of what a planted unit left, for a reader."""


@dataclass(frozen=True)
class ControlledConfig:
    """Settings of planted cases, of a stage that asks a model."""

    controls: Share = field(default=0.0, metadata=ADDED)
    """Known cases that are planted for each unit that the model is asked about; 0.02: two of a hundred. They measure
    the stage while it runs, and nothing of them is left in its records. 0: none."""
    control_cases: Path | None = field(default=None, metadata=ADDED)
    """A file of known cases of your own, JSON lines. null: the shipped ones."""
    control_bound: Share = field(default=0.9, metadata=RUNTIME)
    """A sensitivity or specificity below it is warned about."""


C = TypeVar("C", bound=ControlledConfig)
U = TypeVar("U")


class ControlledStage(UnitStage[C, U], Generic[C, U]):
    """A stage among whose units known cases are planted where its settings say so. A subclass names its ``case``."""

    case: ClassVar[type[Case]]

    def __init__(self, config: C):
        super().__init__(config)
        bank = load_bank(self.kind, config.control_cases) if config.controls else []
        self.cases = [case for case in bank if self.tells(case)]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "case" in cls.__dict__:
            cls.control_classes = cls.case.classes

    def tells(self, case: Case) -> bool:
        """Return whether the stage, by its settings, can find what is known of a case."""
        return True

    def is_asked(self, unit: U) -> bool:
        """Return whether the model is asked about a real unit, as far as that is known beforehand."""
        return True

    def controls(self, context: StageContext) -> Controls[U] | None:
        if not self.cases:
            return None
        return CaseControls(self.cases, self.config.controls, context.seed, self.is_asked)


class CaseControls(Controls[U]):
    """Plants the cases of a bank, one after the other, again from the first after the last.

    Their order is drawn, classes in turn: of the first so many, each class has about as many.
    """

    def __init__(self, cases: Sequence[Case], rate: float, seed: int, counts: Callable[[U], bool]):
        self.rate, self._counts = rate, counts
        self._cases = in_turn(cases, seed)

    def counts(self, unit: U) -> bool:
        return self._counts(unit)

    def unit(self, number: int) -> tuple[str, U]:
        case = self._cases[number % len(self._cases)]
        key = f"{KEY}{number:06d}-{case.id}"
        return key, case.unit(key)

    async def observe(self, key: str, result: Result, services: Services) -> Observation:
        case = self._cases[int(key.removeprefix(KEY).partition("-")[0]) % len(self._cases)]
        outcome = await case.outcome(result, services)
        return Observation(id=key, case=case.id, known=case.known, outcome=outcome, detail=left(result)[:DETAIL])


def in_turn(cases: Sequence[Case], seed: int) -> list[Case]:
    """Return cases in an order that is drawn, each class as evenly spread as its number allows."""
    rng = random.Random(f"controls:{seed}")
    by_class: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        by_class.setdefault(case.known, []).append(case)
    placed = []
    for name, members in sorted(by_class.items()):
        rng.shuffle(members)
        shift = rng.random()
        placed += [((at + shift) / len(members), name, case) for at, case in enumerate(members)]
    return [case for _, _, case in sorted(placed, key=lambda place: place[:2])]


def left(result: Result) -> str:
    """Return what a unit left, for a reader."""
    if not result.records:
        return "; ".join(f"{drop.reason}: {drop.detail}" for drop in result.drops)
    return "\n".join(map(_shown, result.records))


def _shown(record: object) -> str:
    if isinstance(record, Problem):
        answer = "" if record.expected_answer is None else f" (answer: {record.expected_answer})"
        return f"{record.problem}{answer}"
    if isinstance(record, Generation):
        return f"{record.verdict}: {record.verdict_reason}"
    return str(record)
