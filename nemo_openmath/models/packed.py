"""One micro-batch as a rank sees it: a pack, its sample boundaries, positions and rotary angles, split over context
ranks.

Under context parallelism each sample of L tokens (a multiple of 2 x CP) is cut into 2 x CP chunks; rank r holds
chunks r and 2 x CP - 1 - r. Causal attention costs a late chunk more than an early one; the pair costs every rank the
same. With CP = 2 and samples of 8 and 4 tokens:

    pack     a0 a1 a2 a3 a4 a5 a6 a7 | b0 b1 b2 b3
    rank 0   a0 a1             a6 a7 | b0       b3
    rank 1         a2 a3 a4 a5       |    b1 b2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

from nemo_openmath.models.configs import ModelConfig


@dataclass
class PackedBatch(PackedSeqParams):
    """Everything that embedding, attention and loss need to know about one pack, on this rank's device.

    t is the number of tokens of this context rank, T = t x CP that of the pack, n the target tokens among the t.
    """

    tokens: Tensor = field(default_factory=lambda: torch.empty(0))  # [1, t] int64
    labels: Tensor = field(default_factory=lambda: torch.empty(0))  # [n] int64, of the target positions only
    target_positions: Tensor | None = None  # [n] int64 indices into t; None: all t are targets
    boundaries: tuple[int, ...] = (0,)  # cu_seqlens of the whole pack, on the host
    cos: Tensor = field(default_factory=lambda: torch.empty(0))  # [t, 1, head_dim / 2] fp32
    sin: Tensor = field(default_factory=lambda: torch.empty(0))
    plan: Any = None  # the attention's own index tensors, made at the first layer and used by all


def zigzag(boundaries: Sequence[int], cp: int, rank: int) -> NDArray[np.int64]:
    """Return the [T / CP] indices of the pack's tokens that context rank ``rank`` holds, in its order."""
    cu = np.asarray(boundaries, dtype=np.int64)
    if cp == 1:
        return np.arange(cu[-1])
    lengths = np.diff(cu)
    if (lengths % (2 * cp)).any():
        raise ValueError(f"sample lengths {lengths.tolist()} are not multiples of 2 x CP = {2 * cp}")
    chunk = lengths // (2 * cp)
    starts = np.stack([cu[:-1] + rank * chunk, cu[:-1] + (2 * cp - 1 - rank) * chunk], axis=1).ravel()
    sizes = np.repeat(chunk, 2)
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


def pack_batch(
    tokens: NDArray[np.int32],
    labels: NDArray[np.int32],
    loss_mask: NDArray[np.bool_],
    cu_seqlens: NDArray[np.int32],
    config: ModelConfig,
    *,
    cp: int = 1,
    cp_rank: int = 0,
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Build a rank's :class:`PackedBatch` from a pack's arrays ([T], [T], [T], [samples + 1])."""
    boundaries = tuple(int(end) for end in cu_seqlens)
    positions = np.arange(len(tokens)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    if cp > 1:
        held = zigzag(boundaries, cp, cp_rank)
        tokens, labels, loss_mask, positions = tokens[held], labels[held], loss_mask[held], positions[held]
    where = np.flatnonzero(loss_mask)
    cos, sin = rotary(torch.from_numpy(positions).to(device), config)  # computed there: 50 ms a pack of 32K on a core
    cu = torch.from_numpy(np.ascontiguousarray(cu_seqlens, dtype=np.int32)).to(device)
    longest = int(np.diff(cu_seqlens).max(initial=0))
    return PackedBatch(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        tokens=torch.from_numpy(tokens.astype(np.int64)).unsqueeze(0).to(device),
        labels=torch.from_numpy(labels[where].astype(np.int64)).to(device),
        target_positions=None if len(where) == len(tokens) else torch.from_numpy(where).to(device),
        boundaries=boundaries,
        cos=cos.unsqueeze(1),
        sin=sin.unsqueeze(1),
    )


def rotary(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [t, head_dim / 2] (fp32) of the rotary angles.

    Source: RoFormer, arXiv 2104.09864, section 3.4.2.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    angles = torch.outer(positions.float(), 1.0 / config.rope_theta**exponent)
    return angles.cos(), angles.sin()
