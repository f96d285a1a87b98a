"""Every layout of a number of GPUs: those that the trainer accepts and that fit, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import ContextExchange, Exchange, Parallel, Precision
from nemo_openmath.training.planning.gpus import GIB, Gpu
from nemo_openmath.training.planning.memory import RECOMPUTE, Layout, Memory, memory
from nemo_openmath.training.planning.speed import DEFAULT_MFU, StepTime, micro_batches, step_time
from nemo_openmath.training.planning.workload import Workload

MAX_CP = 16
CHUNKS = (1, 2, 4)  # model chunks of a pipeline stage
MAX_GPUS = 8192  # looked at for what would fit
# The memory is computed, and no GPU has run it: a layout that needs all of it may fail after hours, at the first pack
# whose tensors do not fit the allocator's holes.
HEADROOM = 0.10  # of a GPU's memory that stays free in the layout that is offered; assumed
ALIKE = 0.02  # layouts whose step differs by less are as fast: the estimate is not more exact


@dataclass(frozen=True)
class Estimate:
    """What a layout costs."""

    layout: Layout
    memory: Memory
    time: StepTime
    mfu: float  # of the whole step: model FLOPs over what all GPUs could do in it

    def gpu_hours(self, steps: int) -> float:
        """Return the GPU-hours of so many steps."""
        return self.layout.gpus * self.time.total * steps / 3600


@dataclass(frozen=True)
class Plan:
    """The answer of ``openmath plan``."""

    work: Workload
    gpu: Gpu
    gpus: int
    mfu: float  # of one GPU by itself: stated by the user
    headroom: float  # share of a GPU's memory that the offered layout leaves free
    configured: Estimate | None  # the configuration's own layout, whether it fits or not
    fits: tuple[Estimate, ...]  # fastest first, with and without the headroom

    def has_headroom(self, choice: Estimate) -> bool:
        """Return whether a layout leaves the stated share of the memory free."""
        return choice.memory.total <= (1 - self.headroom) * self.gpu.memory

    @property
    def offered(self) -> Estimate:
        """Return the layout to take: of those with headroom that are as fast as the fastest of them (within ALIKE), the
        one that needs the least memory. Where none has headroom, it is chosen among all that fit."""
        safe = [choice for choice in self.fits if self.has_headroom(choice)] or list(self.fits)
        fast = [choice for choice in safe if choice.time.total <= (1 + ALIKE) * safe[0].time.total]
        return min(fast, key=lambda choice: (choice.memory.total, choice.time.total))

    @property
    def surcharge(self) -> float:
        """Return by what share a step of the configuration's own layout takes longer than of the offered one; 0 where
        it is as fast, or where there is none."""
        if self.configured is None:
            return 0.0
        share = self.configured.time.total / self.offered.time.total - 1
        return share if share > ALIKE else 0.0

    @property
    def without_recomputation(self) -> Estimate | None:
        """Return the configuration's own layout without its recomputation, where that leaves the headroom free: then
        the recomputation is time for nothing. Else None."""
        if self.configured is None or self.configured.layout.recompute == "none":
            return None
        layout = replace(self.configured.layout, recompute="none")
        choice = estimate(self.work, with_exchange(self.work, layout, self.gpu), self.gpu, self.mfu)
        return choice if self.has_headroom(choice) else None


def estimate(work: Workload, layout: Layout, gpu: Gpu, mfu: float = DEFAULT_MFU) -> Estimate:
    """Return memory and time of one layout."""
    memory_of_rank = memory(
        work.model,
        layout,
        capacity=work.capacity,
        micro_batches=micro_batches(work, layout),
        precision=work.training.precision,
        gpu_memory=gpu.memory,
    )
    time = step_time(work, layout, gpu, mfu)
    return Estimate(layout, memory_of_rank, time, work.flops / (layout.gpus * gpu.peak * time.total))


def choose_exchange(
    model: ModelConfig,
    layout: Layout,
    *,
    wanted: ContextExchange = "auto",
    capacity: int,
    micro_batches: int,
    precision: Precision,
    gpu_memory: int,
) -> Exchange:
    """Return how context ranks exchange keys: as ``wanted``, and with ``auto`` by all-gather, whose messages are fewer,
    unless that leaves less than HEADROOM of ``gpu_memory`` (bytes) free and the ring needs less.

    The trainer asks the same question about the GPU that it is on. TransformerEngine's layers always have a ring.
    """
    if layout.parallel.cp == 1:
        return "all_gather"
    if layout.transformer_engine or wanted == "ring":
        return "ring"
    if wanted == "all_gather":
        return "all_gather"

    def needed(exchange: Exchange) -> int:
        return memory(
            model,
            replace(layout, exchange=exchange),
            capacity=capacity,
            micro_batches=micro_batches,
            precision=precision,
            gpu_memory=gpu_memory,
        ).total

    gathered = needed("all_gather")
    return "all_gather" if gathered <= (1 - HEADROOM) * gpu_memory or gathered <= needed("ring") else "ring"


def with_exchange(work: Workload, layout: Layout, gpu: Gpu) -> Layout:
    """Return the layout with the exchange that the configuration says, or the trainer would choose."""
    exchange = choose_exchange(
        work.model,
        layout,
        wanted=work.training.context_exchange,
        capacity=work.capacity,
        micro_batches=micro_batches(work, layout),
        precision=work.training.precision,
        gpu_memory=gpu.memory,
    )
    return replace(layout, exchange=exchange)


def layouts(work: Workload, gpu: Gpu, gpus: int) -> Iterator[Layout]:
    """Yield every layout of ``gpus`` that the trainer accepts, with tensor parallelism inside a node and context
    parallelism up to 16."""
    layers, fused = work.model.num_hidden_layers, work.training.backend == "transformer_engine"
    for tp in _divisors(gpus, gpu.per_node):
        for cp in _divisors(gpus // tp, MAX_CP):
            for pp in _divisors(gpus // (tp * cp), layers):
                for vpp in CHUNKS if pp > 1 else (1,):
                    for sequence_parallel in (False, True) if tp > 1 else (False,):
                        parallel = Parallel(tp, pp, cp, vpp, sequence_parallel)
                        try:
                            dp = parallel.check(work.model, gpus)
                        except UserError:
                            continue
                        for distributed in (False, True) if dp * cp > 1 else (False,):
                            for recompute in RECOMPUTE:
                                layout = Layout(parallel, dp, distributed, recompute, transformer_engine=fused)
                                yield with_exchange(work, layout, gpu)


def _divisors(number: int, limit: int) -> list[int]:
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def own_layout(work: Workload, gpu: Gpu, gpus: int, mfu: float = DEFAULT_MFU) -> Estimate:
    """Return memory and time of the layout that the configuration says, on ``gpus`` GPUs, whether it fits or not.

    Raises UserError naming the number to change where the layout does not divide the GPUs or the model.
    """
    config, product = work.training, work.training.parallel.model_parallel
    if product > 0 and gpus % product:
        raise UserError(
            f"{gpus} GPUs do not divide into training.parallel's tp x pp x cp = {product}",
            remedy=f"set --gpus to a multiple of {product}, or training.parallel.tp, .pp or .cp lower",
        )
    dp = config.parallel.check(work.model, gpus)
    fused = config.backend == "transformer_engine"
    layout = Layout(config.parallel, dp, config.distributed_optimizer, config.recompute, transformer_engine=fused)
    return estimate(work, with_exchange(work, layout, gpu), gpu, mfu)


def make_plan(work: Workload, gpu: Gpu, gpus: int, mfu: float = DEFAULT_MFU, headroom: float = HEADROOM) -> Plan:
    """Return what ``work`` costs on so many GPUs.

    Raises UserError naming the number to change when nothing fits, or the configuration's own layout is invalid.
    """
    if gpus < 1:
        raise UserError(f"--gpus {gpus}", remedy="set --gpus to 1 or more")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu}", remedy="choose --mfu above 0 and up to 1")
    if not 0 <= headroom < 1:
        raise UserError(f"--headroom {headroom}", remedy="choose --headroom from 0 to below 1, such as 0.1")
    configured = own_layout(work, gpu, gpus, mfu) if work.has_layout else None
    estimates = (estimate(work, layout, gpu, mfu) for layout in layouts(work, gpu, gpus))
    fits = [choice for choice in estimates if choice.memory.total <= gpu.memory]
    if not fits:
        raise _nothing_fits(work, gpu, gpus)
    fits.sort(key=lambda choice: (choice.time.total, choice.memory.total))
    return Plan(work, gpu, gpus, mfu, headroom, configured, tuple(fits))


def _least_memory(work: Workload, gpu: Gpu, gpus: int) -> int:
    """Return the least memory that any layout of ``gpus`` needs."""
    return min(estimate(work, layout, gpu).memory.total for layout in layouts(work, gpu, gpus))


def _nothing_fits(work: Workload, gpu: Gpu, gpus: int) -> UserError:
    least = _least_memory(work, gpu, gpus)
    problem = (
        f"{work.name} with packs of {work.capacity} tokens does not fit {gpus} x {gpu.name}: the least that any layout "
        f"needs is {least / GIB:.1f} GiB of {gpu.memory / GIB:.0f}"
    )
    more = 1 << gpus.bit_length()  # the next power of two
    while more <= MAX_GPUS:
        if _least_memory(work, gpu, more) <= gpu.memory:
            return UserError(problem, remedy=f"set --gpus to {more}, or --gpu to one with more memory")
        more *= 2
    return UserError(problem, remedy="set --capacity lower, or --gpu to one with more memory")
