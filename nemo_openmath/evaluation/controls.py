"""Sensitivity and specificity of a stage by the known cases that were planted in it (synthesis/controls).

Of a class, such as "proof":

- sensitivity is the share of its cases that the stage took for it,
- specificity is the share of the other cases that it did not take for it.

The cases are the sample. A case that was planted several times is one, with the share of times that it came out right:
asked greedily, a model says the same again. The interval of their mean is Gaffke's (evaluation/intervals.py), which is
Clopper and Pearson's exact one where each case was planted once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_openmath.core.records.failed import FailedTally
from nemo_openmath.core.records.observations import Observation, read_observations
from nemo_openmath.core.records.store import count_tokens
from nemo_openmath.core.stage import CONTROLS
from nemo_openmath.evaluation.intervals import share_interval

METRIC = "controls"
"""The key of :func:`measured` among the metrics of a manifest."""
EXAMPLES = 20
"""Most cases that came out wrong which are kept to be shown."""


def measured(folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Return what the planted cases say of a stage, finished or not. ``folder``: the stage's; ``classes``: those that
    it is to tell from all others.

    - ``planted``, ``cases``: planted units that were done, and the different cases among them
    - ``tokens``: what models wrote for the planted units
    - ``failed``: planted units that failed when they were last tried; they are in no score, and no stage fails of them
    - ``failures``: rows of ``error`` (its class), ``units``, ``example`` (the id of one, and its message)
    - ``scores``: rows of ``class``, ``measure``, ``value``, ``low``, ``high``, ``cases``, ``wrong`` (cases that came
      out wrong at least once)
    - ``examples``: of cases that came out wrong; ``case``, ``known``, ``outcome``, ``detail``
    """
    observations, failed = list(read_observations(folder / CONTROLS)), FailedTally.read(folder / CONTROLS)
    return {
        "planted": len(observations),
        "cases": len({observation.case for observation in observations}),
        "tokens": _tokens(folder / CONTROLS),
        "failed": failed.total,
        "failures": [
            {
                "error": error,
                "units": units,
                "example": f"{failed.examples[error].unit}: {failed.examples[error].message}",
            }
            for error, units in failed.kinds.most_common()
        ],
        "scores": list(scores(observations, classes)),
        "examples": list(_examples(observations, classes)),
    }


def _tokens(folder: Path) -> int:
    """Return what models wrote for the units of a folder; 0 while the last line of a journal is being written."""
    with contextlib.suppress(ValueError):
        return count_tokens(folder) or 0
    return 0


def scores(observations: Iterable[Observation], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield sensitivity and specificity of each class. One of which no case was planted has no row."""
    observations = list(observations)
    for name in classes:
        members = [o for o in observations if o.known == name]
        others = [o for o in observations if o.known != name] if members else []
        sides = (
            ("sensitivity", members, lambda o, name=name: o.outcome == name),
            ("specificity", others, lambda o, name=name: o.outcome != name),
        )
        for measure, side, is_right in sides:
            if side:
                yield {"class": name, "measure": measure, **_share(side, is_right)}


def _share(observations: Sequence[Observation], is_right: Callable[[Observation], bool]) -> dict[str, Any]:
    outcomes: dict[str, list[bool]] = {}
    for observation in observations:
        outcomes.setdefault(observation.case, []).append(is_right(observation))
    values = np.array([sum(right) / len(right) for right in outcomes.values()])
    low, high = share_interval(values)
    wrong = int(np.sum(values < 1))
    return {"value": float(values.mean()), "low": low, "high": high, "cases": len(values), "wrong": wrong}


def _examples(observations: Iterable[Observation], classes: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the cases that came out wrong for a class, each once."""
    told: set[str] = set()
    for o in sorted(observations, key=lambda o: o.id):
        is_wrong = o.known != o.outcome and (o.known in classes or o.outcome in classes)
        if is_wrong and o.case not in told and len(told) < EXAMPLES:
            told.add(o.case)
            yield {"case": o.case, "known": o.known, "outcome": o.outcome, "detail": o.detail}


def warnings(stage: str, controls: Mapping[str, Any], bound: float) -> list[str]:
    """Return a sentence for each error by which controls of a stage failed, for each sensitivity or specificity below
    ``bound``, and one where no case was planted. ``controls``: of :func:`measured`."""
    sentences = []
    for row in controls.get("failures", ()):
        number = f"{row['units']:,} controls" if row["units"] > 1 else "a control"
        sentences.append(
            f"{stage}: {number} failed after all attempts by {row['error']}, in no measure ({row['example']})"
        )
    if not controls["planted"]:
        return sentences or [f"{stage}: no control was done: too few units for the rate `controls`"]
    for row in controls["scores"]:
        if row["value"] < bound:
            sure = "so is its whole interval" if row["high"] < bound else "its interval still holds that"
            sentences.append(
                f"{stage}: {row['measure']} for {row['class']!r} is {score_text(row)}, {row['wrong']} of "
                f"{row['cases']} controls wrong: below control_bound ({bound:.0%}), {sure}"
            )
    return sentences


def score_text(row: Mapping[str, Any]) -> str:
    """Return the value of a row with its interval: ``91.7% (61.5–99.8)``."""
    return f"{row['value']:.1%} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
