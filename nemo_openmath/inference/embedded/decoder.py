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


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A row's newest token, and what may follow it: node 0 is the newest token, at position ``start``; its children
    are guesses of the next token, and so on.

    ``parents``: of each node but the first an earlier node; None where each node follows the one before it.
    ``depth``: of each node, if known.
    """

    row: int
    start: int
    tokens: np.ndarray
    parents: np.ndarray | None = None
    depth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> np.ndarray:
        """Return the distance of each node from the first one [nodes]."""
        if self.depth is not None:
            return self.depth
        if self.parents is None:
            return np.arange(len(self.tokens))
        depths = [0]
        for parent in self.parents[1:].tolist():
            depths.append(depths[parent] + 1)
        return np.array(depths)

    def path(self, drawn: Sequence[int]) -> list[int]:
        """Return the nodes that plain decoding would have come to, the first one included. ``drawn``: the token that
        the model draws after each node. The one drawn after the path's last node is no guess of the tree."""
        tokens, node, path = self.tokens.tolist(), 0, [0]
        parents = range(-1, len(tokens) - 1) if self.parents is None else self.parents.tolist()
        for child in range(1, len(tokens)):
            if parents[child] == node and tokens[child] == drawn[node]:
                node = child
                path.append(node)
        return path


class Decoder(Protocol):
    """Computes tokens, and knows nothing of requests.

    A row is the place of one request. Logits are valid until the next call. All calls come from one thread.
    """

    exact: bool
    """Whether a token has the same logits however it is computed: by ``prefill``, ``decode`` or ``verify``."""
    on_cpu: bool
    """Whether a call computes in this thread, and in others of the process beside it."""
    states: Tensor | None
    """The model's last hidden state behind its last norm, of each row of the logits that were returned last
    [logits, hidden], in float32; None unless ``keep_states`` was called."""

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

    def verify(self, trees: Sequence[DraftTree]) -> Tensor:
        """Compute the nodes of all trees at once, each of them after its ancestors alone; return the logits
        [nodes, vocab], tree after tree. Node i takes the place of position ``start`` + i in the cache, so there must be
        as many left. What is accepted is put in its place by :meth:`keep`."""
        ...

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Keep of a tree that was just computed the nodes of ``path``, at positions ``start``, ``start`` + 1, .. ."""
        ...

    def keep_states(self) -> None:
        """Fill ``states`` from now on."""
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
