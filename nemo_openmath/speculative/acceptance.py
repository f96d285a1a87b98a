"""How many drafted tokens the served model accepts: counted by position, and for a whole step.

What is counted is a decoder that stops where the model's answer ends. The pass over the prompt, or over a tool's
output, decides the first token of an answer. Each step then reads the newest token with drafts of the next ones, and
gives the drafts that are accepted and one token of the model behind them. Draft i is accepted only where all before it
are. No step follows the last token, and a draft behind it is neither right nor wrong: nobody reads it.

    answer    7 4 9 1 5 <end>    7 comes with the prompt
    step 1    7, drafts 4 9 2    accepted: 4 9, and the model says 1
    step 2    1, drafts 5 <end> 8    accepted: 5 <end>; the third draft is behind the end
    in all    2 steps, 5 tokens; 4 of 5 drafts accepted: of the first places 2 of 2, of the second 2 of 2, of the third
              0 of 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.speculative.texts import Text


@dataclass(frozen=True, slots=True)
class DecodingStep:
    """A step of decoding an answer."""

    accepted: int  # drafts
    room: int  # drafts that stand within the answer, accepted or not
    tokens: int  # of the answer that the step gives


@dataclass(slots=True)
class Acceptance:
    """Steps of decoding, counted by how many drafts they accepted."""

    draft_tokens: int
    steps_by_accepted: list[int] = field(default_factory=list)  # [n]: steps that accepted n drafts, 0..draft_tokens
    judged: list[int] = field(default_factory=list)  # [i]: steps in which draft i + 1 was right or wrong
    tokens: int = 0  # that these steps gave
    texts: int = 0
    written: int = 0  # tokens of the texts that the model itself wrote
    outside: int = 0  # of them, those that the drafter's vocabulary lacks

    def __post_init__(self) -> None:
        self.steps_by_accepted = self.steps_by_accepted or [0] * (self.draft_tokens + 1)
        self.judged = self.judged or [0] * self.draft_tokens

    @property
    def steps(self) -> int:
        return sum(self.steps_by_accepted)

    @property
    def accepted(self) -> list[int]:
        """Return in how many steps draft 1, 2, ... was accepted."""
        return [sum(self.steps_by_accepted[place:]) for place in range(1, self.draft_tokens + 1)]

    @property
    def accepted_per_step(self) -> float | None:
        """Return the mean number of drafts that a step accepts; None where no step was counted."""
        return sum(self.accepted) / self.steps if self.steps else None

    @property
    def tokens_per_step(self) -> float | None:
        """Return the mean number of tokens that a step gives, which is 1 without a drafter; None where no step was
        counted."""
        return self.tokens / self.steps if self.steps else None

    @property
    def by_position(self) -> list[float | None]:
        """Return the share in which draft i was accepted among the steps that accepted all before it and in which the
        answer went on so far; None where there was no such step."""
        return [right / of if of else None for right, of in zip(self.accepted, self.judged, strict=True)]

    @property
    def jointly(self) -> list[float | None]:
        """Return the share in which drafts 1 to i are all accepted where the answer goes on so far: the product of
        :attr:`by_position`, for i = 1, ..., draft_tokens; None where that is not known."""
        # where no draft i - 1 was accepted, none of draft i is, though nobody judged it
        return [*accumulate(self.by_position, lambda before, share: before and share and before * share)]

    def add(self, text: Text, drafts: Sequence[int], outside: int) -> None:
        """Count the steps that decode ``text``. ``drafts``: see :func:`decoding_steps`; ``outside``: tokens of the
        model that the drafter cannot guess."""
        for step in decoding_steps(text.loss_mask, drafts, self.draft_tokens):
            self.steps_by_accepted[step.accepted] += 1
            self.tokens += step.tokens
            for place in range(min(step.accepted + 1, step.room)):
                self.judged[place] += 1
        self.texts += 1
        self.written += int(text.loss_mask.sum())
        self.outside += outside

    def to_json(self) -> dict[str, Any]:
        """Return the counts and what follows from them."""
        return {
            "draft_tokens": self.draft_tokens,
            "texts": self.texts,
            "steps": self.steps,
            "tokens": self.tokens,
            "steps_by_accepted": self.steps_by_accepted,
            "accepted": self.accepted,
            "judged": self.judged,
            "accepted_per_step": _rounded(self.accepted_per_step),
            "tokens_per_step": _rounded(self.tokens_per_step),
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
            f"{self.tokens_per_step:.2f} tokens a step"
        )


def decoding_steps(loss_mask: NDArray[np.bool_], drafts: Sequence[int], draft_tokens: int) -> Iterator[DecodingStep]:
    """Yield the steps that decode a text with ``draft_tokens`` drafts each.

    ``drafts[t]``: how many drafts in a row, made from the state at token t, are what the text says from t+2 on; token
    t+1 is the newest one. What the model wrote between prompts and tools' outputs is decoded as answers of their own.
    """
    edges = np.flatnonzero(np.diff(loss_mask.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for start, end in edges.tolist():
        newest, last = max(1, start), end - 1  # no state stands before token 0
        while newest < last:
            room = min(draft_tokens, last - newest)
            accepted = min(drafts[newest - 1], room)
            given = min(accepted + 1, last - newest)
            yield DecodingStep(accepted, room, given)
            newest += given


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
