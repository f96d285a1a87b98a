"""NeMo 2.x recipes of the four sizes of arXiv 2504.16891. This module imports NeMo and nemo-run.

Every number comes from the recipe file of ``examples/`` that ``openmath recipe run`` reads, defaults included
(``training/config.py``); what is written here is how NeMo spells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.llm.recipes.log.default import tensorboard_logger
from nemo.collections.llm.recipes.precision.mixed_precision import bf16_mixed
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler, MegatronOptimizerModule
from nemo.utils.exp_manager import TimingCallback

from nemo_openmath.core.build import Builder, nearest
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.integrations.nemo.data_module import PackedDataModule
from nemo_openmath.integrations.nemo.packs import PackStream, packed_data_step, packs_per_batch
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.stage import SftConfig

EXAMPLES = Path(__file__).parents[3] / "examples"  # of a checkout


@dataclass(frozen=True)
class Size:
    """One architecture as NeMo names it."""

    config: Any  # NeMo's class of the architecture's numbers
    tied: bool = False  # output weights are the embedding's, as in the HF config


SIZES = {
    "qwen2.5-math-1.5b": Size(llm.Qwen25Config1P5B, tied=True),
    "qwen2.5-math-7b": Size(llm.Qwen25Config7B),
    "qwen2.5-14b": Size(llm.Qwen25Config14B),
    "qwen2.5-32b": Size(llm.Qwen25Config32B),
}


def read_numbers(
    size: str, round: int = 1, *, examples: str | Path = EXAMPLES, overrides: Sequence[str] = ()
) -> SftConfig:
    """Return the settings of ``train1`` or ``train2`` in ``examples/SIZE.yaml``; in round 2 the RoPE base is round 1's.

    ``overrides``: as on the command line, ``stages.train1.training.lr=1e-4``. Raises UserError.
    """
    if size not in SIZES:
        raise UserError(f"no recipe for {size!r}", remedy=nearest(size, list(SIZES)))
    path = Path(examples) / f"{size}.yaml"
    source = Source.read(path, overrides)
    builder = Builder(source.origin, path.parent, taken_out=source.taken_out)
    stages = source.data.get("stages", {})
    name = f"train{round}"
    if name not in stages:
        raise UserError(f"no stage {name}: {size} has no round {round}", file=path)
    settings = {k: v for k, v in stages[name].items() if k not in ("run", "from")}
    for key in ("rope_theta", "max_position_embeddings"):
        if key in stages["train1"]:
            settings.setdefault(key, stages["train1"][key])
    return builder.build(SftConfig, settings, ("stages", name))


def finetune_recipe(
    size: str,
    packs: str | Path,
    checkpoint: str | Path,
    *,
    round: int = 1,
    num_nodes: int = 1,
    num_gpus_per_node: int = 8,
    model: str | None = None,
    validation: str | None = None,
    dir: str | None = None,
    name: str | None = None,
    examples: str | Path = EXAMPLES,
    overrides: Sequence[str] = (),
) -> run.Partial:
    """Return a recipe for ``nemo_run.run`` that calls ``llm.finetune``.

    - ``packs``: folder of the packing stage; it is read here, for the number of packs and steps.
    - ``checkpoint``: NeMo checkpoint of the base model (``llm.import_ckpt``) or, in round 2, of round 1's average.
    - ``model``: Hugging Face folder whose tokenizer the packs must have been made with.

    Raises UserError.
    """
    config = read_numbers(size, round, examples=examples, overrides=overrides)
    numbers, layout = config.training, config.training.parallel
    plan = PackPlan(packs)
    ranks = layout.data_parallel(num_nodes * num_gpus_per_node)
    batch = packs_per_batch(plan, config.batch_samples, ranks)
    epochs = config.epochs or (config.steps or 0) * batch / plan.num_packs
    steps = PackStream(plan, epochs=epochs, batch_packs=batch).num_steps
    name = name or f"{size}-round{round}"
    return run.Partial(
        llm.finetune,
        model=run.Config(llm.Qwen2Model, config=_model(SIZES[size], config, plan.capacity)),
        trainer=_trainer(config, steps, num_nodes, num_gpus_per_node, validation),
        data=run.Config(
            PackedDataModule,
            folder=str(packs),
            global_batch_size=batch,
            epochs=epochs,
            seed=numbers.seed,
            validation=validation,
            model=model,
        ),
        log=_log(numbers, steps, dir, name),
        optim=_optimizer(numbers, steps),
        resume=run.Config(
            nl.AutoResume,
            restore_config=run.Config(nl.RestoreConfig, path=str(checkpoint)),
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
        ),
        tokenizer="model",
    )


def _model(size: Size, config: SftConfig, capacity: int) -> run.Config:
    numbers = config.training
    model = run.Config(
        size.config,
        seq_length=capacity,
        share_embeddings_and_output_weights=size.tied,
        calculate_per_token_loss=True,  # the sum over target tokens by their number in the batch, at every layout
        data_step_fn=packed_data_step,
    )
    if config.rope_theta is not None:
        model.rotary_base = config.rope_theta
    if numbers.recompute == "full":
        model.recompute_granularity, model.recompute_method, model.recompute_num_layers = "full", "uniform", 1
    elif numbers.recompute == "selective":
        model.recompute_granularity = "selective"
    return model


def _trainer(
    config: SftConfig, steps: int, num_nodes: int, num_gpus_per_node: int, validation: str | None
) -> run.Config:
    layout = config.training.parallel
    strategy = run.Config(
        nl.MegatronStrategy,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        pipeline_dtype=torch.bfloat16,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        sequence_parallel=layout.sequence_parallel,
        gradient_as_bucket_view=True,
        ckpt_load_strictness="log_all",
        ddp=run.Config(
            DistributedDataParallelConfig,
            check_for_nan_in_grad=True,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
            average_in_collective=False,  # excluded by calculate_per_token_loss
            use_distributed_optimizer=True,
        ),
    )
    return run.Config(
        nl.Trainer,
        accelerator="gpu",
        devices=num_gpus_per_node,
        num_nodes=num_nodes,
        max_steps=steps,
        accumulate_grad_batches=1,
        log_every_n_steps=config.training.log_every,
        limit_val_batches=0 if validation is None else 1.0,
        val_check_interval=config.training.validation.every or steps,
        plugins=bf16_mixed(),
        strategy=strategy,
        use_distributed_sampler=False,
        callbacks=[run.Config(TimingCallback)],
    )


def _optimizer(numbers: TrainingConfig, steps: int) -> run.Config:
    constant = numbers.schedule == "constant"
    return run.Config(
        MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",  # with decoupled weight decay, not on norms and biases: AdamW
            lr=numbers.lr,
            weight_decay=numbers.weight_decay,
            adam_beta1=numbers.beta1,
            adam_beta2=numbers.beta2,
            adam_eps=numbers.epsilon,
            clip_grad=numbers.clip,
            bf16=True,
            use_distributed_optimizer=True,
        ),
        lr_scheduler=run.Config(
            CosineAnnealingScheduler,
            max_steps=steps,
            warmup_steps=int(numbers.warmup * steps),
            constant_steps=0,
            min_lr=numbers.lr * (1.0 if constant else numbers.final_lr_ratio),
        ),
    )


def _log(numbers: TrainingConfig, steps: int, dir: str | None, name: str) -> run.Config:
    """Save ``average_k`` equally spaced checkpoints, the last within average_k steps of the end, and delete none."""
    checkpoints = run.Config(
        nl.ModelCheckpoint,
        monitor="step",
        mode="max",
        save_last="link",
        save_top_k=-1,
        every_n_train_steps=max(1, steps // max(1, numbers.checkpoints.average_k)),
        filename="{model_name}--{step}-{consumed_samples}",
    )
    return run.Config(
        nl.NeMoLogger, ckpt=checkpoints, name=name, log_dir=dir, tensorboard=tensorboard_logger(name=name)
    )
