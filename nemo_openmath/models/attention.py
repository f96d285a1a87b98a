"""Causal attention inside each sample of a pack, with context parallelism, in plain PyTorch.

megatron-core's own local attention refuses packed input and context parallelism; this ``core_attention`` takes the
place of TransformerEngine's. It rotates queries and keys itself (the angles come with the pack, so RoPE restarts at
each sample and no loop over samples is needed), brings the keys and values of the other context ranks by an all-gather
or in a ring (models/context_exchange.py), and attends with the kernels of models/segment_attention.py: no dense mask
on a GPU, and a cost that follows the sum of squared sample lengths.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_openmath.models.context_exchange import attend_gathered, attend_in_ring
from nemo_openmath.models.context_plan import GatherPlan, RingPlan, Segments
from nemo_openmath.models.packed import PackedBatch
from nemo_openmath.models.segment_attention import attend


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
        """[t, heads x head_dim]; ``t`` tokens of this context rank, in the order of
        :func:`nemo_openmath.models.context_plan.zigzag`."""
        batch = packed_seq_params
        if batch is None:
            raise ValueError("PackedAttention needs packed input (packed_seq_params)")
        query, key = _Rotate.apply(query, batch.cos, batch.sin), _Rotate.apply(key, batch.cos, batch.sin)
        if isinstance(batch.plan, RingPlan):
            out = attend_in_ring(query, key, value, batch.plan, self.cp_group, self.scale)
        elif isinstance(batch.plan, GatherPlan):
            out = attend_gathered(query, key, value, batch.plan, self.cp_group, self.scale)
        elif self.cp_group.size() > 1:
            raise ValueError("a batch for context parallelism has a plan of its exchange (HostBatch.of)")
        else:
            out = attend(query, key, value, whole_samples(batch), self.scale)
        return out.reshape(out.shape[0], -1)


def whole_samples(batch: PackedBatch) -> Segments:
    """Return the attention of every sample of a pack to itself."""
    return Segments(batch.boundaries, batch.boundaries, (batch.cu_seqlens_q, batch.cu_seqlens_kv))


class _Rotate(torch.autograd.Function):
    """Rotary embedding of x [t, heads, d] by angles [t, 1, d / 2]; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Computed in fp32. Products are written where they belong and the second ones added in place: no halves to join,
    and 44 bytes of memory traffic for each pair of bf16 numbers where single operations move 76."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin, value=direction)
    return out.to(x.dtype)
