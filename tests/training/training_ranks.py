"""What each rank of the proofs runs: all cases of one world size, one after another, in one spawn.

A case is {"kind": "gradients" | "train", "model": folder, "output": folder, "config": {...}, ...}.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_openmath.training.runtime import parallel_state_of, start_process

start_process(timeout_minutes=2)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from torch import Tensor  # noqa: E402

from nemo_openmath.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from nemo_openmath.core.errors import Preempted, UserError  # noqa: E402
from nemo_openmath.data.packs.pack import Pack, concatenate, samples_of  # noqa: E402
from nemo_openmath.models import hf_mapping  # noqa: E402
from nemo_openmath.models.build import build_model, load_hf, parameters_by_stored_name  # noqa: E402
from nemo_openmath.models.configs import ModelConfig  # noqa: E402
from nemo_openmath.training.base_model import BaseModel  # noqa: E402
from nemo_openmath.training.config import TrainingConfig  # noqa: E402
from nemo_openmath.training.forward_backward import ForwardBackward, total_loss  # noqa: E402
from nemo_openmath.training.metrics import TrainingDiverged  # noqa: E402
from nemo_openmath.training.optimizer import Optimizer  # noqa: E402
from nemo_openmath.training.trainer import Trainer, train  # noqa: E402
from tests.support.ranks import run_cases, training_config  # noqa: E402
from tests.training.packs import RandomPacks  # noqa: E402


def gradients(case: dict[str, Any], config: TrainingConfig) -> None:
    """Saves the loss, the gradient norm and every HF parameter's gradient of one batch."""
    model = ModelConfig.from_hf(case["model"])
    config.parallel.check(model, dist.get_world_size())
    torch.use_deterministic_algorithms(config.deterministic)
    with parallel_state_of(config.parallel, seed=0):
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        models = build_model(model, config.parallel, dtype=dtype, recompute=config.recompute)
        load_hf(models, model, open_checkpoint(case["model"]).read)
        optimizer = Optimizer.build(models, config)
        optimizer.zero_grad()
        exchange = "ring" if config.context_exchange == "ring" else "all_gather"
        forward_backward = ForwardBackward(models, optimizer.chunks, model, config.parallel, exchange)
        batch = RandomPacks(1, shift_masks=case.get("shift_masks", 0)).batch(0)
        part = forward_backward.run(forward_backward.shard(batch))
        norm, loss = optimizer.gradient_norm(), total_loss(part)[0]
        mine = {
            (name, parallel_state.get_tensor_model_parallel_rank()): (entry, gradient)
            for name, entry, gradient in full_gradients(optimizer, models, model)
        }
        of_all: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_all, mine)
        if dist.get_rank() == 0:
            merged = {key: value for of_rank in of_all for key, value in of_rank.items()}
            by_name = {}
            for name in {name for name, _ in merged}:
                entry = merged[name, 0][0]
                whole = hf_mapping.tp_join(entry, [merged[name, r][1] for r in range(config.parallel.tp)])
                by_name |= dict(zip(dict(entry.sources), hf_mapping.split(entry, whole), strict=True))
            torch.save({"loss": loss, "norm": norm, "gradients": by_name}, case["output"])


def full_gradients(optimizer: Optimizer, models: list[Any], model: ModelConfig) -> list[tuple[str, Any, Tensor]]:
    """(stored name, mapping entry, this TP rank's gradient), put together from the distributed optimizer's shards."""
    shards = {parameter: (part, main.grad) for _, parameter, main, part in optimizer._locate()}
    result = []
    for name, (entry, parameter) in parameters_by_stored_name(models, model).items():
        part, gradient = shards.get(parameter, (None, None))
        full = torch.zeros(parameter.numel())
        if gradient is not None:
            full[part if part is not None else slice(None)] = gradient.flatten()
        if optimizer.config.distributed_optimizer:
            dist.all_reduce(full, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        result.append((name, entry, full.view(parameter.shape)))
    return result


@contextmanager
def signalled(at: int, number: int) -> Iterator[None]:
    """Within it, a training of this process (from its first step on) gets a signal when step ``at`` (from 0) begins."""
    steps, train_step = iter(range(at + 1)), Trainer.train_step

    def signalled_step(*args: Any) -> float:
        if next(steps, None) == at:
            os.kill(os.getpid(), number)
        return train_step(*args)

    Trainer.train_step = signalled_step
    try:
        yield
    finally:
        Trainer.train_step = train_step


def training(case: dict[str, Any], config: TrainingConfig) -> None:
    """One training; ``"signal": [rank, number, step]`` interrupts it; ``"start"`` copies checkpoints there first, those
    of steps up to ``"until"``."""
    output, source = Path(case["output"]), RandomPacks(case["steps"])
    if "start" in case and dist.get_rank() == 0:
        shutil.copytree(Path(case["start"]) / "checkpoints", output / "checkpoints")
        for later in range(case.get("until", case["steps"]) + 1, case["steps"] + 1):
            shutil.rmtree(output / f"checkpoints/step-{later:08d}", ignore_errors=True)
    dist.barrier()
    rank, number, step = case.get("signal", (None, 0, 0))
    validation = RandomPacks(2, seed=99) if case.get("validation") else None
    try:
        with signalled(step, number) if rank == dist.get_rank() else nullcontext():
            base = BaseModel.open(Path(case["model"]))
            train(base, source, config, output, validation=validation)
    except TrainingDiverged as error:
        (output / "diverged").write_text(str(error))
    except UserError as error:
        (output / f"refused-{dist.get_rank()}").write_text(str(error))
    except Preempted:
        if case.get("signal", [0, 0])[1] != signal.SIGTERM:
            raise


def leaks(case: dict[str, Any], config: TrainingConfig) -> None:
    """Each sample's loss: as it is, with all others changed, at another place of the pack, and alone."""
    model = ModelConfig.from_hf(case["model"])
    samples = samples_of(RandomPacks(1).batch(0)[0])
    with parallel_state_of(config.parallel, seed=0):
        models = build_model(model, config.parallel)
        load_hf(models, model, open_checkpoint(case["model"]).read)
        chunks = Optimizer.build(models, config).chunks
        forward_backward = ForwardBackward(models, chunks, model, config.parallel)

        def loss(packs: list[Pack]) -> float:
            with torch.no_grad():
                batch = forward_backward.shard([concatenate(packs)])
                return total_loss(forward_backward.run(batch, train=False))[0]

        def silent(pack: Pack, change: int) -> Pack:
            return replace(
                pack, tokens=(pack.tokens + change) % model.vocab_size, loss_mask=np.zeros_like(pack.loss_mask)
            )

        losses = []
        for i, sample in enumerate(samples):

            def around(change: int, i: int = i) -> list[Pack]:
                return [s if j == i else silent(s, change) for j, s in enumerate(samples)]

            alone = around(0)
            losses.append([loss(alone), loss(around(7)), loss(alone[i:] + alone[:i]), loss([sample])])
        if dist.get_rank() == 0:
            torch.save(losses, case["output"])


def run(case: dict[str, Any]) -> None:
    {"gradients": gradients, "train": training, "leaks": leaks}[case["kind"]](case, training_config(case["config"]))


if __name__ == "__main__":
    run_cases(run)
