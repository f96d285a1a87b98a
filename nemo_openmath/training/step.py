"""One optimizer step: the batch's packs shared out to ranks, pipelined forward and backward passes, the update.

The loss of a batch is the sum of -log p over all its target tokens, divided by their number. Every rank reads the
whole batch, so it knows that number beforehand and divides its own part by it; summing gradients over ranks then
gives the gradient of the batch's loss, at every layout, without any weighting of packs, micro-batches or ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.models.build import PackedGPT
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.packed import PackedBatch, pack_batch
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.profile import Phases


@dataclass(frozen=True)
class BatchFacts:
    """What every rank knows of a batch before computing it."""

    samples: int
    tokens: int  # padding of the packs included
    num_target_tokens: int
    sum_squared_lengths: int  # of samples: what attention costs
    computed_tokens: int  # what all ranks compute together, the padding of the layout included
    sample_ids: tuple[str, ...]

    @property
    def fill(self) -> float:
        """Share of the computed tokens that belong to packs."""
        return self.tokens / max(1, self.computed_tokens)


@dataclass(frozen=True)
class RankBatch:
    """A batch as this rank computes it."""

    packs: list[Pack]  # its micro-batches
    facts: BatchFacts


class Stepper:
    """Runs batches through this rank's model chunks."""

    def __init__(self, models: Sequence[PackedGPT], chunks: Sequence[Any], model: ModelConfig, config: TrainingConfig):
        self.models, self.chunks, self.model, self.parallel = list(models), list(chunks), model, config.parallel
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.on_pack: Callable[[int, int, float], None] | None = None  # (done, of how many, seconds) in a step
        self.ranks = parallel_state.get_data_parallel_world_size()
        self.rank = parallel_state.get_data_parallel_rank()
        self._schedule: Callable[..., list[Tensor]] = get_forward_backward_func()
        if chunks[
            0
        ].ddp_config.overlap_grad_reduce:  # gradients travel during the last micro-batch's backward pass alone
            self.models[0].config.no_sync_func = chunks[0].no_sync
        # The loss is divided already: no scaling by token counts, hence no further messages.
        self.models[0].config.finalize_model_grads_func = lambda chunks, _tokens, **rest: finalize_model_grads(
            chunks, **rest
        )

    def shard(self, batch: Sequence[Pack]) -> RankBatch:
        """Check a global batch and take this rank's part of it. Touches no tensor: a thread may do it ahead."""
        target_tokens = sum(pack.num_target_tokens for pack in batch)
        if target_tokens == 0:
            names = ", ".join(name for pack in batch for name in pack.sample_ids[:3])
            raise UserError(
                f"a batch trains no token (samples {names}, ...)", remedy="check the loss masks of the data"
            )
        check_tokens(batch, self.model.vocab_size)
        shares = shard_batch(batch, self.ranks, self.parallel)
        facts = BatchFacts(
            samples=sum(len(pack.sample_ids) for pack in batch),
            sample_ids=tuple(name for pack in batch for name in pack.sample_ids),
            tokens=sum(len(pack.tokens) for pack in batch),
            num_target_tokens=target_tokens,
            sum_squared_lengths=sum(pack.attention_cost for pack in batch),
            computed_tokens=sum(len(pack.tokens) for share in shares for pack in share),
        )
        return RankBatch(shares[self.rank], facts)

    def run(self, batch: RankBatch | Sequence[Pack], *, train: bool = True) -> tuple[Tensor, BatchFacts]:
        """Forward (and backward) passes over a global batch; returns this rank's part of its mean loss and the facts.

        The parts of the last pipeline stage's ranks sum to the loss (:func:`total_loss`); other stages give 0.
        """
        rank_batch = batch if isinstance(batch, RankBatch) else self.shard(batch)
        packs, facts, target_tokens = rank_batch.packs, rank_batch.facts, rank_batch.facts.num_target_tokens
        iterators: list[Iterator[PackedBatch]] = [iter(map(self._to_device, packs)) for _ in self.models]
        iterators[0] = self._watched(iterators[0], len(packs))

        def forward(iterator: Iterator[PackedBatch], chunk: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            batch = next(iterator)
            output = chunk(batch.tokens, None, None, labels=batch.labels, packed_seq_params=batch)

            def mean(total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                part = total / target_tokens
                return part, _NO_COUNT, part.detach()

            return output, mean

        several = len(self.models) > 1
        parts = self._schedule(
            forward_step_func=forward,
            data_iterator=iterators if several else iterators[0],
            model=self.chunks if several else self.chunks[:1],
            num_microbatches=len(packs),
            seq_length=len(packs[0].tokens),
            micro_batch_size=1,
            forward_only=not train,
        )
        loss = torch.stack(parts).sum() if parts else torch.zeros((), device=self.device)
        return loss, facts

    def _watched(self, packs: Iterator[PackedBatch], count: int) -> Iterator[PackedBatch]:
        begun = time.monotonic()
        for done, pack in enumerate(packs):
            if self.on_pack is not None:
                self.on_pack(done, count, time.monotonic() - begun)
            yield pack

    def _to_device(self, pack: Pack) -> PackedBatch:
        return pack_batch(
            *(pack.tokens, pack.labels, pack.loss_mask, pack.cu_seqlens, self.model),
            cp=self.parallel.cp,
            cp_rank=parallel_state.get_context_parallel_rank(),
            device=self.device,
        )


def check_tokens(batch: Sequence[Pack], vocabulary: int) -> None:
    """Refuse ids outside 0..vocabulary-1, naming the sample: under tensor parallelism they would train as zeros,
    without an error."""
    for pack in batch:
        for ids in (pack.tokens, pack.labels):
            if not len(ids) or (ids.min() >= 0 and ids.max() < vocabulary):
                continue
            wrong = int(np.flatnonzero((ids < 0) | (ids >= vocabulary))[0])
            name = pack.sample_ids[int(np.searchsorted(pack.cu_seqlens, wrong, "right")) - 1]
            raise UserError(
                f"sample {name}: token {ids[wrong]} is outside the model's vocabulary of {vocabulary}",
                remedy="tokenize with the model's own tokenizer",
            )


_NO_COUNT = torch.zeros((), dtype=torch.int)


def total_loss(part: Tensor, flag: bool = False) -> tuple[float, bool]:
    """The mean loss of a batch from the parts of :meth:`Stepper.run`, and whether any rank raised its flag; the same on
    every rank, in one message."""
    if parallel_state.get_tensor_model_parallel_rank() > 0:  # tensor-parallel ranks hold the same part
        part = torch.zeros_like(part)
    both = torch.stack([part.double(), torch.full_like(part, float(flag), dtype=torch.float64)])
    dist.all_reduce(both)
    loss, flags = both.tolist()
    return loss, flags > 0


def update(
    stepper: Stepper,
    optimizer: Optimizer,
    batch: RankBatch | Sequence[Pack],
    lr: float,
    *,
    check: Callable[[float, float], None],
    stopping: Callable[[], bool],
    phases: Phases | None = None,
) -> tuple[float, float, BatchFacts, bool]:
    """One optimizer step with learning rate ``lr``: (loss, gradient norm, facts, whether any rank is ``stopping``).

    ``check(loss, norm)`` may raise before the weights change. ``phases`` gets the seconds of each part.
    """
    phases = phases or Phases()
    with phases("forward_backward"):
        optimizer.zero_grad()
        part, facts = stepper.run(batch)
    with phases("gradient"):
        norm = optimizer.gradient_norm()
        loss, stop = total_loss(part, stopping())
    check(loss, norm)
    with phases("optimizer"):
        optimizer.step(norm, lr)
    return loss, norm, facts, stop
