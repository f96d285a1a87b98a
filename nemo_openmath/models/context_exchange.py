"""Keys and values of the other context ranks: by an all-gather, or in a ring.

:func:`attend_gathered` holds the keys and values of the whole pack on every rank, and keeps, for the backward pass, a
copy of those that each of its two chunks sees. Their gradients go back by a reduce-scatter. Two messages a layer: the
fewest. With grouped-query attention keys are few, so this is what short packs and small CP want.

:func:`attend_in_ring` passes the keys and values of one rank at a time around, while the ones before are computed with,
and merges the outputs by their log-sum-exp. It keeps this rank's own queries, keys, values and outputs only, as without
context parallelism; the backward pass sends the keys around again, and their gradients (fp32) with them. Source:
Liu et al., Ring Attention with Blockwise Transformers, arXiv 2310.01889; the zig-zag order is Megatron's.

Both give the same results up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_openmath.models.context_plan import GatherPlan, RingPlan
from nemo_openmath.models.segment_attention import attend, backward_block, forward_block


def attend_gathered(
    query: Tensor, key: Tensor, value: Tensor, plan: GatherPlan, group: dist.ProcessGroup, scale: float
) -> Tensor:
    """Return the attention [t, heads, d] of this rank's queries [t, heads, d] to the keys and values of all ranks, of
    which [t, groups, d] are its own."""
    kv = _GatherSequence.apply(torch.cat([key, value], dim=-1), group)
    key, value = kv.split([key.shape[-1], value.shape[-1]], dim=-1)
    outputs = [
        attend(query.index_select(0, queries), key.index_select(0, keys), value.index_select(0, keys), segments, scale)
        for queries, keys, segments in plan.passes
    ]
    return torch.cat(outputs).index_select(0, plan.back)


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


def attend_in_ring(
    query: Tensor, key: Tensor, value: Tensor, plan: RingPlan, group: dist.ProcessGroup, scale: float
) -> Tensor:
    """Return what :func:`attend_gathered` does."""
    out: Tensor = _Ring.apply(query, key, value, plan, group, scale)
    return out


class _Ring(torch.autograd.Function):
    """In step i, rank r has the keys of rank r - i (modulo CP)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: RingPlan,
        group: dist.ProcessGroup,
        scale: float,
    ) -> Tensor:
        size, rank = group.size(), group.rank()
        query, own = query.contiguous(), torch.stack([key, value])  # [2, t, groups, d]: each half in one piece
        late = query.index_select(0, plan.late)
        kv = own
        for step in range(size):
            coming = _Passing(kv, group) if step + 1 < size else None
            if step == 0:
                block, statistics = forward_block(query, kv[0], kv[1], plan.own, scale, causal=True)
                out, total = block.float().contiguous(), statistics
            elif step <= rank:  # of an earlier rank
                seen = kv.index_select(1, plan.early)
                block, statistics = forward_block(query, seen[0], seen[1], plan.of_earlier, scale, causal=False)
                _merge(out, total, block, statistics)
            else:
                block, statistics = forward_block(late, kv[0], kv[1], plan.of_later, scale, causal=False)
                out_late, total_late = out.index_select(0, plan.late), total.index_select(1, plan.late)
                _merge(out_late, total_late, block, statistics)
                out.index_copy_(0, plan.late, out_late)
                total.index_copy_(1, plan.late, total_late)
            if coming is not None:
                kv = coming.wait()
        result = out.to(query.dtype)
        ctx.plan, ctx.group, ctx.scale = plan, group, scale
        ctx.save_for_backward(query, own, result, total)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, own, out, total = ctx.saved_tensors
        plan, group, scale = ctx.plan, ctx.group, ctx.scale
        size, rank, grad = group.size(), group.rank(), grad.contiguous()
        if rank + 1 < size:
            late = [x.index_select(0, plan.late) for x in (grad, query, out)]
            total_late = total.index_select(1, plan.late)
        kv = own
        grads_passing: _Passing | None = None
        for step in range(size):
            coming = _Passing(kv, group) if step + 1 < size else None
            part = torch.zeros(kv.shape, dtype=torch.float32, device=kv.device)
            if step == 0:
                dq, dk, dv = backward_block(grad, query, kv[0], kv[1], out, total, plan.own, scale, causal=True)
                grad_query = dq.float()
                part[0], part[1] = dk, dv
            elif step <= rank:
                seen = kv.index_select(1, plan.early)
                dq, dk, dv = backward_block(
                    grad, query, seen[0], seen[1], out, total, plan.of_earlier, scale, causal=False
                )
                grad_query += dq
                part[0].index_copy_(0, plan.early, dk.float())
                part[1].index_copy_(0, plan.early, dv.float())
            else:
                dq, dk, dv = backward_block(
                    late[0], late[1], kv[0], kv[1], late[2], total_late, plan.of_later, scale, causal=False
                )
                grad_query.index_add_(0, plan.late, dq.float())
                part[0], part[1] = dk, dv
            if grads_passing is not None:  # what the ranks before added for these keys
                part += grads_passing.wait()
            grads_passing = _Passing(part, group)
            if coming is not None:
                kv = coming.wait()
        assert grads_passing is not None
        grad_kv = grads_passing.wait().to(own.dtype)  # the last hand-over brings them home
        return grad_query.to(query.dtype), grad_kv[0], grad_kv[1], None, None, None


class _Passing:
    """A tensor on its way to the next rank, and the one of the rank before on its way here."""

    def __init__(self, sent: Tensor, group: dist.ProcessGroup):
        size, rank = group.size(), group.rank()
        self.sent, self.received = sent, torch.empty_like(sent)  # both stay until they have arrived
        after, before = (dist.get_global_rank(group, (rank + way) % size) for way in (1, -1))
        messages = [
            dist.P2POp(dist.isend, sent, after, group),
            dist.P2POp(dist.irecv, self.received, before, group),
        ]
        self.works = dist.batch_isend_irecv(messages)

    def wait(self) -> Tensor:
        """Return the tensor of the rank before, once it is here (on a GPU: for what is launched after this)."""
        for work in self.works:
            work.wait()
        return self.received


def _merge(out: Tensor, total: Tensor, block: Tensor, statistics: Tensor) -> None:
    """Add a block's output [n, heads, d] to ``out`` (fp32), and its log-sum-exp [heads, n] to ``total``, in place."""
    merged = torch.logaddexp(total, statistics)
    before, added = ((part - merged).exp_().t().unsqueeze(-1) for part in (total, statistics))  # shares [n, heads, 1]
    out.mul_(before).addcmul_(block, added)
    total.copy_(merged)
