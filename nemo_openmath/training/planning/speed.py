"""Seconds of a training step: computing, the pipeline's bubble, communication.

Computing takes the model's FLOPs (ModelConfig.flops) and what is recomputed, at ``mfu`` of the GPU's peak: the share
that one GPU reaches by itself, without recomputation. That number is stated, not derived. Communication is bytes over
bandwidth; none of it is hidden behind computing, and latency is left out. So the estimate ranks layouts, and is no
promise of seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.training.planning.gpus import Gpu
from nemo_openmath.training.planning.memory import Layout, rank_tokens, stage_parameters
from nemo_openmath.training.planning.workload import Workload

DEFAULT_MFU = 0.40  # assumed: the trainer's aim, not measured
LINK_EFFICIENCY = 0.8  # of the data sheet's rate that NCCL reaches with large messages; assumed


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step by kind; they add up to ``total``."""

    computing: float  # of the slowest pipeline stage and replica
    bubble: float  # stages waiting for the first or the last micro-batch
    communication: float

    @property
    def total(self) -> float:
        """Return the seconds of the step."""
        return self.computing + self.bubble + self.communication


def micro_batches(work: Workload, layout: Layout) -> int:
    """Return the packs of each replica in a step (data/batches/batch_sharding.py)."""
    parallel = layout.parallel
    count = -(-work.packs // layout.data_parallel)
    return -(-count // parallel.pp) * parallel.pp if parallel.vpp > 1 else count


def step_time(work: Workload, layout: Layout, gpu: Gpu, mfu: float = DEFAULT_MFU) -> StepTime:
    """Return the seconds of a step of ``work`` in ``layout``."""
    parallel, count = layout.parallel, micro_batches(work, layout)
    seconds = (work.flops + _recomputed(work, layout)) / (layout.gpus * gpu.peak * mfu)
    if parallel.pp > 1:
        # Whole packs are shared out, all of one length; and the last stage has the output layer too.
        head = work.head_flops / work.flops
        seconds *= count * layout.data_parallel * work.capacity / work.tokens * (1 - head + parallel.pp * head)
    else:  # samples are shared out: ranks wait for one another only where a rank's share is a single sample
        seconds *= max(1.0, layout.data_parallel * work.longest / work.tokens)
    bubble = seconds * (parallel.pp - 1) / (parallel.vpp * count)
    return StepTime(seconds, bubble, _communication(work, layout, gpu, count))


def _recomputed(work: Workload, layout: Layout) -> float:
    """Return the FLOPs of the forward passes that are done again; the loss never is."""
    if layout.recompute == "none":
        return 0.0
    if layout.recompute == "selective":
        return (work.flops - work.model.flops(work.tokens, 0, work.num_target_tokens)) / 3
    return (work.flops - work.head_flops) / 3


def _communication(work: Workload, layout: Layout, gpu: Gpu, count: int) -> float:
    """Return the seconds of a step's communication.

    Rings of n ranks move (n - 1) / n of the whole for a gather or a scatter, twice that for a sum. Ranks are laid out
    tensor, context, data, pipeline (megatron-core's order).
    """
    model, parallel, dp = work.model, layout.parallel, layout.data_parallel
    tp, cp, pp = parallel.tp, parallel.cp, parallel.pp
    # what one replica's context rank computes in a step; whole packs under pipeline parallelism
    tokens = count * rank_tokens(parallel, work.capacity) if pp > 1 else work.tokens / (dp * cp)
    layers, width = model.num_hidden_layers / pp, 2
    full = layout.recompute == "full"

    def seconds(size: float, members: int, span: int) -> float:
        rate = LINK_EFFICIENCY * gpu.bandwidth(members, span)
        return size * (members - 1) / members / rate if members > 1 else 0.0

    # Sums behind attention and MLP, forward and backward; sequence parallelism gathers the products' inputs once more.
    passes = 2 * (6 if full else 4) + (2 if parallel.sequence_parallel else 0)
    total = seconds(passes * layers * tokens * model.hidden_size * width, tp, tp)
    # Keys and values gathered, their gradients scattered; or keys around the ring twice, and fp32 gradients all around.
    keys_values = 2 * model.num_key_value_heads * model.head_dim * width / tp
    rounds = 2 + 2 * cp / (cp - 1) if layout.exchange == "ring" and cp > 1 else 2
    rounds += 0 if layout.recompute == "none" else 1
    total += seconds(rounds * layers * tokens * cp * keys_values, cp, tp * cp)
    # Hidden states to the next stage, gradients back, for every chunk.
    if pp > 1:
        split = tp if parallel.sequence_parallel else 1
        sent = 2 * parallel.vpp * tokens * model.hidden_size * width / split
        total += sent / (LINK_EFFICIENCY * gpu.bandwidth(layout.gpus // pp, layout.gpus))
    # fp32 gradients summed; with the distributed optimizer scattered, and bf16 weights gathered.
    size = max(stage_parameters(model, parallel, stage) for stage in {0, pp - 1})
    return total + seconds(size * (4 + width if layout.distributed_optimizer else 8), dp * cp, layout.gpus // pp)
