"""The settings of a training job: where model and data are, how to optimise, how to spread over processes, what to
keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.checkpoints.formats.step_folders import spaced_steps
from nemo_openmath.core.bounds import (
    AnyInt,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    ShareBelowOne,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.held_out import check_share
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.models.layout import ContextExchange, LayerBackend, Parallel, Precision, Recompute


@dataclass(frozen=True)
class Checkpoints:
    """Which steps are saved, and which of the saved ones stay. The last step always is, and does."""

    every: NonNegativeInt = 0
    """Steps between saves for resuming; 0: none."""
    keep_last: NonNegativeInt = 2
    """How many of the saves for resuming stay; 0: all."""
    average_k: NonNegativeInt = 0
    """Save and keep this many equally spaced steps, the last step among them, to average them. Paper section 5.1: 4."""
    steps: tuple[PositiveInt, ...] = ()
    """Steps that are saved and kept."""
    epochs: tuple[PositiveFloat, ...] = ()
    """Epochs, or fractions of one, that are saved and kept. Paper figure 4: 0.75, 1.5, 3, 6."""
    asynchronous: bool | None = None
    """Write from a copy in host memory while the training goes on; null: on a GPU."""
    failed_saves: PositiveInt = 3
    """So many failed attempts to save in a row (a full disk, a quota, an I/O error) end the training, with exit code
    77. After fewer it goes on; a step that is kept, the last one, and one at which it was asked to stop, are tried
    again at once."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last", "average_k"):
            if getattr(self, name) < 0:
                raise UserError(f"checkpoints.{name} = {getattr(self, name)}", remedy="choose 0 or more")
        for name in ("steps", "epochs"):
            for value in getattr(self, name):
                if not 0 < value < math.inf:
                    raise UserError(f"checkpoints.{name} holds {value}", remedy="choose numbers above 0")

    @property
    def least_kept(self) -> int:
        """Return how many checkpoints lie there at the end, at least."""
        return max(1, self.average_k, len(self.steps), len(self.epochs))

    def unreached(self, num_steps: int, steps_per_epoch: float) -> list[str]:
        """Return which of ``steps`` and ``epochs`` lie behind the end of the training: nothing is saved for them."""
        late = [f"step {step}" for step in self.steps if step > num_steps]
        return late + [f"epoch {epoch:g}" for epoch in self.epochs if round(epoch * steps_per_epoch) > num_steps]

    def lasting(self, num_steps: int, steps_per_epoch: float) -> tuple[int, ...]:
        """Return the steps (counted after the update, 1..num_steps) whose checkpoints are never removed."""
        spaced = spaced_steps(num_steps, self.average_k)
        at_epochs = {round(epoch * steps_per_epoch) for epoch in self.epochs}
        chosen = {num_steps, *spaced, *self.steps, *at_epochs}
        return tuple(sorted(step for step in chosen if 1 <= step <= num_steps))


@dataclass(frozen=True)
class Guard:
    """Stops a training that goes wrong, before the weights change, and names the samples of the batch. A loss or
    gradient that is not finite always stops it."""

    spike_factor: NonNegativeFloat = 0.0
    """Stop when the loss exceeds this many times its running mean; 0: off."""
    window: PositiveInt = 50
    """Steps of the running mean."""

    def __post_init__(self) -> None:
        if not 0 <= self.spike_factor < math.inf:
            raise UserError(f"guard.spike_factor = {self.spike_factor}", remedy="choose 0 (off) or a factor above 1")
        if self.window < 1:
            raise UserError(f"guard.window = {self.window}", remedy="choose 1 or more")


@dataclass(frozen=True)
class Validation:
    """When the loss on held-out samples is computed: those of ``data.validation``, or of ``data.validation_share``."""

    every: NonNegativeInt = 0
    """Steps between validations; 0: only when the training ends."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"validation.every = {self.every}", remedy="choose 0 or more")


@dataclass(frozen=True)
class Profile:
    """Traces of chosen steps by torch.profiler: ``step-00000010-rank-0.json.gz`` and a table. A traced step takes
    longer, and its line in metrics.jsonl says so."""

    steps: tuple[PositiveInt, ...] = ()
    """Steps that are traced, counted from 1 as in metrics.jsonl."""
    folder: Path | None = None
    """Where the traces go; null: OUTPUT/profile."""
    ranks: tuple[NonNegativeInt, ...] = (0,)
    """Ranks that are traced; []: all."""

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("ranks", 0)):
            wrong = [number for number in getattr(self, name) if number < lowest]
            if wrong:
                raise UserError(f"profile.{name} holds {wrong[0]}", remedy=f"choose {lowest} or more")


@dataclass(frozen=True)
class TrainingConfig:
    """How to optimise, how to spread over processes, what to save and to show."""

    lr: PositiveFloat = 1e-4
    """Highest learning rate. Paper section 5.1: 3e-4, 2e-4, 1e-4, 1e-4 for 1.5B, 7B, 14B, 32B."""
    final_lr_ratio: Share = 1e-3
    """Learning rate of the last step over ``lr``. Paper section 5.1."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine (paper section 5.1), or constant (the TIR trainings, sections 3.3
    and 6)."""
    warmup: Share = 0.1
    """Share of all steps in which the learning rate rises linearly, with either schedule; 0: none. Paper section
    5.1."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW. Paper section 5.1."""
    decay_norms_and_biases: bool = False
    """Apply the weight decay to norms and biases, too."""
    beta1: ShareBelowOne = 0.9
    """AdamW's decay of the gradient's running mean."""
    beta2: ShareBelowOne = 0.95
    """AdamW's decay of the squared gradient's running mean. The paper does not state it."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's summand of the denominator."""
    clip: NonNegativeFloat = 1.0
    """Global gradient norm to which larger gradients are scaled down; 0: none."""
    precision: Precision = "fp32"
    """Numbers of weights and activations. With bf16, main weights and gradient sums stay fp32."""
    parallel: Parallel = field(default_factory=Parallel)
    """How the model is spread over ranks; what is left of them is data parallel."""
    context_exchange: ContextExchange = "auto"
    """How context-parallel ranks bring keys and values to one another: all_gather (every rank holds those of the whole
    pack), or ring (those of one rank at a time come by; less memory, more messages). auto: all_gather where it leaves a
    tenth of the GPU's memory free by the estimate of ``openmath plan``, else ring. Losses are the same."""
    distributed_optimizer: bool = False
    """Split the optimizer state over data- and context-parallel ranks."""
    recompute: Recompute = "none"
    """Activations that are computed again in the backward pass, for less memory and more time: none, those of the
    attention (selective), or all but each layer's input (full)."""
    backend: LayerBackend = "auto"
    """Whose layers compute: ours (local) or TransformerEngine's; auto: TransformerEngine's in bf16 on a GPU where it is
    installed."""
    device: DeviceChoice = "auto"
    """Where ranks compute. cuda: each on a GPU of its own. auto: so where there are as many GPUs as ranks, else all on
    the CPU; never on the CPU where Slurm gave the job GPUs."""
    deterministic: bool = False
    """The same ranks on the same GPUs compute the same bits again, by slower kernels. On a CPU they do anyway."""
    seed: AnyInt = 0
    """Seed of every random generator of the ranks."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Which steps are saved."""
    guard: Guard = field(default_factory=Guard)
    """When the training stops because it goes wrong."""
    validation: Validation = field(default_factory=Validation)
    """When the loss on held-out samples is computed."""
    certify: bool = False
    """Make a loss certificate before the first step, and hold the first step's loss against it before the weights
    change: a training whose loss is that of a known fault, or of none, stops and names it. It costs one process some
    ten passes over a batch."""
    hang_seconds: PositiveFloat | None = None
    """Seconds after which a phase of a step (reading, forward and backward, gradients, optimizer, a batch of the
    validation) counts as hung: every rank writes its stacks, and the training ends with exit code 76. Never less than
    two steps take. The first step has four times as long; so have loading and saving, and 15 minutes at least. null:
    half an hour, or ten times the slowest step so far."""
    profile: Profile = field(default_factory=Profile)
    """Which steps are traced."""
    log_every: PositiveInt = 1
    """Steps between lines on console, TensorBoard and wandb; metrics.jsonl has every step."""
    tensorboard: bool = False
    """Write TensorBoard files, too."""
    wandb_project: str | None = None
    """Log to this project of wandb, too."""

    def __post_init__(self) -> None:
        for name in ("warmup", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name} = {getattr(self, name)}", remedy="choose it from 0 to 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"training.{name} = {getattr(self, name)}", remedy="choose it from 0 to below 1")
        for name in ("lr", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"training.{name} = {getattr(self, name)}", remedy="choose it above 0")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"training.{name} = {getattr(self, name)}", remedy="choose it 0 or more")
        if self.backend == "transformer_engine" and self.precision == "fp32":
            raise UserError(
                "training.backend = transformer_engine multiplies in TF32 where training.precision = fp32",
                remedy="set training.precision to bf16, or training.backend to local",
            )
        if self.backend == "transformer_engine" and self.device == "cpu":
            raise UserError(
                "training.backend = transformer_engine computes on GPUs alone, and training.device = cpu",
                remedy="set training.backend to local, or training.device to cuda",
            )
        if self.log_every < 1:
            raise UserError(f"training.log_every = {self.log_every}", remedy="choose it 1 or more")


@dataclass(frozen=True)
class DataConfig:
    """A packed folder, as stage ``sft.pack`` writes it, and how much of it to train on."""

    folder: Path
    """Packed folder."""
    batch_samples: PositiveInt = 1024
    """Samples of the global batch, at every layout. Paper section 5.1."""
    epochs: PositiveFloat | None = None
    """Length of the training in epochs; or give ``steps``."""
    steps: PositiveInt | None = None
    """Length of the training in steps, instead of ``epochs``."""
    seed: AnyInt = 0
    """Seed of the packs' order, and of which samples are held out."""
    validation: Path | None = None
    """Another packed folder, on which the validation loss is computed."""
    validation_share: ShareBelowOne = 0.0
    """Share of the folder's samples that is held out for the validation loss instead, and never trained on. Ids and
    seed alone choose it, so it is the same at every layout."""

    def __post_init__(self) -> None:
        check_share(self.validation_share)
        if self.validation is not None and self.validation_share:
            raise UserError(
                "data.validation and data.validation_share are both given", remedy="leave out one of the two"
            )


@dataclass(frozen=True)
class TrainingJob:
    """A training job's file (YAML or JSON)."""

    model: Path
    """Model to start from: a Hugging Face folder, or a checkpoint (``step-*``) of another training."""
    data: DataConfig
    """What to train on."""
    output: Path
    """Folder of checkpoints, metrics and the trained model's files."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary embedding, in place of the model's. Paper section 5.1: 500000 for the Math bases."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence in tokens, in place of the model's. The reference's edit for the Math bases is
    131072; the paper gives none."""

    @property
    def model_changes(self) -> dict[str, Any]:
        """Return the fields of the model's configuration that the job changes."""
        names = ("rope_theta", "max_position_embeddings")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
