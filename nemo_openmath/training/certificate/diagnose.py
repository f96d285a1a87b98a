"""Losses of a trainer held against a certificate: certified, one fault, several that cannot be told apart, or unknown.

A fault explains the losses where one of its variants gives every reported one, within the tolerance of the trainer's
precision and the rounding of what was written. So does being right. Faults that are the same on the certified packs,
in every number, are named together: no row would tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nemo_openmath.training.certificate.files import RIGHT, Certificate, Predicted
from nemo_openmath.training.certificate.losses import ReportedLoss

Status = Literal["certified", "fault", "undecided", "unknown"]
SCALED = "scaled"
_LARGEST_FACTOR = 64  # of a loss that is so many times the right one
_SAME = 1e-9  # relative: numbers of a certificate that differ by no more are one


@dataclass(frozen=True)
class Explanation:
    """A way to be that gives the losses: ``right``, a fault's name, or ``scaled``."""

    name: str
    variant: str
    gap: float  # the largest relative distance of a reported loss from it


@dataclass(frozen=True)
class Diagnosis:
    """What the losses say of the trainer.

    ``fault``: one explanation, or several that are the same on these packs.
    """

    status: Status
    explanations: list[Explanation]  # one of each name, the nearest first
    right_gap: float  # the largest relative distance from the right losses
    tolerance: float

    @property
    def names(self) -> list[str]:
        """Return what explains the losses: ``right``, or names of faults."""
        return [explanation.name for explanation in self.explanations]


def diagnose(certificate: Certificate, losses: Sequence[ReportedLoss], tolerance: float) -> Diagnosis:
    """Return what ``losses`` say, where a right trainer's losses are right up to a relative ``tolerance``."""
    expectations = _Expectations(certificate)
    right = max(_gap(reported, expectations.of(reported, _RIGHT)) for reported in losses)
    best: dict[str, Explanation] = {}
    for explanation in _explanations(expectations, losses, tolerance):
        if explanation.name not in best or explanation.gap < best[explanation.name].gap:
            best[explanation.name] = explanation
    harmless = {name for name, fault in certificate.faults.items() if fault["harmless"]}
    if RIGHT in best:
        best = {name: explanation for name, explanation in best.items() if name not in harmless}
        for name in never_shown(certificate):
            best.setdefault(name, Explanation(name, "these packs cannot show it", best[RIGHT].gap))
    explanations = sorted(best.values(), key=lambda explanation: (explanation.name != RIGHT, explanation.gap))
    status: Status = "undecided"
    if not explanations:
        status = "unknown"
    elif len(explanations) == 1:
        status = "certified" if explanations[0].name == RIGHT else "fault"
    elif expectations.are_the_same(explanations):
        status = "fault"
    return Diagnosis(status, explanations, right, tolerance)


def _explanations(
    expectations: _Expectations, losses: Sequence[ReportedLoss], tolerance: float
) -> Iterator[Explanation]:
    for key in expectations.keys:
        gaps = []
        for reported in losses:
            expected = expectations.of(reported, key)
            gap = _gap(reported, expected)
            if expected is None or gap > expected.room(tolerance) + reported.rounding / abs(expected.loss):
                break
            gaps.append(gap)
        else:
            yield Explanation(*key, max(gaps))
    yield from _scaled(expectations, losses, tolerance)


def never_shown(certificate: Certificate) -> list[str]:
    """Return the faults that change nothing of these packs' losses, in none of their variants, but for those that act
    on some data alone: who trains on no other data needs none."""
    shown = {fault.fault for step in certificate.steps for fault in step.predicted}
    special = {name for name, fault in certificate.faults.items() if fault["some_data"]}
    return sorted({name for name, _ in certificate.unexercised} - shown - special)


@dataclass(frozen=True)
class _Expected:
    loss: float
    tolerance: float
    spread: float = 0.0  # of a part: the batch's loss times the root of how many times more targets the batch has

    def room(self, tolerance: float) -> float:
        """Return how far a reported loss may be, relative. Rounding is of tokens, and a part has few of them."""
        return self.tolerance + tolerance * max(1.0, self.spread / abs(self.loss))


_RIGHT = (RIGHT, "")


class _Expectations:
    """The losses of a certificate by step, fault and variant; ``keys`` are (name, variant), the right one first."""

    def __init__(self, certificate: Certificate):
        self._predicted: dict[tuple[int, str, str], Predicted] = {}
        self._steps = {step.step: step for step in certificate.steps}
        self._places: dict[tuple[int, str], list[int]] = {}  # of a step's samples by id; copies have several
        for step in certificate.steps:
            for prediction in (step.right(), *step.predicted):
                self._predicted[step.step, prediction.fault, prediction.variant] = prediction
            for place, sample in enumerate(step.samples):
                self._places.setdefault((step.step, sample.id), []).append(place)
        self.keys = list(dict.fromkeys((name, variant) for _, name, variant in self._predicted))

    def are_the_same(self, explanations: Sequence[Explanation]) -> bool:
        """Return whether faults predict the same in every number of the certificate; False for what is right."""
        numbers = [self._numbers((explanation.name, explanation.variant)) for explanation in explanations]
        if explanations[0].name == RIGHT or not all(numbers):
            return False
        return all(len(numbers[0]) == len(other) and all(map(_is_same, numbers[0], other)) for other in numbers[1:])

    def _numbers(self, key: tuple[str, str]) -> list[float | None]:
        of_steps = [self._predicted[step, *key] for step in self._steps if (step, *key) in self._predicted]
        return [loss for step in of_steps for loss in (step.loss, *step.micro_batches, *step.samples)]

    def of(self, reported: ReportedLoss, key: tuple[str, str]) -> _Expected | None:
        """Return what is expected in the place of a reported loss; None where a fault predicts nothing there."""
        prediction = self._predicted.get((reported.step, *key))
        if prediction is None:
            return None
        loss: float | None = prediction.loss
        step, targets = self._steps[reported.step], 0
        if reported.micro_batch is not None:
            loss = prediction.micro_batches[reported.micro_batch]
            targets = sum(s.target_tokens for s in step.samples if s.micro_batch == reported.micro_batch)
        elif reported.sample is not None:  # of copies in other packs, the one nearest to what was reported
            places = self._places[reported.step, reported.sample]
            targets = step.samples[places[0]].target_tokens
            copies = [value for place in places if (value := prediction.samples[place]) is not None]
            loss = min(copies, key=lambda value: abs(value - reported.loss), default=None)
        spread = step.loss * (step.target_tokens / targets) ** 0.5 if targets else 0.0
        return _Expected(loss, prediction.tolerance, spread) if loss else None


def _is_same(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= _SAME * abs(first)


def _gap(reported: ReportedLoss, expected: _Expected | None) -> float:
    return float("inf") if expected is None else abs(reported.loss - expected.loss) / abs(expected.loss)


def _scaled(expectations: _Expectations, losses: Sequence[ReportedLoss], tolerance: float) -> Iterator[Explanation]:
    """Yield that all losses are one whole number (of ranks, of micro-batches) times the right ones, or a fraction."""
    expected = [expectations.of(reported, _RIGHT) for reported in losses]
    if any(right is None for right in expected):
        return
    ratios = [reported.loss / right.loss for reported, right in zip(losses, expected, strict=True) if right]
    for text, inverse in (("{} times", False), ("1/{} of", True)):
        if min(ratios) <= 0:
            return
        factors = [1 / ratio if inverse else ratio for ratio in ratios]
        factor = round(factors[0])
        slack = [
            right.room(tolerance) + reported.rounding / abs(right.loss * ratio)
            for reported, right, ratio in zip(losses, expected, ratios, strict=True)
            if right
        ]
        gaps = [abs(ratio / factor - 1) for ratio in factors] if factor else []
        if 2 <= factor <= _LARGEST_FACTOR and all(gap <= room for gap, room in zip(gaps, slack, strict=True)):
            yield Explanation(SCALED, f"{text.format(factor)} the right loss", max(gaps))


def inseparable(certificate: Certificate, tolerance: float) -> list[list[str]]:
    """Return the pairs of names whose batch losses could be one another's at all steps, within ``tolerance`` each."""
    variants: dict[tuple[str, str], list[tuple[float, float]]] = {(RIGHT, ""): []}
    for step in certificate.steps:
        variants[RIGHT, ""].append((step.loss, 0.0))
        for fault in step.predicted:
            variants.setdefault((fault.fault, fault.variant), []).append((fault.loss, fault.tolerance))
    keys, pairs = list(variants), set()
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            if first[0] == second[0] or len(variants[first]) != len(variants[second]):
                continue
            if all(
                abs(a - b) <= (tolerance + ta) * abs(a) + (tolerance + tb) * abs(b)
                for (a, ta), (b, tb) in zip(variants[first], variants[second], strict=True)
            ):
                pairs.add((first[0], second[0]))
    return [list(pair) for pair in sorted(pairs)]
