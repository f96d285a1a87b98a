"""The forward and backward passes of a batch: its packs shared out to ranks, pipelined, and one loss of all.

The loss of a batch is the sum of -log p over all its target tokens, divided by their number. Every rank reads the
whole batch, so it knows that number beforehand and divides its own part by it. Summing gradients over ranks then gives
the gradient of the batch's loss, at every layout, without any weighting of packs, micro-batches or ranks.
"""

from __future__ import annotations

import itertools
import logging
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
from nemo_openmath.models.layout import Exchange, Parallel
from nemo_openmath.models.packed import HostBatch, PackedBatch
from nemo_openmath.training.read_ahead import read_ahead

SECONDS_BETWEEN_LINES = 30.0  # within a step
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchStats:
    """What every rank knows of a global batch before computing it."""

    samples: int
    tokens: int  # padding of the packs included
    num_target_tokens: int
    sum_squared_lengths: int  # of the samples: what attention costs
    computed_tokens: int  # of all ranks together, the padding of the layout included
    sample_ids: tuple[str, ...]

    @property
    def fill(self) -> float:
        """Return the share of the computed tokens that belong to packs."""
        return self.tokens / max(1, self.computed_tokens)

    def record(self) -> dict[str, Any]:
        """Return the fields of the step's line in metrics.jsonl."""
        return {
            "tokens": self.tokens,
            "trained_tokens": self.num_target_tokens,
            "samples": self.samples,
            "fill": round(self.fill, 5),
        }


@dataclass(frozen=True)
class RankBatch:
    """A global batch as this rank computes it."""

    packs: list[Pack]  # this rank's micro-batches
    stats: BatchStats  # of the global batch


class ForwardBackward:
    """Runs batches through this rank's model chunks."""

    def __init__(
        self,
        models: Sequence[PackedGPT],
        chunks: Sequence[Any],
        model_config: ModelConfig,
        parallel: Parallel,
        exchange: Exchange | None = "all_gather",
    ):
        """``chunks`` are the ``models`` under data parallelism (``Optimizer.chunks``). ``exchange`` is that of keys
        between context ranks; None: the layers' own (TransformerEngine)."""
        self.exchange = exchange
        self.models, self.chunks, self.model_config, self.parallel = list(models), list(chunks), model_config, parallel
        self.device = next(parameter.device for model in models for parameter in model.parameters())
        self.data_parallel_size = parallel_state.get_data_parallel_world_size()
        self.data_parallel_rank = parallel_state.get_data_parallel_rank()
        self._schedule: Callable[..., list[Tensor]] = get_forward_backward_func()
        # Gradients travel during the last micro-batch's backward pass alone.
        if chunks[0].ddp_config.overlap_grad_reduce:
            self.models[0].config.no_sync_func = chunks[0].no_sync
        # The loss is divided already: no scaling by token counts, hence no further messages.
        self.models[0].config.finalize_model_grads_func = lambda chunks, _tokens, **rest: finalize_model_grads(
            chunks, **rest
        )

    def shard(self, batch: Sequence[Pack]) -> RankBatch:
        """Check a global batch and take this rank's part of it. Touches no tensor, so that a thread may do it ahead.

        Raises UserError for a batch without target tokens, and what :func:`check_tokens` raises.
        """
        target_tokens = sum(pack.num_target_tokens for pack in batch)
        if target_tokens == 0:
            names = ", ".join(name for pack in batch for name in pack.sample_ids[:3])
            raise UserError(
                f"a batch trains no token (samples {names}, ...)", remedy="check the loss masks of the data"
            )
        check_tokens(batch, self.model_config.vocab_size)
        shares = shard_batch(batch, self.data_parallel_size, self.parallel)
        stats = BatchStats(
            samples=sum(len(pack.sample_ids) for pack in batch),
            sample_ids=tuple(name for pack in batch for name in pack.sample_ids),
            tokens=sum(len(pack.tokens) for pack in batch),
            num_target_tokens=target_tokens,
            sum_squared_lengths=sum(pack.attention_cost for pack in batch),
            computed_tokens=sum(len(pack.tokens) for share in shares for pack in share),
        )
        return RankBatch(shares[self.data_parallel_rank], stats)

    def run(self, batch: RankBatch, *, train: bool = True) -> Tensor:
        """Run the forward passes of a batch, and with ``train`` the backward passes; return this rank's part of the
        mean loss (a scalar).

        The parts of the last pipeline stage's ranks sum to the loss (:func:`total_loss`); other stages give 0.
        """
        packs, target_tokens = batch.packs, batch.stats.num_target_tokens
        with read_ahead(lambda i: self._on_host(packs[i]), range(len(packs)), self.device) as ahead:
            on_device = (host.to(self.device, self.model_config) for host in _with_progress(ahead, len(packs)))
            # Chunks of a model that is interleaved ask for the same micro-batches, one after another.
            parts = self._forward_backward(
                list(itertools.tee(on_device, len(self.models))), packs, target_tokens, train
            )
        return torch.stack(parts).sum() if parts else torch.zeros((), device=self.device)

    def _forward_backward(
        self, micro_batches: list[Iterator[PackedBatch]], packs: Sequence[Pack], target_tokens: int, train: bool
    ) -> list[Tensor]:
        def forward(iterator: Iterator[PackedBatch], chunk: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            micro_batch = next(iterator)
            output = chunk(micro_batch.tokens, None, None, labels=micro_batch.labels, packed_seq_params=micro_batch)

            def mean(total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                part = total / target_tokens
                return part, _NO_COUNT, part.detach()

            return output, mean

        several = len(self.models) > 1
        return self._schedule(
            forward_step_func=forward,
            data_iterator=micro_batches if several else micro_batches[0],
            model=self.chunks if several else self.chunks[:1],
            num_microbatches=len(packs),
            seq_length=len(packs[0].tokens),
            micro_batch_size=1,
            forward_only=not train,
        )

    def to_device(self, pack: Pack) -> PackedBatch:
        """Return this context rank's part of a pack as tensors on the device."""
        return self._on_host(pack).to(self.device, self.model_config)

    def _on_host(self, pack: Pack) -> HostBatch:
        return HostBatch.of(
            pack.tokens,
            pack.labels,
            pack.loss_mask,
            pack.cu_seqlens,
            cp=self.parallel.cp,
            cp_rank=parallel_state.get_context_parallel_rank(),
            exchange=self.exchange,
            pin=self.device.type == "cuda",
        )


def _with_progress(micro_batches: Iterator[HostBatch], count: int) -> Iterator[HostBatch]:
    """Pass on a step's micro-batches, with a line now and then where the step takes long."""
    begun = reported = time.monotonic()
    for done, micro_batch in enumerate(micro_batches):
        now = time.monotonic()
        if now - reported > SECONDS_BETWEEN_LINES:
            log.info("... %d of %d packs of this step, %.0f s", done, count, now - begun)
            reported = now
        yield micro_batch


def check_tokens(batch: Sequence[Pack], vocabulary: int) -> None:
    """Raise UserError naming the sample where a token id lies outside 0..vocabulary-1: under tensor parallelism it
    would train as zeros, without an error."""
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
    """Return the mean loss of a batch from the parts of :meth:`ForwardBackward.run`, and whether any rank raised its
    ``flag``; both are the same on every rank, and travel in one message."""
    if parallel_state.get_tensor_model_parallel_rank() > 0:  # tensor-parallel ranks hold the same part
        part = torch.zeros_like(part)
    both = torch.stack([part.double(), torch.full_like(part, float(flag), dtype=torch.float64)])
    dist.all_reduce(both)
    loss, flags = both.tolist()
    return loss, flags > 0
