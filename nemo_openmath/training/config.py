"""What a training job says: where model and data are, how to optimise, how to spread over processes, what to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
from nemo_openmath.models.layout import Parallel


@dataclass(frozen=True)
class Checkpoints:
    """Which steps are saved, and which saved ones stay.

    The last step is always saved and kept, and so are the ``average_k`` equally spaced ones, ``steps`` and ``epochs``
    (arXiv 2504.16891, section 5.1: the average of 4 equally spaced checkpoints; figure 4: 0.75, 1.5, 3, 6 epochs).
    """

    every: NonNegativeInt = 0  # steps between saves for resuming; 0: none
    keep_last: NonNegativeInt = 2  # of those, how many stay; 0: all
    average_k: NonNegativeInt = 0  # save k equally spaced steps, the last step among them
    steps: tuple[PositiveInt, ...] = ()
    epochs: tuple[PositiveFloat, ...] = ()  # may be fractions of an epoch
    asynchronous: bool | None = None  # write from a copy in host memory while training goes on; None: on GPU

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
        """Checkpoints that lie there at the end, at least."""
        return max(1, self.average_k, len(self.steps), len(self.epochs))

    def unreached(self, num_steps: int, steps_per_epoch: float) -> list[str]:
        """Which of ``steps`` and ``epochs`` lie behind the end of the training: nothing is saved for them."""
        late = [f"step {step}" for step in self.steps if step > num_steps]
        return late + [f"epoch {epoch:g}" for epoch in self.epochs if round(epoch * steps_per_epoch) > num_steps]

    def lasting(self, num_steps: int, steps_per_epoch: float) -> tuple[int, ...]:
        """Steps (counted after the update, 1..num_steps) whose checkpoints are never removed."""
        spaced = {round(num_steps * i / self.average_k) for i in range(1, self.average_k + 1)}
        at_epochs = {round(epoch * steps_per_epoch) for epoch in self.epochs}
        chosen = {num_steps, *spaced, *self.steps, *at_epochs}
        return tuple(sorted(step for step in chosen if 1 <= step <= num_steps))


@dataclass(frozen=True)
class Guard:
    """Stops a training that goes wrong, naming the samples of the batch. NaN always stops it."""

    spike_factor: NonNegativeFloat = 0.0  # stop when the loss exceeds this many times its running mean; 0: off
    window: PositiveInt = 50  # steps of the running mean

    def __post_init__(self) -> None:
        if not 0 <= self.spike_factor < math.inf:
            raise UserError(f"guard.spike_factor = {self.spike_factor}", remedy="choose 0 (off) or a factor above 1")
        if self.window < 1:
            raise UserError(f"guard.window = {self.window}", remedy="choose 1 or more")


@dataclass(frozen=True)
class Validation:
    """Loss on held-out samples: those of the job's ``data.validation``, or its ``data.validation_share``."""

    every: NonNegativeInt = 0  # steps; 0: only when the training ends

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"validation.every = {self.every}", remedy="choose 0 or more")


@dataclass(frozen=True)
class Profile:
    """Traces of chosen steps by torch.profiler (training/profile.py): ``step-00000010-rank-0.json.gz`` and a table.

    A traced step takes longer, and its line in metrics.jsonl says so.
    """

    steps: tuple[PositiveInt, ...] = ()  # counted from 1, as in metrics.jsonl
    folder: Path | None = None  # None: OUTPUT/profile
    ranks: tuple[NonNegativeInt, ...] = (0,)  # (): all

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("ranks", 0)):
            wrong = [number for number in getattr(self, name) if number < lowest]
            if wrong:
                raise UserError(f"profile.{name} holds {wrong[0]}", remedy=f"choose {lowest} or more")


@dataclass(frozen=True)
class TrainingConfig:
    """One SFT run. Learning rate, decay and schedule defaults are the recipe's (arXiv 2504.16891, section 5.1)."""

    lr: PositiveFloat = 1e-4  # the highest learning rate
    final_lr_ratio: Share = 1e-3  # the last step's learning rate over ``lr``
    schedule: Literal["cosine", "constant"] = "cosine"  # constant: the TIR stages
    warmup: Share = 0.1  # share of all steps, linear (constant schedules warm up too; 0: none)
    weight_decay: NonNegativeFloat = 0.01  # not on norms and biases
    decay_norms_and_biases: bool = False  # weight decay on these, too
    beta1: ShareBelowOne = 0.9  # of AdamW, like the next two
    beta2: ShareBelowOne = 0.95  # not stated in the paper
    epsilon: PositiveFloat = 1e-8  # of AdamW
    clip: NonNegativeFloat = 1.0  # of the global gradient norm; 0: none
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: fp32 main weights and fp32 gradient sums
    parallel: Parallel = field(default_factory=Parallel)
    distributed_optimizer: bool = False  # split optimizer state over data- and context-parallel ranks
    recompute: Literal["none", "selective", "full"] = "none"  # activations that are made again: less memory, more time
    backend: Literal["auto", "local", "transformer_engine"] = "auto"  # of the layers; auto: by the device
    seed: AnyInt = 0
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    guard: Guard = field(default_factory=Guard)
    validation: Validation = field(default_factory=Validation)
    profile: Profile = field(default_factory=Profile)
    log_every: PositiveInt = 1  # steps between lines on console, TensorBoard and wandb; metrics.jsonl has every step
    tensorboard: bool = False  # also write TensorBoard files
    wandb_project: str | None = None  # also log there

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
        if self.log_every < 1:
            raise UserError(f"training.log_every = {self.log_every}", remedy="choose it 1 or more")


@dataclass(frozen=True)
class DataConfig:
    """A packed folder (written by the SFT data stage) and how much of it to train on."""

    folder: Path
    batch_samples: PositiveInt = 1024  # samples of the global batch, at every layout
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None  # instead of epochs
    seed: AnyInt = 0  # of the order of packs, and of which samples are held out
    validation: Path | None = None  # another packed folder
    # Instead: this share of the folder's samples is held out, chosen by their ids and the seed alone
    # (sft/held_out.py): the same at every layout, and never trained on.
    validation_share: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        check_share(self.validation_share)
        if self.validation is not None and self.validation_share:
            raise UserError(
                "data.validation and data.validation_share are both given", remedy="leave out one of the two"
            )


@dataclass(frozen=True)
class TrainingJob:
    """A training job's file (JSON or YAML)."""

    model: Path  # Hugging Face folder, or a checkpoint folder (step-*) of another training
    data: DataConfig
    output: Path
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rope_theta: PositiveFloat | None = None  # changes the base model's: 500000 for the Math bases (section 5.1)
    max_position_embeddings: PositiveInt | None = None  # likewise: 131072
