"""Ranks of trainings in which something goes wrong; a case says what, see :func:`run`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nemo_openmath.training.runtime import start_process

start_process(timeout_minutes=2)

import torch.distributed as dist  # noqa: E402

from nemo_openmath.checkpoints.formats import step_folders  # noqa: E402
from nemo_openmath.core.errors import MachineFailure, Preempted  # noqa: E402
from nemo_openmath.core.logs import ConsoleHandler, configure_logging  # noqa: E402
from nemo_openmath.training import agreement, checkpoint  # noqa: E402
from nemo_openmath.training.base_model import BaseModel  # noqa: E402
from nemo_openmath.training.config import TrainingConfig  # noqa: E402
from nemo_openmath.training.rank_watch import RankWatch  # noqa: E402
from nemo_openmath.training.trainer import Trainer, train  # noqa: E402
from tests.support.ranks import run_cases, training_config  # noqa: E402
from tests.training.packs import RandomPacks  # noqa: E402

checkpoint.PAUSE_S = 0.0
agreement.LOOK_S = 0.0


def at_steps(case: dict[str, Any], step: int) -> None:
    """What goes wrong before a step (from 1)."""
    output, rank = Path(case["output"]), dist.get_rank()
    filler = output.parent / "filler"
    if rank == 0 and step == case.get("full"):
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass
    if rank == 0 and step == case.get("room"):
        filler.unlink()
    if rank == 1 and step == case.get("preempted"):
        os.kill(os.getpid(), signal.SIGUSR1)
    if rank == 1 and step == case.get("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)


@contextmanager
def troubled(case: dict[str, Any]) -> Iterator[None]:
    """Within it, a training's steps begin with what goes wrong."""
    train_step = Trainer.train_step

    def step(trainer: Trainer, number: int, batches: Any) -> float:
        at_steps(case, number)
        return train_step(trainer, number, batches)

    Trainer.train_step = step
    try:
        yield
    finally:
        Trainer.train_step = train_step


@contextmanager
def stale_listing() -> Iterator[None]:
    """Within it, this rank does not see the newest checkpoint, as behind a directory's cache."""
    listing = step_folders.list_checkpoints
    step_folders.list_checkpoints = lambda root: listing(root)[:-1]
    try:
        yield
    finally:
        step_folders.list_checkpoints = listing


def training(case: dict[str, Any], config: TrainingConfig) -> None:
    output, rank = Path(case["output"]), dist.get_rank()
    watch = RankWatch(output, rank, dist.get_world_size(), config.hang_seconds)
    end = "done"
    with troubled(case), watch, stale_listing() if case.get("stale") and rank == 1 else nullcontext():
        try:
            base = agreement.alike(lambda: BaseModel.open(Path(case["model"])), BaseModel.view, "the model")
            train(base, RandomPacks(case["steps"]), config, output, watch=watch)
        except (MachineFailure, Preempted) as error:
            end = f"{type(error).__name__} {int(error.exit_code)}: {error}"
    Path(f"{case['end']}-{rank}.end").write_text(end)


def disagreement(case: dict[str, Any]) -> None:
    """A file that rank 1 sees at its second look; one that it never sees; one that nobody sees."""
    looks: list[int] = []
    results = []

    def late() -> str:
        looks.append(1)
        if dist.get_rank() == 1 and len(looks) == 1:
            raise FileNotFoundError(2, "No such file or directory", "packs.plan")
        return "seen"

    def never() -> str:
        return "old" if dist.get_rank() == 1 else "new"

    def nobody() -> str:
        raise FileNotFoundError(2, "No such file or directory", "packs.plan")

    def refused() -> str:
        raise PermissionError(13, "Permission denied", "checkpoints")

    results.append(agreement.alike(late, str, "the packs"))
    agreement.PATIENCE_S = 0.0
    for action in (never, nobody):
        try:
            agreement.alike(action, str, "the packs")
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    try:
        agreement.on_main(refused)
    except Exception as error:
        results.append(f"{type(error).__name__}: {error}")
    Path(f"{case['end']}-{dist.get_rank()}.end").write_text("\n".join(results))


def run(case: dict[str, Any]) -> None:
    """A case may name the steps before which rank 0 fills the disk (``full``) and empties it again (``room``; it is
    empty when a case begins), and rank 1 gets SIGUSR1 (``preempted``) or SIGSTOP (``stopped``). ``stale``: rank 1 lists
    too few checkpoints. How it ended is written to the file ``end``, a rank each."""
    if dist.get_rank() == 0:
        configure_logging(handler=ConsoleHandler("stderr"))
        (Path(case["output"]).parent / "filler").unlink(missing_ok=True)
    if case["kind"] == "disagreement":
        disagreement(case)
    else:
        training(case, training_config(case["config"]))


if __name__ == "__main__":
    run_cases(run)
