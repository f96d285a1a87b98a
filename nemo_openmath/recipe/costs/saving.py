"""What a training of a recipe loses to saving and to failures: at its own ``checkpoints.every``, and at the best."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass

from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.costs.storage import checkpoint_bytes
from nemo_openmath.training.config import Checkpoints
from nemo_openmath.training.planning.failures import NODE_MTBF_HOURS, FailureModel
from nemo_openmath.training.planning.layouts import Estimate
from nemo_openmath.training.planning.workload import Workload

WRITE_SPEED = 2e9  # bytes/s of one job on the shared file system; assumed
HOST_COPY = 5e9  # bytes/s of a GPU into pageable host memory, for a save that is written meanwhile; assumed
RECOVERY_MINUTES = 10.0  # from a failure until a new job trains: queue, processes, loading; assumed


@dataclass(frozen=True)
class FailureOptions:
    """What is known of the machines. Those that are None are assumed."""

    mtbf_hours: float | None = None
    """Mean time between failures of one node."""
    write_speed: float | None = None
    """Bytes/s that a job writes to the shared file system."""
    recovery_minutes: float | None = None

    def __post_init__(self) -> None:
        for flag in ("mtbf_hours", "write_speed", "recovery_minutes"):
            value = getattr(self, flag)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{flag.replace('_', '-')} {value:g}", remedy="choose it above 0")

    @classmethod
    def of(cls, options: Namespace) -> FailureOptions:
        """Return what a parsed command line says."""
        speed = options.write_speed
        return cls(options.mtbf_hours, None if speed is None else 1e9 * speed, options.recovery_minutes)

    @property
    def mtbf(self) -> float:
        """Return the mean seconds between failures of one node."""
        return 3600 * (NODE_MTBF_HOURS if self.mtbf_hours is None else self.mtbf_hours)

    @property
    def speed(self) -> float:
        """Return the bytes/s that a job writes."""
        return WRITE_SPEED if self.write_speed is None else self.write_speed

    @property
    def recovery(self) -> float:
        """Return the seconds from a failure until the training goes on."""
        return 60 * (RECOVERY_MINUTES if self.recovery_minutes is None else self.recovery_minutes)

    def lines(self) -> list[str]:
        """Return where each number comes from, a line each."""
        assumed = ["given: " if v is not None else "assumed: " for v in (self.mtbf_hours, self.write_speed)]
        last = "assumed: " if self.recovery_minutes is None else "given: "
        source = "; Llama 3, arXiv 2407.21783" if self.mtbf_hours is None else ""
        return [
            f"{assumed[0]}{self.mtbf / 3600:,.0f} hours between failures of a node (--mtbf-hours{source})",
            f"{assumed[1]}a job writes {self.speed / 1e9:g} GB/s (--write-speed)",
            f"assumed: a GPU copies {HOST_COPY / 1e9:g} GB/s to the memory of its host",
            f"{last}{self.recovery / 60:g} minutes from a failure until a training goes on (--recovery-minutes)",
        ]


@dataclass(frozen=True)
class SavingCosts:
    """How often a training saves, how often it should, and what share of its time is lost either way."""

    size: int
    """Bytes of a checkpoint."""
    step: float
    """Seconds of a step."""
    failures: FailureModel
    every: int
    """Steps between saves, as the recipe says; 0: it saves none for resuming alone."""
    steps: int | None
    """Steps of the training."""
    kept: int
    """Checkpoints that stay, such as those that are averaged: a training resumes from them, too."""

    @property
    def best(self) -> int:
        """Return the steps between saves that lose least."""
        steps = max(1, round(self.failures.best() / self.step))
        while steps * self.step < self.failures.writing:
            steps += 1
        return steps if self.steps is None else min(steps, self.steps)

    @property
    def young(self) -> float:
        """Return Young's first-order interval in steps."""
        return self.failures.young() / self.step

    def lost(self, every: int) -> float:
        """Return the share of the time that is lost where a checkpoint is saved after so many steps."""
        return self.failures.lost_share(every * self.step)

    @property
    def own_lost(self) -> float | None:
        """Return the share that is lost at the recipe's own interval; without one, at that of the checkpoints that
        stay. None where neither the interval nor the number of steps is known."""
        if self.steps is None:
            return self.lost(self.every) if self.every else None
        return self.lost(min(self.every or -(-self.steps // self.kept), self.steps))

    @property
    def cycle(self) -> float:
        """Return the seconds from save to save, at the recipe's own interval."""
        interval = self.every * self.step
        return interval + self.failures.stop(interval)

    @property
    def bytes_per_hour(self) -> float:
        """Return what is written to disk at the recipe's own interval."""
        return self.size * 3600 / self.cycle if self.every else 0.0

    @property
    def busy(self) -> float:
        """Return the share of the time in which a checkpoint is being written, at the recipe's own interval."""
        return (self.failures.writing or self.failures.stall) / self.cycle if self.every else 0.0

    @property
    def stalled(self) -> float:
        """Return the share of the time in which saves stop the training, at the recipe's own interval."""
        return self.failures.stop(self.every * self.step) / self.cycle if self.every else 0.0


def saving_costs(
    work: Workload, choice: Estimate, nodes: int, settings: Checkpoints, options: FailureOptions
) -> SavingCosts:
    """Return what saving costs a training on ``nodes`` nodes in the layout ``choice``.

    A save that is written while the training goes on (as on a GPU, unless ``asynchronous`` is false) stops it for the
    copy to host memory alone, each rank its part; another one until all is written.
    """
    size = checkpoint_bytes(work.model, work.training.precision)
    writing = size / options.speed
    waits = settings.asynchronous is False
    stall = writing if waits else size / choice.layout.gpus / HOST_COPY
    model = FailureModel(options.mtbf / nodes, stall, 0.0 if waits else writing, options.recovery)
    return SavingCosts(size, choice.time.total, model, settings.every, work.steps, settings.least_kept)
