"""The interface of what computes the model: ``compiled.py`` in C, ``torch_decoder.py`` in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from nemo_openmath.inference.embedded.sampling import RowSampling


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens ``ids`` of a prompt, to be computed in ``row`` at positions start, start + 1, .."""

    row: int
    start: int
    ids: np.ndarray


class Decoder(Protocol):
    """Computes tokens, and knows nothing of requests.

    A row is the place of one request. Logits are valid until the next call. All calls come from one thread.
    """

    rows: int
    capacity: int
    """Tokens that each row holds."""
    block: int
    """Tokens by which the memory of a row grows."""
    vocab: int
    max_context: int
    """Tokens of prompt and completion."""

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Compute the tokens of all chunks at once, without padding; return the logits [chunks, vocab] of each chunk's
        last token. The cache of a chunk's row must hold positions 0..start-1."""
        ...

    def decode(self, rows: np.ndarray, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        """Compute one token for each of ``rows`` (ascending) at its position; return the logits [len(rows), vocab]."""
        ...

    def sample(
        self, logits: Tensor, rows: RowSampling, u: np.ndarray, with_logprobs: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw one token for each row of ``logits`` with the uniform numbers ``u`` [rows], and return the tokens and,
        where they are wanted, their log-probabilities."""
        ...

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a row's cache."""
        ...

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy them where ``source`` is not needed any more."""
        ...

    def save_row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Return copies of a row's first ``length`` keys and values, for :meth:`load_row`."""
        ...

    def load_row(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        """Put back the first ``length`` positions of what was saved."""
        ...

    def memory_tokens(self) -> np.ndarray:
        """Return the tokens [rows], in whole blocks, that each row has memory for; zeros where all memory is taken at
        once."""
        ...

    def release(self, row: int, length: int) -> None:
        """Give back the memory of a row behind its first ``length`` positions."""
        ...
