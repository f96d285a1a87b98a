"""The sizes of a drafter: settings are checked by them before torch is imported, which takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recurrence = Literal["silu", "linear"]


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """The sizes of a drafter, as its config.json says them."""

    hidden: int  # width of the served model
    vocab: int  # tokens of the served model
    layers: int = 2  # residual blocks of the head
    draft_tokens: int = 3  # guesses that it was trained for
    draft_vocab: int = 0  # tokens that may be guessed; 0: all
    recurrence: Recurrence = "silu"  # linear: without it, and b is 0

    @property
    def head_rows(self) -> int:
        """Rows of the head's last matrix."""
        return self.draft_vocab or self.vocab
