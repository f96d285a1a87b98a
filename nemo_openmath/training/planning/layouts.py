"""Every layout of a number of GPUs: those that the trainer accepts and that fit, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training.planning.gpus import GIB, Gpu
from nemo_openmath.training.planning.memory import RECOMPUTE, Layout, Memory, memory
from nemo_openmath.training.planning.speed import DEFAULT_MFU, StepTime, micro_batches, step_time
from nemo_openmath.training.planning.workload import Workload

MAX_CP = 16
CHUNKS = (1, 2, 4)  # model chunks of a pipeline stage
MAX_GPUS = 8192  # looked at for what would fit


@dataclass(frozen=True)
class Estimate:
    """A layout's price."""

    layout: Layout
    memory: Memory
    time: StepTime
    mfu: float  # of the whole step: model FLOPs over what all GPUs could do in it

    def gpu_hours(self, steps: int) -> float:
        return self.layout.gpus * self.time.total * steps / 3600


@dataclass(frozen=True)
class Plan:
    """What ``openmath plan`` answers."""

    work: Workload
    gpu: Gpu
    gpus: int
    mfu: float  # stated
    own: Estimate | None  # the configuration's layout, whether it fits or not
    fits: tuple[Estimate, ...]  # fastest first

    def holds(self, estimate: Estimate) -> bool:
        return estimate.memory.total <= self.gpu.memory


def estimate(work: Workload, layout: Layout, gpu: Gpu, mfu: float = DEFAULT_MFU) -> Estimate:
    """Memory and time of one layout."""
    found = memory(
        work.model,
        layout,
        capacity=work.capacity,
        micro_batches=micro_batches(work, layout),
        precision=work.training.precision,
    )
    time = step_time(work, layout, gpu, mfu)
    return Estimate(layout, found, time, work.flops / (layout.gpus * gpu.peak * time.total))


def layouts(work: Workload, gpu: Gpu, gpus: int) -> Iterator[Layout]:
    """Every layout of ``gpus`` that the trainer accepts: tensor parallelism inside a node, context up to 16."""
    layers = work.model.num_hidden_layers
    for tp in _divisors(gpus, gpu.per_node):
        for cp in _divisors(gpus // tp, MAX_CP):
            for pp in _divisors(gpus // (tp * cp), layers):
                for vpp in CHUNKS if pp > 1 else (1,):
                    for split in (False, True) if tp > 1 else (False,):
                        parallel = Parallel(tp, pp, cp, vpp, split)
                        try:
                            dp = parallel.check(work.model, gpus)
                        except UserError:
                            continue
                        shared = (False, True) if dp * cp > 1 else (False,)
                        yield from (Layout(parallel, dp, each, again) for each in shared for again in RECOMPUTE)


def _divisors(number: int, limit: int) -> list[int]:
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def make_plan(work: Workload, gpu: Gpu, gpus: int, mfu: float = DEFAULT_MFU) -> Plan:
    """Raises UserError naming the number to change when nothing fits, or the configuration's own layout is invalid."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}", remedy="set --gpus to 1 or more")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu}", remedy="choose --mfu above 0 and up to 1")
    own = None
    if work.own_layout:
        config = work.training
        product = config.parallel.model_parallel
        if product > 0 and gpus % product:
            raise UserError(
                f"{gpus} GPUs do not divide into training.parallel's tp x pp x cp = {product}",
                remedy=f"set --gpus to a multiple of {product}, or training.parallel.tp, .pp or .cp lower",
            )
        dp = config.parallel.check(work.model, gpus)
        own = estimate(work, Layout(config.parallel, dp, config.distributed_optimizer, config.recompute), gpu, mfu)
    found = (estimate(work, layout, gpu, mfu) for layout in layouts(work, gpu, gpus))
    fits = [each for each in found if each.memory.total <= gpu.memory]
    if not fits:
        raise _nothing_fits(work, gpu, gpus)
    fits.sort(key=lambda each: (each.time.total, each.memory.total))
    return Plan(work, gpu, gpus, mfu, own, tuple(fits))


def _smallest(work: Workload, gpu: Gpu, gpus: int) -> tuple[int, Layout]:
    """The least memory that any layout of ``gpus`` needs."""
    found = [(estimate(work, layout, gpu).memory.total, layout) for layout in layouts(work, gpu, gpus)]
    return min(found, key=lambda each: each[0])


def _nothing_fits(work: Workload, gpu: Gpu, gpus: int) -> UserError:
    least, _ = _smallest(work, gpu, gpus)
    problem = (
        f"{work.name} with packs of {work.capacity} tokens does not fit {gpus} x {gpu.name}: the least that any layout "
        f"needs is {least / GIB:.1f} GiB of {gpu.memory / GIB:.0f}"
    )
    more = 1 << gpus.bit_length()  # the next power of two
    while more <= MAX_GPUS:
        if _smallest(work, gpu, more)[0] <= gpu.memory:
            return UserError(problem, remedy=f"set --gpus to {more}, or --gpu to one with more memory")
        more *= 2
    return UserError(problem, remedy="set --capacity lower, or --gpu to one with more memory")
