"""How many drafted tokens the served model accepts: counted by position, and for a whole step.

A step of decoding yields one token of the model and the drafts that are accepted with it. Draft i is accepted only
where all before it are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.speculative.texts import Text


@dataclass(slots=True)
class Acceptance:
    """Steps of decoding, counted by how many drafts they accepted."""

    draft_tokens: int
    steps_by_accepted: list[int] = field(default_factory=list)  # [n]: steps that accepted n drafts, 0..draft_tokens
    texts: int = 0
    written: int = 0  # tokens of the texts that the model itself wrote
    outside: int = 0  # of them, those that the drafter's vocabulary lacks

    def __post_init__(self) -> None:
        self.steps_by_accepted = self.steps_by_accepted or [0] * (self.draft_tokens + 1)

    @property
    def steps(self) -> int:
        return sum(self.steps_by_accepted)

    @property
    def accepted(self) -> int:
        """Return the number of accepted drafts."""
        return sum(number * steps for number, steps in enumerate(self.steps_by_accepted))

    @property
    def accepted_per_step(self) -> float | None:
        """Return the mean number of drafts that a step accepts; None where no step was counted."""
        return self.accepted / self.steps if self.steps else None

    @property
    def jointly(self) -> list[float]:
        """Return the share of the steps in which drafts 1 to i were all accepted, for i = 1, ..., draft_tokens."""
        reached = np.cumsum(self.steps_by_accepted[::-1])[::-1]
        return [float(count / self.steps) for count in reached[1:]] if self.steps else []

    @property
    def by_position(self) -> list[float | None]:
        """Return the share in which draft i was accepted among the steps that accepted all before it; None where there
        was no such step."""
        reached = np.cumsum(self.steps_by_accepted[::-1])[::-1].tolist()
        return [after / before if before else None for before, after in pairwise(reached)]

    def add(self, text: Text, drafts: Sequence[int], outside: int) -> None:
        """Count the steps that decode ``text``. ``drafts``: see :func:`accepted_steps`; ``outside``: tokens of the
        model that the drafter cannot guess."""
        for accepted in accepted_steps(text.loss_mask, drafts):
            self.steps_by_accepted[accepted] += 1
        self.texts += 1
        self.written += int(text.loss_mask.sum())
        self.outside += outside

    def to_json(self) -> dict[str, Any]:
        """Return the counts and what follows from them."""
        per_step = self.accepted_per_step
        return {
            "draft_tokens": self.draft_tokens,
            "texts": self.texts,
            "steps": self.steps,
            "steps_by_accepted": self.steps_by_accepted,
            "accepted_per_step": _rounded(per_step),
            "tokens_per_step": None if per_step is None else _rounded(1 + per_step),
            "by_position": [_rounded(share) for share in self.by_position],
            "jointly": [_rounded(share) for share in self.jointly],
            "outside_draft_vocab": _rounded(self.outside / self.written if self.written else None),
        }

    def line(self) -> str:
        """Return the numbers in a line, for a log."""
        if not self.steps:
            return "nothing held out to measure"
        return (
            f"accepted {self.accepted_per_step:.2f} of {self.draft_tokens} drafts a step, "
            f"all in {self.jointly[-1]:.0%} of the steps"
        )


def accepted_steps(loss_mask: NDArray[np.bool_], drafts: Sequence[int]) -> list[int]:
    """Return how many drafts each step accepts that decodes a text.

    ``drafts[t]``: how many drafts in a row, made from the state at token t, are what the text says from t+2 on. The
    model itself decides token t+1. Nothing is drafted across what the model did not write: a step ends there.
    """
    counts: list[int] = []
    at = 1
    while at < len(loss_mask):  # ``at``: the token that the model itself decides, from the state before it
        if not loss_mask[at]:
            at += 1
            continue
        taken = 0
        while taken < drafts[at - 1] and loss_mask[at + taken + 1]:
            taken += 1
        counts.append(taken)
        at += taken + 1
    return counts


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
