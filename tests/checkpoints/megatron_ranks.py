"""Run by every rank of test_megatron.py: load checkpoints into real models with megatron-core, and save them again.

Arguments, once or more: model folder, checkpoint, folder to save to, tp, pp, prefix. megatron-core does both: its
GPTModel's own sharded_state_dict, dist_checkpointing.load and dist_checkpointing.save. It saves the layers as stacks,
its default, and the vocabulary padded to a multiple of 128 x TP as Megatron's trainings pad it. ``prefix`` ("-": none)
is put before the names, as NeMo does with ``module.``.
"""

import os
import sys
from pathlib import Path

COMMON = ("content_metadata", "iteration", "checkpoint_version")


def main() -> None:
    import torch.distributed as dist

    from nemo_openmath.training.runtime import start_process

    start_process(2.0)
    for job in zip(*[iter(sys.argv[1:])] * 6, strict=True):
        load_and_save(*job)
    dist.destroy_process_group()


def load_and_save(hf: str, checkpoint: str, again: str, tp: str, pp: str, prefix: str) -> None:
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from nemo_openmath.models.build import build_model
    from nemo_openmath.models.configs import ModelConfig
    from nemo_openmath.models.layout import Parallel
    from nemo_openmath.training.runtime import parallel_state_of

    parallel = Parallel(tp=int(tp), pp=int(pp))
    with parallel_state_of(parallel, 0):
        config = ModelConfig.from_hf(hf)
        padded = config.vocab_size + -config.vocab_size % (128 * parallel.tp)
        (model,) = build_model(config.with_changes(vocab_size=padded), parallel, backend="local")
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))  # what is not loaded shows
        metadata = dist_checkpointing.load_content_metadata(checkpoint)
        loaded = dist_checkpointing.load(model.sharded_state_dict(metadata=metadata), checkpoint)
        model.load_state_dict({name: value for name, value in loaded.items() if name not in COMMON})
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        if os.environ["RANK"] == "0":
            Path(again).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(model.sharded_state_dict(prefix=prefix.removeprefix("-")), again)


if __name__ == "__main__":
    main()
