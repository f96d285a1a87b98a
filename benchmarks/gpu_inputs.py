"""Packs and models from seeds alone, for gpu_sections.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nemo_openmath.core.build import Builder, Origin
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.training.config import TrainingConfig


def config(**settings: object) -> TrainingConfig:
    """Return a training's settings, as a file with these would give them."""
    return Builder(lambda _: Origin("benchmarks/gpu.py")).build(TrainingConfig, settings)


def random_packs(
    vocabulary: int, lengths: Sequence[Sequence[int]], seed: int, trained: float = 0.9, late: int = 0
) -> list[Pack]:
    """Return packs of samples of ``lengths``; a share ``trained`` of their tokens counts in the loss.

    ``late``: a defect on purpose, masks that are so many tokens late.
    """
    random, packs = np.random.default_rng(seed), []
    for number, of_pack in enumerate(lengths):
        cu = np.cumsum([0, *of_pack], dtype=np.int32)
        tokens = random.integers(0, vocabulary, cu[-1]).astype(np.int32)
        labels = np.roll(tokens, -1)
        labels[cu[1:] - 1] = 0
        loss_mask = random.random(cu[-1]) < trained
        loss_mask[cu[1:] - 1] = False  # a sample's last token has no next one
        names = tuple(f"step{seed}/pack{number}/sample{i}" for i in range(len(of_pack)))
        packs.append(Pack(tokens, labels, np.roll(loss_mask, late), cu, names))
    return packs


def long_tailed(capacity: int, seed: int) -> list[int]:
    """Return lengths of samples that fill a pack: log-normal with a median of 6,000 in 32,768, the last one cut."""
    random, rest, lengths = np.random.default_rng(seed), capacity, []
    while rest > 0:
        lengths.append(int(min(rest, max(8, 6000 * capacity / 32768 * np.exp(random.normal())))))
        rest -= lengths[-1]
    return lengths


@dataclass(frozen=True)
class RandomSource:
    """A :class:`PackSource` of random packs, others at each step."""

    vocabulary: int
    num_steps: int
    lengths: tuple[tuple[int, ...], ...] = ((37, 23, 5, 40), (90, 38), (3, 17, 7))
    trained: float = 0.9
    late: int = 0
    fingerprint: str = "random packs"

    @property
    def batch_samples(self) -> int:
        return sum(len(of_pack) for of_pack in self.lengths)

    @property
    def num_samples(self) -> int:
        return self.num_steps * self.batch_samples

    def batch(self, step: int) -> list[Pack]:
        """Return the packs of step number ``step`` (from 0)."""
        return random_packs(self.vocabulary, self.lengths, step, self.trained, self.late)


def random_model(folder: Path, shape: ModelConfig, std: float = 0.04) -> torch.nn.Module:
    """Write a Hugging Face folder with random weights that bf16 holds exactly, and return transformers' model (fp32).

    Norms and biases are far from 1 and 0, so that one in the wrong place shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = shape.to_hf("float32")
    kind = settings.pop("model_type")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            value = 0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise if "norm" in name else std * noise
            parameter.copy_(value.bfloat16())
    model.save_pretrained(folder)
    return model
