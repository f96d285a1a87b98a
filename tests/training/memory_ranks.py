"""What each rank of the memory proofs runs: builds the real model and optimizer, takes a real step, counts bytes.

A case is {"model": ModelConfig fields, "config": TrainingConfig fields, "tokens": of one sample, "output"}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nemo_openmath.training.runtime import parallel_state_of, start_process

start_process(timeout_minutes=2)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor  # noqa: E402

from nemo_openmath.data.packs.pack import Pack  # noqa: E402
from nemo_openmath.models import loss  # noqa: E402
from nemo_openmath.models.build import build_model  # noqa: E402
from nemo_openmath.models.configs import ModelConfig  # noqa: E402
from nemo_openmath.training.forward_backward import ForwardBackward  # noqa: E402
from nemo_openmath.training.optimizer import Optimizer  # noqa: E402
from tests.support.ranks import run_cases, training_config  # noqa: E402


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of each storage once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def measure(case: dict[str, Any]) -> dict[str, int]:
    config = training_config(case["config"])
    model = ModelConfig(**case["model"])
    tokens = np.arange(case["tokens"], dtype=np.int32) % model.vocab_size
    ends = np.array([0, case["tokens"]], np.int32)
    pack = Pack(tokens, np.roll(tokens, -1), np.ones(len(tokens), np.bool_), ends, ("sample",))
    batch = [pack] * (2 * dist.get_world_size() // config.parallel.model_parallel)
    with parallel_state_of(config.parallel, seed=0):
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        models = build_model(model, config.parallel, dtype=dtype, recompute=config.recompute)
        with torch.no_grad():
            for parameter in (p for model_chunk in models for p in model_chunk.parameters()):
                parameter.normal_(std=0.02)
        optimizer = Optimizer.build(models, config)
        exchange = "ring" if config.context_exchange == "ring" else "all_gather"
        forward_backward = ForwardBackward(models, optimizer.chunks, model, config.parallel, exchange)
        optimizer.zero_grad()
        forward_backward.run(forward_backward.shard(batch))
        optimizer.step(optimizer.gradient_norm(), 1e-4)
        parameters = [p for chunk in optimizer.chunks for p in chunk.parameters()]
        weights = storages(p.data for p in parameters)
        gradients = storages(p.main_grad for p in parameters)
        mains = [t for part in optimizer.parts for g in part.optimizer.param_groups for t in g["params"]]
        moments = [t for part in optimizer.parts for s in part.optimizer.state.values() for t in s.values()]
        states = storages([*mains, *(t for t in moments if t.numel() > 1)])
        states = {address: size for address, size in states.items() if address not in weights}
        measured = {"weights": sum(weights.values()), "gradients": sum(gradients.values())}
        measured |= {
            "optimizer": sum(states.values()),
            "activations": saved(forward_backward, models, pack, set(weights)),
        }
        writers, rank = optimizer.share_out(), dist.get_rank()  # of data- and context-parallel ranks
        if config.parallel.cp * config.parallel.data_parallel(dist.get_world_size()) == dist.get_world_size():
            full = optimizer.full_state(writers)
            copies = [[p, *full[p].values()] for p, writer in writers.items() if writer == rank]
            measured["saving"] = sum(tensor.nbytes for tensors in copies for tensor in tensors)
            elements = sum(part.stop - part.start for part in optimizer.held_ranges().values())
            measured["loading"] = 4 * len(optimizer.state_keys) * elements
        ranks = config.parallel.data_parallel(dist.get_world_size())
        runs = 1 if dist.get_world_size() == 1 else 3
        pack_each = forward_backward.shard([pack] * ranks)
        for size in case["block_bytes"]:  # of a block of logits
            loss.CPU_BLOCK_BYTES = size
            # gloo's threads let go of a reduced tensor when they get to it: the least of a few runs is the step's own.
            measured[f"peak {size}"] = min(peak(lambda: forward_backward.run(pack_each)) for _ in range(runs))
        return measured


def peak(work: Callable[[], Any]) -> int:
    """Most bytes allocated at once during ``work``, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def saved(forward_backward: ForwardBackward, models: list[Any], pack: Pack, weights: set[int]) -> int:
    """Bytes that autograd keeps of one micro-batch's forward pass through this rank's model."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen.update(storages([tensor]))
        return tensor

    batch = forward_backward.to_device(pack)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # alive until counted, so that no address is used twice
        output = models[0](batch.tokens, None, None, labels=batch.labels, packed_seq_params=batch)
    assert output.requires_grad
    return sum(size for address, size in seen.items() if address not in weights)


def write_measured(case: dict[str, Any]) -> None:
    measured = measure(case)
    if dist.get_rank() == 0:
        Path(case["output"]).write_text(json.dumps(measured))


if __name__ == "__main__":
    run_cases(write_measured)
