"""Causal attention inside each sample of a pack, with context parallelism, in plain PyTorch.

megatron-core's own local attention refuses packed input and context parallelism; this ``core_attention`` takes the
place of TransformerEngine's. It rotates queries and keys itself (the angles come with the pack, so RoPE restarts at
each sample and no loop over samples is needed), gathers keys and values over the context-parallel group (their
gradients go back by a reduce-scatter), and attends

* on CPU: sample by sample with torch's SDPA;
* on GPU: with ``torch.nn.attention.varlen`` (flash attention), one call for the whole pack, two under context
  parallelism (one for each zig-zag chunk). No dense mask, no loop over samples.

The cost follows the sum of squared sample lengths. Keys and values of the whole pack are held by every context rank:
with grouped-query attention they are a small part of the activations, which is why we gather rather than pass a ring.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_openmath.models.packed import PackedBatch, zigzag


class PackedAttention(MegatronModule):
    """``core_attention`` of a Megatron self-attention layer for packed (THD) input."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self.cp_group: dist.ProcessGroup = groups.cp
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        if (config.attention_dropout if attention_dropout is None else attention_dropout) != 0.0:
            raise ValueError("attention dropout is not supported: SFT of Qwen2.5 uses none")

    def forward(
        self,
        query: Tensor,  # [t, heads, head_dim]
        key: Tensor,  # [t, groups, head_dim]
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedBatch | None = None,
    ) -> Tensor:
        """[t, heads x head_dim]; ``t`` tokens of this context rank, in the order of :func:`zigzag`."""
        batch = packed_seq_params
        if batch is None:
            raise ValueError("PackedAttention needs packed input (packed_seq_params)")
        query, key = _Rotate.apply(query, batch.cos, batch.sin), _Rotate.apply(key, batch.cos, batch.sin)
        if self.cp_group.size() == 1:
            out = _attend(query, key, value, [_whole(batch)], self.scale)
        else:
            if batch.plan is None:
                batch.plan = _ContextPlan.of(batch, self.cp_group.size(), self.cp_group.rank(), query.device)
            kv = _GatherSequence.apply(torch.cat([key, value], dim=-1), self.cp_group)
            kv = kv.index_select(0, batch.plan.order)  # undo the zig-zag: keys in the pack's order
            key, value = kv.split([key.shape[-1], value.shape[-1]], dim=-1)
            out = _attend(query, key, value, batch.plan.passes, self.scale)
        return out.reshape(out.shape[0], -1)


class _Rotate(torch.autograd.Function):
    """Rotary embedding of x [t, heads, d] by angles [t, 1, d / 2]; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class _GatherSequence(torch.autograd.Function):
    """[t, ...] of each rank -> [ranks x t, ...] in rank order; backward sums over ranks and scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_empty((grad.shape[0] // ctx.group.size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None


@dataclass(frozen=True)
class _Pass:
    """One attention over all samples: for each sample a run of queries against the sample's first keys.

    The last query of a run sees the last key of its run (bottom-right aligned causal mask).
    """

    queries: Tensor | None  # indices into this rank's tokens; None: all, in order
    keys: Tensor | None  # indices into the pack's tokens; None: all, in order
    cu_queries: tuple[int, ...]
    cu_keys: tuple[int, ...]
    cu_device: tuple[Tensor, Tensor]  # the two boundaries as int32 tensors

    @property
    def longest(self) -> tuple[int, int]:
        return _longest(self.cu_queries), _longest(self.cu_keys)


def _longest(cu: tuple[int, ...]) -> int:
    return max((end - start for start, end in itertools.pairwise(cu)), default=0)


def _whole(batch: PackedBatch) -> _Pass:
    cu = batch.boundaries
    return _Pass(None, None, cu, cu, (batch.cu_seqlens_q, batch.cu_seqlens_kv))


@dataclass(frozen=True)
class _ContextPlan:
    """Index tensors of one pack on one context rank, shared by all layers."""

    order: Tensor  # [T] where each of the pack's tokens lies among the gathered ones
    passes: list[_Pass]  # one per zig-zag chunk of this rank

    @classmethod
    def of(cls, batch: PackedBatch, cp: int, rank: int, device: torch.device) -> _ContextPlan:
        cu = torch.tensor(batch.boundaries)
        held = torch.cat([torch.from_numpy(zigzag(batch.boundaries, cp, other)) for other in range(cp)])
        order = torch.empty_like(held)
        order[held] = torch.arange(len(held))
        chunk = cu.diff() // (2 * cp)
        first = cu[:-1] // cp  # where each sample begins among this rank's tokens
        passes = []
        for number, queries_start in ((rank, first), (2 * cp - 1 - rank, first + chunk)):
            queries, cu_queries = _runs(queries_start, chunk)
            keys, cu_keys = _runs(cu[:-1], chunk * (number + 1))
            on_device = (cu_queries.to(device, torch.int32), cu_keys.to(device, torch.int32))
            passes.append(
                _Pass(
                    queries.to(device), keys.to(device), tuple(cu_queries.tolist()), tuple(cu_keys.tolist()), on_device
                )
            )
        return cls(order.to(device), passes)


def _runs(starts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the runs [start, start + size) laid end to end, and the boundaries of the runs."""
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return torch.repeat_interleave(starts - cu[:-1], sizes) + torch.arange(int(cu[-1])), cu


def _attend(query: Tensor, key: Tensor, value: Tensor, passes: list[_Pass], scale: float) -> Tensor:
    """[t, heads, d] in the order of ``query``."""
    kernel = _varlen_flash if query.is_cuda and query.dtype != torch.float32 else _each_sample
    if len(passes) == 1:
        return kernel(query, key, value, passes[0], scale)
    outputs = []
    for each in passes:
        assert each.queries is not None
        assert each.keys is not None
        q, k, v = (x.index_select(0, i) for x, i in ((query, each.queries), (key, each.keys), (value, each.keys)))
        outputs.append(kernel(q, k, v, each, scale))
    held = torch.cat([each.queries for each in passes if each.queries is not None])
    return torch.cat(outputs).index_select(0, held.argsort())


def _each_sample(query: Tensor, key: Tensor, value: Tensor, each: _Pass, scale: float) -> Tensor:
    """SDPA sample by sample (CPU, and fp32 on GPU, which flash attention refuses)."""
    grouped = query.shape[1] != key.shape[1]
    queries, keys = ([b - a for a, b in itertools.pairwise(cu)] for cu in (each.cu_queries, each.cu_keys))
    # split, not slices: its backward lays the samples' gradients end to end once; a slice's fills a whole pack.
    parts = (x.transpose(0, 1).unsqueeze(0).split(n, dim=2) for x, n in ((query, queries), (key, keys), (value, keys)))
    outputs = []
    for q, k, v in zip(*parts, strict=True):  # [1, heads, sample, d]
        rows, columns, mask = q.shape[2], k.shape[2], None
        if rows != columns:  # a later zig-zag chunk: queries stand at the end of their keys
            mask = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
        outputs.append(
            F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)
        )
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


def _varlen_flash(query: Tensor, key: Tensor, value: Tensor, each: _Pass, scale: float) -> Tensor:
    """Flash attention over all samples in one call (GPU, bf16 or fp16)."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *each.cu_device,
        *each.longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out
