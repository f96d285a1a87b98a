"""Models and data that both the ranks under test and the reference in the test process build, from seeds alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.models.configs import ModelConfig, preset

TINY = preset("tiny")
SHAPES: dict[str, ModelConfig] = {
    "tied": TINY,
    "untied": TINY.with_changes(tie_word_embeddings=False),
    "qwen3": TINY.with_changes(model_type="qwen3", head_dim=16),
}
# Sample lengths of each pack: uneven packs, a sample over half its pack, a pack full to the last token (128).
LENGTHS = ((37, 23, 5, 40), (90, 38), (3, 17, 7))
BATCH_SAMPLES = sum(len(lengths) for lengths in LENGTHS)


def write_model(folder: Path, name: str) -> Path:
    """A Hugging Face folder with random weights; biases and norms far from 0 and 1, so that a mapping error shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES[name]
    config = AutoConfig.for_model(
        shape.model_type, **{k: v for k, v in shape.to_hf("float32").items() if k != "model_type"}
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if key.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "norm" in key:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.06 * noise)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class RandomPacks:
    """Random tokens in packs of ``LENGTHS``, others at each step. One sample trains one token."""

    num_steps: int
    seed: int = 0
    fingerprint: str = "random-packs"
    batch_samples: int = BATCH_SAMPLES
    shift_masks: int = 0  # a defect on purpose: masks are this many tokens late

    @cached_property
    def num_samples(self) -> int:
        return self.num_steps * BATCH_SAMPLES

    def batch(self, step: int) -> list[Pack]:
        random = np.random.default_rng([self.seed, step])
        packs = []
        for number, lengths in enumerate(LENGTHS):
            cu = np.cumsum([0, *lengths]).astype(np.int32)
            tokens = random.integers(0, TINY.vocab_size, cu[-1]).astype(np.int32)
            labels = np.concatenate([np.append(tokens[a + 1 : b], 0) for a, b in pairwise(cu)])
            loss_mask = random.random(cu[-1]) < (0.3, 0.9, 0.9)[number]
            loss_mask[cu[1:] - 1] = False  # a sample's last token has no next one
            if number == 2:
                loss_mask[cu[1] :] = False
                loss_mask[cu[1] + 4] = True
            loss_mask = np.roll(loss_mask, self.shift_masks)
            names = tuple(f"step{step}/pack{number}/sample{i}" for i in range(len(lengths)))
            packs.append(Pack(tokens, labels.astype(np.int32), loss_mask, cu, names))
        return packs
