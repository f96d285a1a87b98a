"""One micro-batch as a rank sees it: a pack, its sample boundaries, positions and rotary angles, split over context
ranks (models/context_plan.py).

It is made in two halves. :class:`HostBatch` is numbers alone, and a thread may make it ahead. All of them lie in one
tensor, in page-locked memory for a GPU, so that one copy brings them there and nothing waits for it.
:meth:`HostBatch.to` is that copy, and the rotary angles, which the device computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.context_plan import Arrays, GatherPlan, RingPlan, zigzag
from nemo_openmath.models.layout import Exchange


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
    plan: GatherPlan | RingPlan | None = None  # of our own attention under context parallelism


@dataclass(frozen=True)
class HostBatch:
    """The numbers of a :class:`PackedBatch` on the host."""

    numbers: Tensor  # int64: the arrays end to end
    arrays: Arrays
    boundaries: tuple[int, ...]
    longest: int  # sample
    plan: type[GatherPlan | RingPlan] | None

    @classmethod
    def of(
        cls,
        tokens: NDArray[np.int32],
        labels: NDArray[np.int32],
        loss_mask: NDArray[np.bool_],
        cu_seqlens: NDArray[np.int32],
        *,
        cp: int = 1,
        cp_rank: int = 0,
        exchange: Exchange | None = "all_gather",
        pin: bool = False,
    ) -> HostBatch:
        """Return a rank's part of a pack's arrays ([T], [T], [T], [samples + 1]), in page-locked memory with ``pin``.

        Without ``exchange`` there is no plan for our attention: TransformerEngine has its own.
        """
        boundaries = tuple(int(end) for end in cu_seqlens)
        positions = np.arange(len(tokens)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        plan: type[GatherPlan | RingPlan] | None = None
        arrays: Arrays = {}
        if cp > 1:
            held = zigzag(boundaries, cp, cp_rank)
            tokens, labels, loss_mask, positions = tokens[held], labels[held], loss_mask[held], positions[held]
            if exchange is not None:
                plan = RingPlan if exchange == "ring" else GatherPlan
                arrays = plan.arrays(boundaries, cp, cp_rank)
        where = np.flatnonzero(loss_mask)
        arrays |= {"tokens": tokens, "labels": labels[where], "positions": positions, "cu_seqlens": cu_seqlens}
        if len(where) < len(tokens):
            arrays["targets"] = where
        numbers, laid = _end_to_end(arrays, pin)
        return cls(numbers, laid, boundaries, int(np.diff(cu_seqlens).max(initial=0)), plan)

    def to(self, device: torch.device | str, config: ModelConfig) -> PackedBatch:
        """Return the batch on ``device``. On a GPU nothing waits: what is launched after it comes after the copy."""
        numbers = self.numbers.to(device, non_blocking=True)
        on_device = dict(zip(self.arrays, _parts(numbers, self.arrays.values()), strict=True))
        cos, sin = rotary(on_device["positions"], config)  # computed there: 50 ms a pack of 32K on a core
        cu = on_device["cu_seqlens"]
        return PackedBatch(
            qkv_format="thd",
            cu_seqlens_q=cu,
            cu_seqlens_kv=cu,
            max_seqlen_q=self.longest,
            max_seqlen_kv=self.longest,
            tokens=on_device["tokens"].unsqueeze(0),
            labels=on_device["labels"],
            target_positions=on_device.get("targets"),
            boundaries=self.boundaries,
            cos=cos.unsqueeze(1),
            sin=sin.unsqueeze(1),
            plan=None if self.plan is None else self.plan.of(self.arrays, on_device),
        )


def _end_to_end(arrays: Arrays, pin: bool) -> tuple[Tensor, Arrays]:
    """Return one int64 tensor that holds ``arrays``, in page-locked memory with ``pin``, and the arrays as they lie
    there: boundaries (cu_*) are int32, as kernels want them, all else becomes int64."""
    short = {name for name in arrays if name.split(" ")[-1].startswith("cu_")}
    sizes = {name: -(-len(array) // 2) if name in short else len(array) for name, array in arrays.items()}
    numbers = torch.empty(sum(sizes.values()), dtype=torch.int64)
    raw, laid, start = numbers.numpy(), Arrays(), 0
    for name, array in arrays.items():
        part = raw[start : start + sizes[name]]
        laid[name] = part.view(np.int32)[: len(array)] if name in short else part
        laid[name][:] = array
        start += sizes[name]
    return (numbers.pin_memory() if pin else numbers), laid


def _parts(numbers: Tensor, arrays: Iterable[NDArray[np.int64]]) -> Iterable[Tensor]:
    """Yield the views of ``numbers`` that :func:`_end_to_end` made of the host's."""
    start = 0
    for array in arrays:
        size = -(-len(array) // 2) if array.dtype == np.int32 else len(array)
        part = numbers[start : start + size]
        yield part.view(torch.int32)[: len(array)] if array.dtype == np.int32 else part
        start += size


def pack_batch(
    tokens: NDArray[np.int32],
    labels: NDArray[np.int32],
    loss_mask: NDArray[np.bool_],
    cu_seqlens: NDArray[np.int32],
    config: ModelConfig,
    *,
    cp: int = 1,
    cp_rank: int = 0,
    exchange: Exchange | None = "all_gather",
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Build a rank's :class:`PackedBatch` from a pack's arrays ([T], [T], [T], [samples + 1])."""
    host = HostBatch.of(tokens, labels, loss_mask, cu_seqlens, cp=cp, cp_rank=cp_rank, exchange=exchange)
    return host.to(device, config)


def rotary(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [t, head_dim / 2] (fp32) of the rotary angles.

    Source: RoFormer, arXiv 2104.09864, section 3.4.2.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    angles = torch.outer(positions.float(), 1.0 / config.rope_theta**exponent)
    return angles.cos(), angles.sin()
