"""A pack: several samples laid end to end in one row, and how packs are built, joined and taken apart.

Attention stops at ``cu_seqlens``, so the model sees each sample alone. With a pad multiple of 4, the samples ``a b c``
and ``d e f g h`` make this pack:

    tokens       a b c 0 d e f g h 0 0 0
    labels       b c 0 0 e f g h 0 0 0 0     the next token of the same sample; 0 where there is none
    loss_mask    1 1 . . . 1 1 1 . . . .     labels[t] counts in the loss (here d, e are a prompt: the first
                                             label of the loss is f, predicted from e)
    cu_seqlens   0 4 12
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.tokens.token_file import Sample


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
        """Return each token's position in its segment, [T]: 0, 1, 2, ... from each boundary (for RoPE)."""
        starts = np.repeat(self.cu_seqlens[:-1], self.cu_seqlens[1:] - self.cu_seqlens[:-1])
        return np.arange(len(self.tokens), dtype=np.int32) - starts


def lay_out(samples: Sequence[Sample], pad_multiple: int) -> Pack:
    """Return the pack of ``samples`` laid end to end, each padded to a multiple of ``pad_multiple`` tokens."""
    sizes = [-(-len(sample.tokens) // pad_multiple) * pad_multiple for sample in samples]
    boundaries = np.cumsum([0, *sizes], dtype=np.int32)
    tokens = np.zeros(boundaries[-1], np.int32)
    labels = np.zeros(boundaries[-1], np.int32)
    loss_mask = np.zeros(boundaries[-1], np.bool_)
    for sample, start in zip(samples, boundaries.tolist(), strict=False):
        stop = start + len(sample.tokens)
        tokens[start:stop] = sample.tokens
        labels[start : stop - 1] = sample.tokens[1:]
        loss_mask[start : stop - 1] = sample.loss_mask[1:]
    return Pack(tokens, labels, loss_mask, boundaries, tuple(s.id for s in samples))


def empty_pack(length: int) -> Pack:
    """Return a pack of one segment of padding, ``length`` tokens: it adds nothing to loss or gradients."""
    zeros = np.zeros(length, np.int32)
    return Pack(zeros, zeros, np.zeros(length, np.bool_), np.array([0, length], np.int32), ("",))


def concatenate(packs: Sequence[Pack]) -> Pack:
    """Return one pack of ``packs`` laid end to end."""
    if len(packs) == 1:
        return packs[0]
    starts = np.cumsum([0] + [len(pack.tokens) for pack in packs[:-1]])
    cu = [np.zeros(1, np.int32), *(pack.cu_seqlens[1:] + start for pack, start in zip(packs, starts, strict=True))]
    return Pack(
        np.concatenate([pack.tokens for pack in packs]),
        np.concatenate([pack.labels for pack in packs]),
        np.concatenate([pack.loss_mask for pack in packs]),
        np.concatenate(cu).astype(np.int32),
        tuple(name for pack in packs for name in pack.sample_ids),
    )


def samples_of(pack: Pack) -> list[Pack]:
    """Return a pack of one sample for each sample of ``pack``."""
    return [
        Pack(pack.tokens[a:b], pack.labels[a:b], pack.loss_mask[a:b], np.array([0, b - a], np.int32), (name,))
        for (a, b), name in zip(pairwise(pack.cu_seqlens.tolist()), pack.sample_ids, strict=True)
    ]


def pad_samples(pack: Pack, multiple: int) -> Pack:
    """Pad each sample of ``pack``, inside its own segment, to a multiple of ``multiple`` tokens."""
    lengths = np.diff(pack.cu_seqlens)
    padded = -(-lengths // multiple) * multiple
    if (padded == lengths).all():
        return pack
    cu = np.concatenate([[0], np.cumsum(padded)]).astype(np.int32)
    target = np.arange(len(pack.tokens)) + np.repeat(cu[:-1] - pack.cu_seqlens[:-1], lengths)
    tokens, labels, loss_mask = np.zeros(cu[-1], np.int32), np.zeros(cu[-1], np.int32), np.zeros(cu[-1], np.bool_)
    tokens[target], labels[target], loss_mask[target] = pack.tokens, pack.labels, pack.loss_mask
    return Pack(tokens, labels, loss_mask, cu, pack.sample_ids)


def pad_end(pack: Pack, length: int) -> Pack:
    """Add one segment of padding to ``pack``, up to ``length`` tokens."""
    missing = length - len(pack.tokens)
    return concatenate([pack, empty_pack(missing)]) if missing else pack
