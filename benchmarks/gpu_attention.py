"""Sections of gpu.py: attention of packs and of context ranks against fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Queue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu_measure import relative
from torch import Tensor

from nemo_openmath.models import context_exchange, segment_attention
from nemo_openmath.models.context_plan import GatherPlan, RingPlan, Segments, zigzag
from nemo_openmath.models.devices import process_device

if TYPE_CHECKING:
    from gpu import Report

KERNEL_BOUND = 1.5e-2  # relative error in bf16; rounding alone makes 2e-3 to 6e-3 (a CPU's)
SHAPES = ((12, 2, 128), (5, 1, 128), (8, 8, 64), (4, 2, 32))  # heads, groups, head_dim
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def on_device(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """Return a plan's indices as tensors on the device."""
    return {name: torch.from_numpy(array).to(process_device()) for name, array in arrays.items()}


def passes(attention: Attention, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return output and gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def gathered(query: Tensor, key: Tensor, value: Tensor, *, boundaries: Sequence[int], cp: int, scale: float) -> Tensor:
    """Return attention as the all-gather computes it: each context rank's chunks, put back into the pack's order."""
    device = query.device
    orders = [torch.from_numpy(zigzag(boundaries, cp, rank)).to(device) for rank in range(cp)]
    all_keys, all_values = (x.index_select(0, torch.cat(orders)) for x in (key, value))
    outputs = []
    for rank, order in enumerate(orders):
        arrays = GatherPlan.arrays(boundaries, cp, rank)
        plan, mine = GatherPlan.of(arrays, on_device(arrays)), query.index_select(0, order)
        parts = [
            segment_attention.attend(mine[queries], all_keys[keys], all_values[keys], segments, scale)
            for queries, keys, segments in plan.passes
        ]
        outputs.append(torch.cat(parts).index_select(0, plan.back))
    return torch.cat(outputs).index_select(0, torch.cat(orders).argsort())


class LocalGroup:
    """A rank of a context group whose ranks are threads of this process."""

    def __init__(self, rank: int, boxes: list[Queue[Tensor]]):
        self._rank, self.boxes = rank, boxes

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return len(self.boxes)


class LocalPassing:
    """What the exchange's ``_Passing`` does, through memory. Messages arrive in the order in which they are sent, and
    every rank sends and waits in the same order."""

    def __init__(self, sent: Tensor, group: LocalGroup):
        self.box = group.boxes[group.rank()]
        group.boxes[(group.rank() + 1) % group.size()].put(sent)

    def wait(self) -> Tensor:
        return self.box.get(timeout=60)


def in_ring(
    inputs: Sequence[Tensor], grad: Tensor, *, boundaries: Sequence[int], cp: int, scale: float
) -> list[Tensor]:
    """Return output and gradients as the ring computes them, each context rank in a thread, in the pack's order.

    Its two passes are called by themselves: autograd has one thread for a GPU, in which ranks cannot wait for each
    other.
    """
    device = grad.device
    orders = [torch.from_numpy(zigzag(boundaries, cp, rank)).to(device) for rank in range(cp)]
    boxes: list[Queue[Tensor]] = [Queue() for _ in range(cp)]

    def of_rank(rank: int) -> list[Tensor]:
        arrays = RingPlan.arrays(boundaries, cp, rank)
        plan, context = RingPlan.of(arrays, on_device(arrays)), SimpleNamespace()
        context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
        query, key, value, mine = (x.detach().index_select(0, orders[rank]) for x in (*inputs, grad))
        group: Any = LocalGroup(rank, boxes)
        with torch.no_grad():
            out = context_exchange._Ring.forward(context, query, key, value, plan, group, scale)
            return [out, *context_exchange._Ring.backward(context, mine)[:3]]

    before = context_exchange._Passing
    context_exchange._Passing = LocalPassing  # type: ignore[assignment,misc]
    try:
        with ThreadPoolExecutor(cp) as pool:
            of_ranks = list(pool.map(of_rank, range(cp)))
    finally:
        context_exchange._Passing = before  # type: ignore[misc]
    back = torch.cat(orders).argsort()
    return [torch.cat(parts).index_select(0, back) for parts in zip(*of_ranks, strict=True)]


class AttentionCase:
    """Random queries, keys and values of a pack in bf16, and what attention and its gradients are in fp32."""

    def __init__(self, heads: int, groups: int, size: int, lengths: Sequence[int]):
        torch.manual_seed(0)
        device = process_device()
        self.name, self.scale = f"{heads}/{groups}x{size}", size**-0.5
        self.boundaries = tuple(int(end) for end in np.cumsum([0, *lengths]))
        sizes = ((heads, size), (groups, size), (groups, size))
        tokens = self.boundaries[-1]
        self.inputs = [torch.randn(tokens, *each, device=device, dtype=torch.bfloat16) for each in sizes]
        self.grad = torch.randn(tokens, heads, size, device=device, dtype=torch.bfloat16)
        ends = torch.tensor(self.boundaries, dtype=torch.int32, device=device)
        self.whole = Segments(self.boundaries, self.boundaries, (ends, ends))
        in_fp32 = [x.float() for x in self.inputs]
        self.expected = passes(self.attend, in_fp32, self.grad)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return segment_attention.attend(query, key, value, self.whole, self.scale)

    def gathered(self, cp: int) -> list[Tensor]:
        attention = partial(gathered, boundaries=self.boundaries, cp=cp, scale=self.scale)
        return passes(attention, self.inputs, self.grad)

    def errors(self, got: Sequence[Tensor]) -> dict[str, float]:
        """Return the relative errors of output and gradients."""
        names = ("out", "dq", "dk", "dv")
        return {n: round(relative(a, b), 6) for n, a, b in zip(names, got, self.expected, strict=True)}


def cases(dry: bool) -> Iterator[AttentionCase]:
    """Yield an attention for each of SHAPES. Lengths are multiples of 8: twice the largest CP."""
    for heads, groups, size in SHAPES:
        yield AttentionCase(heads, groups, size, (8, 16, 40, 72) if dry else (8, 16, 136, 1000, 4096, 24))


def kernel(report: Report) -> None:
    """Attention of packs, and of a rank's chunks over gathered keys, against fp32."""
    for case in cases(report.dry):
        for name, got in (
            ("pack", passes(case.attend, case.inputs, case.grad)),
            ("gathered, CP 2", case.gathered(2)),
            ("gathered, CP 4", case.gathered(4)),
        ):
            errors = case.errors(got)
            report.below(f"{name}, {case.name}", max(errors.values()), KERNEL_BOUND, **errors)


def ring(report: Report) -> None:
    """The ring's passes against those of the all-gather, and against fp32."""
    for case in cases(report.dry):
        for cp in (2, 4):
            got = in_ring(case.inputs, case.grad, boundaries=case.boundaries, cp=cp, scale=case.scale)
            errors = case.errors(got)
            report.below(f"against fp32, CP {cp}, {case.name}", max(errors.values()), KERNEL_BOUND, **errors)
            gaps = [relative(a, b) for a, b in zip(got, case.gathered(cp), strict=True)]
            report.below(f"against the all-gather, CP {cp}, {case.name}", max(gaps), KERNEL_BOUND)
