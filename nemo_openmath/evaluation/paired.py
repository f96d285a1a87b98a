"""Compare two checkpoints, or two modes, problem by problem on the same problems.

Problems differ far more than models do. Pairing removes that difference, so a gain can be certain although the two
intervals overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.intervals import mean_interval, share_difference_interval
from nemo_openmath.evaluation.metrics import UNBOUNDED, ProblemScores


@dataclass(frozen=True, slots=True)
class Pair:
    """Name what is compared: mode and metric (with its k) before and after."""

    mode_before: str
    metric_before: str
    mode_after: str
    metric_after: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Read ``tir pass@1`` (the same on both sides) or ``cot pass@1 -> tir pass@1``. Raises UserError for others."""
        sides = [side.split() for side in text.split("->")]
        if len(sides) > 2 or any(len(side) != 2 for side in sides):
            raise UserError(f"not a pair: {text!r}", remedy="write 'tir pass@1' or 'cot pass@1 -> tir pass@1'")
        (mode_before, metric_before), (mode_after, metric_after) = sides[0], sides[-1]
        if (metric_before in UNBOUNDED or metric_after in UNBOUNDED) and metric_before != metric_after:
            raise UserError(f"cannot compare {metric_before} with {metric_after}", remedy="compare like with like")
        return cls(mode_before, metric_before, mode_after, metric_after)


@dataclass(frozen=True, slots=True)
class PairedRow:
    """The difference of one metric between two sides, over the problems of both."""

    metric: str
    """Metric with its k; ``maj@8 -> genselect@8`` where the two sides differ."""
    mode_before: str
    mode_after: str
    checkpoint_before: str
    checkpoint_after: str
    before: float
    """Mean over the problems, as ``after`` is."""
    after: float
    difference: float
    """After minus before."""
    low: float | None
    """Lower end of the difference's 95% interval."""
    high: float | None
    """Upper end of the interval."""
    better: int
    """Problems whose value rose."""
    worse: int
    """Problems whose value fell."""
    problems: int
    """Problems that are compared."""
    apart: int = 0
    """Problems that are left out because one side counts them apart."""


def paired_difference(
    before: Iterable[ProblemScores],
    after: Iterable[ProblemScores],
    pair: Pair,
    *,
    checkpoint_before: str = "",
    checkpoint_after: str = "",
) -> PairedRow:
    """Join two sets of scores by problem id and compare them.

    Raises UserError naming a problem that only one side has, or a metric that was not computed.
    """
    old = _values(before, pair.mode_before, pair.metric_before, checkpoint_before or "before")
    new = _values(after, pair.mode_after, pair.metric_after, checkpoint_after or "after")
    _check_same(old, new, checkpoint_before or "before", checkpoint_after or "after")
    ids = [i for i in sorted(old) if old[i] is not None and new[i] is not None]
    if not ids:
        raise UserError(
            "no problem has a value on both sides: all are counted apart", remedy="see `finish` of the generations"
        )
    first, second = (np.array([values[i] for i in ids], float) for values in (old, new))
    differences = second - first
    interval = mean_interval if pair.metric_before in UNBOUNDED else share_difference_interval
    low, high = interval(differences)
    same = pair.metric_before == pair.metric_after
    return PairedRow(
        metric=pair.metric_before if same else f"{pair.metric_before} -> {pair.metric_after}",
        mode_before=pair.mode_before,
        mode_after=pair.mode_after,
        checkpoint_before=checkpoint_before,
        checkpoint_after=checkpoint_after,
        before=float(first.mean()),
        after=float(second.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        better=int((differences > 1e-12).sum()),
        worse=int((differences < -1e-12).sum()),
        problems=len(ids),
        apart=len(old) - len(ids),
    )


def _values(scores: Iterable[ProblemScores], mode: str, metric: str, side: str) -> dict[str, float | None]:
    """Return problem id -> value. None stands for a problem that is counted apart."""
    rows = [problem for problem in scores if problem.mode == mode]
    if not rows:
        raise UserError(f"{side} has no scores of mode {mode!r}")
    known = next((row.values for row in rows if row.values), {})
    if known and metric not in known:
        raise UserError(f"{side} has no metric {metric!r} of mode {mode}", remedy=nearest(metric, sorted(known)))
    return {row.problem_id: row.values[metric] if row.values else None for row in rows}


def _check_same(before: Mapping[str, object], after: Mapping[str, object], old: str, new: str) -> None:
    for has, lacks, side, other_side in ((before, after, old, new), (after, before, new, old)):
        if only := has.keys() - lacks.keys():
            raise UserError(
                f"{len(only)} problems of {side} are not in {other_side}, for example {min(only)}",
                remedy="evaluate both on the same benchmark",
            )
