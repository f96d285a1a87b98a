"""Run by every rank of test_megatron.py: load checkpoints into real models with megatron-core, and save them again.

A case is {"model": folder, "checkpoint": folder, "output": folder to save to, "tp": 2, "pp": 1, "prefix": "module."}.
megatron-core does both: its GPTModel's own sharded_state_dict, dist_checkpointing.load and dist_checkpointing.save. It
saves the layers as stacks, its default, and the vocabulary padded to a multiple of 128 x TP as Megatron's trainings pad
it. ``prefix`` is put before the names, as NeMo does with ``module.``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_openmath.training.runtime import parallel_state_of, start_process
from tests.support.ranks import run_cases

COMMON = ("content_metadata", "iteration", "checkpoint_version")


def load_and_save(case: dict[str, Any]) -> None:
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from nemo_openmath.models.build import build_model
    from nemo_openmath.models.configs import ModelConfig
    from nemo_openmath.models.layout import Parallel

    parallel = Parallel(tp=case["tp"], pp=case["pp"])
    with parallel_state_of(parallel, 0):
        config = ModelConfig.from_hf(case["model"])
        padded = config.vocab_size + -config.vocab_size % (128 * parallel.tp)
        (model,) = build_model(config.with_changes(vocab_size=padded), parallel, backend="local")
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))  # what is not loaded shows
        metadata = dist_checkpointing.load_content_metadata(case["checkpoint"])
        loaded = dist_checkpointing.load(model.sharded_state_dict(metadata=metadata), case["checkpoint"])
        model.load_state_dict({name: value for name, value in loaded.items() if name not in COMMON})
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        if dist.get_rank() == 0:
            Path(case["output"]).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(model.sharded_state_dict(prefix=case["prefix"]), case["output"])


if __name__ == "__main__":  # which the processes of megatron-core's writer import without running it
    start_process(timeout_minutes=2)
    run_cases(load_and_save)
