"""The frozen model that a drafter is trained for: where it runs, and what it says of texts.

Its hidden states are made when a step wants them. They are kept for later epochs and measurements as far as a bound
goes; beyond it they are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_openmath.checkpoints.quantize.calibration import load_model
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.models.hf_config import describe
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.texts import Text

_BLOCKS_BYTES = 4 << 30  # of a GPU, for blocks of logits


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts side by side, padded at their right: causal attention never sees that."""

    ids: Tensor  # (rows, tokens)
    loss_mask: Tensor  # (rows, tokens)

    @classmethod
    def of(cls, texts: Sequence[Text], device: torch.device) -> Batch:
        ids = pad_sequence([torch.from_numpy(text.ids).long() for text in texts], batch_first=True)
        loss_mask = pad_sequence([torch.from_numpy(text.loss_mask) for text in texts], batch_first=True)
        return cls(ids.to(device), loss_mask.to(device))


@dataclass(slots=True)
class KeptStates:
    """Hidden states by the key of what they are of, at most ``limit`` bytes of them. What came first is kept: each is
    wanted once an epoch, so that none is worth more than another."""

    limit: int
    states: dict[Hashable, Tensor] = field(default_factory=dict)
    size: int = 0

    def get(self, key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Return the states ``key``, made by ``make`` where they are not kept."""
        if (kept := self.states.get(key)) is not None:
            return kept.to(device)
        made = make()
        if self.size + made.nbytes <= self.limit:
            self.states[key] = made.cpu()
            self.size += made.nbytes
        return made


def load_base(folder: Path, settings: DrafterSettings, device: DeviceChoice = "auto") -> Any:
    """Return the model to draft for, frozen: a transformers causal language model on ``device``; ``auto`` is the GPU
    where there is one with room for the model and the training of a drafter."""
    model = describe(folder)
    width = 2 * model.hidden_size
    rows = settings.draft_vocab or model.vocab_size
    drafter = 4 * (width * (rows + settings.layers * width) + 2 * model.hidden_size**2)
    # a drafter is there as weights, their gradients and those of a guess, and two moments of Adam; for each token of a
    # step there are embeddings, hidden states, and a guess's features with their gradients
    features = 4 * settings.batch_tokens * width * (4 + 6 * settings.layers)
    base = load_model(folder, device, working=5 * drafter + features + _BLOCKS_BYTES)
    # a CPU multiplies fp32 faster than bf16, and engines that run on one do so too
    return base.float() if base.device.type == "cpu" else base


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices in TF32 within the block where ``device`` is a GPU.

    Inputs of a product have 10 bits then, sums 23, and a step takes a small part of the time. On a CPU nothing changes.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def last_states(base: Any, ids: Tensor) -> Tensor:
    """Return the last hidden states (rows, tokens, hidden) of the frozen model, in fp32."""
    return base.model(input_ids=ids, use_cache=False).last_hidden_state.float()


@torch.no_grad()
def embed(base: Any, ids: Tensor) -> Tensor:
    """Return the model's embeddings (..., hidden) of tokens, in fp32."""
    return base.get_input_embeddings()(ids).float()
