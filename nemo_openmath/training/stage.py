"""Training as a stage of a recipe: packs and a model in, checkpoints out."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.checkpoints.formats.step_folders import step_folder
from nemo_openmath.core.bounds import PositiveFloat, PositiveInt, ShareBelowOne
from nemo_openmath.core.errors import MissingExtra, OpenMathError
from nemo_openmath.core.records import write_json
from nemo_openmath.core.records.lineage import Lineage, digest_tree
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.core.tags import TAGS
from nemo_openmath.data.batches.held_out import check_share
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.training.certificate.first_step import prepare
from nemo_openmath.training.config import DataConfig, TrainingConfig, TrainingJob
from nemo_openmath.training.job import check_batch
from nemo_openmath.training.launch import LaunchFailed, launch_process
from nemo_openmath.training.metrics import show
from nemo_openmath.training.run_lock import refuse_locked

_LOOKED_AT = 32  # packs in which tags are looked for


@dataclass(frozen=True)
class SftConfig:
    """Settings of a training as a stage; ``training`` are those of the trainer."""

    processes: PositiveInt = field(default=1, metadata=RUNTIME)
    """Ranks on this machine; on a cluster the launcher starts them."""
    threads: PositiveInt = field(default=1, metadata=RUNTIME)
    """Threads of each rank, on a CPU."""
    batch_samples: PositiveInt = 1024
    """Samples of the global batch, at every layout. Paper section 5.1."""
    epochs: PositiveFloat | None = None
    """Length of the training in epochs; or give ``steps``."""
    steps: PositiveInt | None = None
    """Length of the training in steps, instead of ``epochs``."""
    validation_share: ShareBelowOne = 0.0
    """Share of the packs' samples that is held out for the validation loss, chosen by ids, instead of the input
    ``validation``."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary embedding, in place of the model's. Paper section 5.1: 500000 for the Math bases."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence in tokens, in place of the model's. The reference's edit for the Math bases is
    131072; the paper gives none."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to optimise, how to spread over processes, what to save and to show."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the length of the training as epochs or as steps")
        check_share(self.validation_share)


class Sft(Stage[SftConfig]):
    """Fine-tune a model on packed samples, on megatron-core. Killed and run again, the training goes on from its newest
    checkpoint."""

    kind = "training.sft"
    Config = SftConfig
    ports = {"packs": "folder of sft.pack", "model": "model to start from", "validation?": "held-out packs"}
    takes = {"packs": "packs", "model": "model", "validation": "packs"}
    makes = "checkpoints"
    launched = True

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for model in inputs.get("model", ()):
            self.config.training.parallel.check(ModelConfig.from_hf(model), self.config.processes)
        if self.config.training.device == "cuda":
            from nemo_openmath.training.choose_device import refuse_few_gpus  # torch takes seconds to import

            refuse_few_gpus("cuda", self.config.processes)
        for packs in (*inputs.get("packs", ()), *inputs.get("validation", ())):
            PackPlan(packs)
        for name, extra, wanted in (
            ("tensorboard", "watch", self.config.training.tensorboard),
            ("wandb", "watch", self.config.training.wandb_project is not None),
        ):
            if wanted and importlib.util.find_spec(name) is None:
                raise MissingExtra(name, extra, f"training.{name}")

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        # neither looking at a training nor its place makes another one of it
        for name in ("profile", "hang_seconds", "certify", "device"):
            settings["training"].pop(name)
        if not settings["training"]["deterministic"]:
            del settings["training"]["deterministic"]
        settings["training"]["checkpoints"].pop("failed_saves")
        return settings

    async def run(self, context: StageContext) -> None:
        refuse_locked(context.output)
        await self.prepare_launch(context)
        if not self._trained(context):  # a launcher's own ranks may have done it
            await self._train(context.output / "job.yaml", context)
        rows = metrics(context.output)
        last = rows[-1] if rows else {}
        context.metrics.update(
            steps=last.get("step"),
            loss=last.get("loss"),
            tokens=sum(row.get("tokens", 0) for row in rows),
            trained_tokens=sum(row.get("trained_tokens", 0) for row in rows),
            train_seconds=round(sum(row.get("seconds", 0.0) for row in rows), 1),
        )
        sources = (context.only("packs"), context.only("model"))
        inputs = {path.name: {"path": str(path), "digest": digest_tree(path)} for path in sources}
        Lineage("checkpoints", inputs, config=self.settings()).write(context.output)

    async def prepare_launch(self, context: StageContext) -> None:
        """Write ``job.yaml``, which ``torchrun -m nemo_openmath.training.worker`` takes too."""
        job = self._job(context)
        if any((context.output / "checkpoints").glob("step-*")):
            from nemo_openmath.training.base_model import refuse_used_output  # torch takes seconds to import

            refuse_used_output(context.output, context.only("model"), job.model_changes)
        elif (warning := warn_of_unseen_tags(context.only("model"), PackPlan(context.only("packs")))) is not None:
            context.progress.log(warning)  # here, for on a cluster nothing else of the stage runs before its ranks
        file = context.output / "job.yaml"
        write_json(file, orjson.loads(orjson.dumps(asdict(job), default=str)))  # JSON is YAML
        await asyncio.to_thread(prepare, job, file, self.config.processes, (), context.progress.log)

    def _trained(self, context: StageContext) -> bool:
        """Return whether the checkpoint of the last step is there already. Raises UserError for a batch of more samples
        than there are."""
        config = self.config
        data = PackedData.open(
            context.only("packs"),
            batch_samples=config.batch_samples,
            epochs=config.epochs,
            steps=config.steps,
            seed=context.seed,
            validation_share=config.validation_share,
        )
        check_batch(config.batch_samples, len(data.plan.entries), context.only("packs"))
        return step_folder(context.output / "checkpoints", data.num_steps).is_dir()

    def digest(self, output: Path) -> str:
        """Return the digest of the checkpoints' tensors: not of how long it took, nor of torch's index of files, which
        names this folder."""
        return digest_tree(output / "checkpoints", ignore=("manifest.json", ".metadata"))

    def _job(self, context: StageContext) -> TrainingJob:
        config = self.config
        validation = context.paths("validation")
        data = DataConfig(
            folder=context.only("packs").resolve(),
            batch_samples=config.batch_samples,
            epochs=config.epochs,
            steps=config.steps,
            seed=context.seed,
            validation=validation[0].resolve() if validation else None,
            validation_share=config.validation_share,
        )
        return TrainingJob(
            model=context.only("model").resolve(),
            data=data,
            output=context.output.resolve(),
            training=config.training,
            rope_theta=config.rope_theta,
            max_position_embeddings=config.max_position_embeddings,
        )

    async def _train(self, job: Path, context: StageContext) -> None:
        try:
            await launch_process(
                self.config.processes,
                job,
                threads=self.config.threads,
                on_line=lambda line: show(line, context.progress),
            )
        except LaunchFailed as error:
            log, hint = context.output / "training.log", ""
            with contextlib.suppress(OSError):  # the disk may be what is full
                log.write_text(error.stderr)
                hint = f" (all that it said: {log})" if "\n" in error.stderr else ""
            failure = OpenMathError(f"{context.name}: {error}{hint}")
            failure.exit_code = error.exit_code
            raise failure from None


def warn_of_unseen_tags(model: Path, plan: PackPlan) -> str | None:
    """Return a sentence where targets of the first packs are tags that the model never saw; None where there are
    none."""
    if not (model / "config.json").is_file():
        return None
    from nemo_openmath.checkpoints.token_rows import unseen  # torch takes seconds to import

    tokenizer = ChatTokenizer.load(model, chat=False)
    tags = {ids[0]: tag for tag in TAGS if len(ids := tokenizer.encode_text(tag, tags=True)) == 1}
    packs = map(plan.pack, range(min(_LOOKED_AT, plan.num_packs)))
    targets = {int(i) for pack in packs for i in np.unique(pack.labels[pack.loss_mask])}
    if not (counts := unseen(model, sorted(tags.keys() & targets))):
        return None
    return (
        f"the model never saw {', '.join(tags[i] for i in counts)} (their rows of the embedding are those of "
        f"{max(counts.values()):,} other tokens): a short training does not teach it to write them; "
        "checkpoints.token_rows gives them rows"
    )


def metrics(output: Path) -> Sequence[dict[str, float]]:
    """Return the rows of ``metrics.jsonl``: step, loss, grad_norm, lr, tokens, trained_tokens, seconds, ..."""
    path = output / "metrics.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
