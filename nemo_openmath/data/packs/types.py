"""What the trainer reads: packs of samples, and where they come from.

A pack is several samples laid end to end in one row; attention stops at ``cu_seqlens``, so the model sees each
sample alone. With a pad multiple of 4, the samples ``a b c`` and ``d e f g h`` make this pack:

    tokens       a b c 0 d e f g h 0 0 0
    labels       b c 0 0 e f g h 0 0 0 0     the next token of the same sample; 0 where there is none
    loss_mask    1 1 . . . 1 1 1 . . . .     labels[t] counts in the loss (here d, e are a prompt: the first
                                             label of the loss is f, predicted from e)
    cu_seqlens   0 4 12

**How packs make up a batch.** The global batch is counted in samples. The packs of an epoch, shuffled, form one
stream of samples; step s is the samples [s x B, (s + 1) x B) of the epochs' streams laid end to end: exactly B
samples at every step but the last of a run, whatever the packs hold. A pack that straddles the boundary between
two steps is cut between two of its samples (never inside one), and the at most two pieces of a step are joined
again where they fit. Nothing in this depends on the parallel layout: ranks ask for the same batch and share its
packs out among themselves (``balance.py`` does it by attention cost). Normalise the loss by the target tokens of
the whole batch and the step is the same at every layout, packed or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples laid end to end. T tokens, n samples; T and every cu_seqlens are multiples of the pad multiple.

    Padding follows each sample inside its own segment: token 0, label 0, no target of the loss.
    """

    tokens: NDArray[np.int32]  # [T]
    labels: NDArray[np.int32]  # [T] the next token of the same sample
    loss_mask: NDArray[np.bool_]  # [T] whether labels[t] counts in the loss
    cu_seqlens: NDArray[np.int32]  # [n + 1] sample boundaries, padding included; cu_seqlens[0] = 0, [-1] = T
    sample_ids: tuple[str, ...]  # [n]

    @property
    def num_target_tokens(self) -> int:
        """Labels that count in the loss; the sum over the packs of a batch is the loss's denominator."""
        return int(np.count_nonzero(self.loss_mask))

    @property
    def attention_cost(self) -> int:
        """Sum of squared segment lengths: what causal attention costs, up to a constant."""
        ends = self.cu_seqlens.astype(np.int64)
        return int(((ends[1:] - ends[:-1]) ** 2).sum())

    def position_ids(self) -> NDArray[np.int32]:
        """[T] position within the segment: 0, 1, 2, ... from each boundary (for rotary embeddings)."""
        starts = np.repeat(self.cu_seqlens[:-1], self.cu_seqlens[1:] - self.cu_seqlens[:-1])
        return np.arange(len(self.tokens), dtype=np.int32) - starts


def empty_pack(length: int) -> Pack:
    """Return a pack of one segment of padding, ``length`` tokens: it adds nothing to loss or gradients."""
    zeros = np.zeros(length, np.int32)
    return Pack(zeros, zeros, np.zeros(length, np.bool_), np.array([0, length], np.int32), ("",))


class PackSource(Protocol):
    """The data of one training run, the same in every process that opens it."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of data, packing and order. Goes into checkpoints: a resume on other data is refused."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        ...

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    def batch(self, step: int) -> list[Pack]:
        """The global batch of a step (0 <= step < num_steps), at least one pack: a pure function of (seed, step),
        identical at every parallel layout and in any order of calls."""
        ...
