"""Packs are given to NeMo 2.x's packed SFT: a dataset, a collate function, and a data step that knows samples.

A batch is a dictionary of CPU tensors, n packs padded to T tokens:

    tokens, labels, loss_mask, position_ids   [n, T] int64; labels are shifted already, loss_mask[t] is of labels[t]
    cu_seqlens           [n, m] int32: boundaries of the samples (their padding included) and of the row's padding,
                         then -1
    cu_seqlens_argmin    [n, 1]: how many of a row's cu_seqlens count
    max_seqlen           [n, 1]: the longest segment
    attention_mask       [n] ones, as NeMo has it: packed attention needs none
    token_count          list of n: tokens of each pack before the row's padding

Needs torch, and megatron-core in the data step; neither NeMo nor Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.balance import assign
from nemo_openmath.data.batches.epoch_order import EpochOrders
from nemo_openmath.data.packs.pack import Pack, empty_pack
from nemo_openmath.data.packs.plan import PackPlan

Batch = dict[str, Any]


class PackStream(Dataset[Pack]):
    """The packs of a run, one after the other, in the order that :class:`~nemo_openmath.data.PackedData` has.

    NeMo counts its global batch in packs, so unlike there a batch is ``batch_packs`` whole packs and its number of
    samples varies by a few percent. The last batch is filled up with packs that train nothing. NeMo's sampler gives the
    packs of a batch to the data-parallel ranks one by one; with ``ranks`` > 1 they stand in such an order that each
    rank gets about the same attention cost.
    """

    collate_fn: Callable[[Sequence[Pack]], Batch]

    def __init__(self, plan: PackPlan, *, epochs: float, batch_packs: int, seed: int = 0, ranks: int = 1):
        if batch_packs < 1 or batch_packs % ranks:
            raise UserError(
                f"a batch of {batch_packs} packs on {ranks} ranks", remedy="make it a multiple of the ranks"
            )
        self.plan = plan
        self.batch_packs = batch_packs
        self._ranks = ranks
        self._orders = EpochOrders(plan, seed)
        # Where each phase ends in the run, in packs.
        self._ends = np.cumsum([max(1, round(epochs * (end - first))) for first, end in self._orders.phases]).tolist()
        self._step_packs: tuple[int, list[int]] = (-1, [])  # the step read last, and its packs in their order
        self.collate_fn = collate

    @property
    def num_packs(self) -> int:
        """Packs of the run that hold samples."""
        return int(self._ends[-1])

    @property
    def num_steps(self) -> int:
        return -(-self.num_packs // self.batch_packs)

    def __len__(self) -> int:
        return self.num_steps * self.batch_packs

    def __getitem__(self, item: int) -> Pack:
        if item < 0:
            return empty_pack(self.plan.pad_multiple)  # NeMo's samplers fill batches up with index -1
        if item >= len(self):
            raise IndexError(item)
        step, place = divmod(item, self.batch_packs)
        if self._ranks == 1:
            return self._build(self.pack_number(item))
        if self._step_packs[0] != step:
            self._step_packs = (step, self._balanced(step))
        return self._build(self._step_packs[1][place])

    def pack_number(self, place: int) -> int:
        """Return the number in the plan of the pack at a place of the run, before balancing; -1 behind the last."""
        if place >= self.num_packs:
            return -1
        phase = int(np.searchsorted(self._ends, place, "right"))
        first, end = self._orders.phases[phase]
        epoch, offset = divmod(place - (self._ends[phase - 1] if phase else 0), end - first)
        return int(self._orders.order(phase, epoch).packs[offset])

    def _balanced(self, step: int) -> list[int]:
        numbers = [self.pack_number(step * self.batch_packs + i) for i in range(self.batch_packs)]
        costs = [
            sum(self.plan.samples.length(row) ** 2 for row in self.plan.rows(number)) if number >= 0 else 0
            for number in numbers
        ]
        shares = assign(costs, self._ranks)  # equally many each
        return [numbers[share[i]] for i in range(self.batch_packs // self._ranks) for share in shares]

    def _build(self, number: int) -> Pack:
        return empty_pack(self.plan.pad_multiple) if number < 0 else self.plan.pack(number)


def packs_per_batch(plan: PackPlan, batch_samples: int, ranks: int) -> int:
    """Return the multiple of ``ranks`` whose packs hold nearest to ``batch_samples`` samples on average."""
    samples = len(plan.entries) / plan.num_packs
    return max(1, round(batch_samples / samples / ranks)) * ranks


def collate(packs: Sequence[Pack], *, multiple: int = 1, length: int | None = None) -> Batch:
    """Return the batch of n packs, padded to ``length`` or else to the next multiple of ``multiple`` above the longest.

    Where a row is longer than its pack, the rest is one more segment, as attention kernels expect no gap.
    """
    longest = max(len(pack.tokens) for pack in packs)
    total = -(-longest // multiple) * multiple if length is None else length
    if longest > total:
        raise ValueError(f"a pack of {longest} tokens in rows of {total}")
    rows = {name: torch.zeros(len(packs), total, dtype=torch.int64) for name in _ROWS}
    bounds = [_bounds(pack, total) for pack in packs]
    width = max(map(len, bounds)) + 1  # at least one -1, for argmin to find
    cu_seqlens = torch.full((len(packs), width), -1, dtype=torch.int32)
    for i, (pack, bound) in enumerate(zip(packs, bounds, strict=True)):
        size = len(pack.tokens)
        rows["tokens"][i, :size] = torch.from_numpy(pack.tokens)
        rows["labels"][i, :size] = torch.from_numpy(pack.labels)
        rows["loss_mask"][i, :size] = torch.from_numpy(pack.loss_mask)
        rows["position_ids"][i, :size] = torch.from_numpy(pack.position_ids())
        rows["position_ids"][i, size:] = torch.arange(total - size)
        cu_seqlens[i, : len(bound)] = torch.tensor(bound, dtype=torch.int32)
    return {
        **rows,
        "attention_mask": torch.ones(len(packs), dtype=torch.int64),
        "token_count": [len(pack.tokens) for pack in packs],
        "cu_seqlens": cu_seqlens,
        "cu_seqlens_argmin": torch.argmin(cu_seqlens, dim=1, keepdim=True),
        "max_seqlen": torch.tensor([[max(np.diff(b).tolist())] for b in bounds], dtype=torch.int32),
    }


_ROWS = ("tokens", "labels", "loss_mask", "position_ids")


def _bounds(pack: Pack, total: int) -> list[int]:
    bounds = pack.cu_seqlens.tolist()
    return bounds if bounds[-1] == total else [*bounds, total]


def packed_data_step(batches: Iterator[Any]) -> Batch:
    """Return what this rank needs of the next micro-batch, on its device: a NeMo ``data_step_fn``.

    A micro-batch is one pack, cut for context parallelism sample by sample. What a pipeline stage does not need is
    None. Raises UserError for micro-batches of more packs.
    """
    from megatron.core import parallel_state

    from nemo_openmath.models.context_plan import zigzag

    batch = next(batches)
    batch = batch[0] if isinstance(batch, tuple) else batch
    if len(batch["tokens"]) != 1:
        raise UserError(f"a micro-batch of {len(batch['tokens'])} packs", remedy="set micro_batch_size to 1")
    needed = set()
    if parallel_state.is_pipeline_first_stage():
        needed |= {"tokens", "position_ids"}
    if parallel_state.is_pipeline_last_stage():
        needed |= {"labels", "loss_mask"}
    ranks, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    out: Batch = {name: batch[name] if name in needed else None for name in _ROWS}
    if ranks > 1:
        bounds = batch["cu_seqlens"][0, : int(batch["cu_seqlens_argmin"][0])].tolist()
        positions = torch.from_numpy(zigzag(bounds, ranks, rank))  # TransformerEngine's order too
        out = {name: row if row is None else row[:, positions] for name, row in out.items()}
    out |= {name: batch[name] for name in ("attention_mask", "cu_seqlens")}
    if torch.cuda.is_available():
        out = {name: row if row is None else row.cuda(non_blocking=True) for name, row in out.items()}
    return out | {name: batch[name].cpu() for name in ("cu_seqlens_argmin", "max_seqlen")}
