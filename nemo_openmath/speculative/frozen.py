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
    # a drafter is there as weights, their gradients and those of a guess, and two moments of Adam
    values, features = _sizes(describe(folder), settings)
    working = 4 * (5 * values + settings.batch_tokens * features) + _BLOCKS_BYTES
    base = load_model(folder, device, working=working)
    # a CPU multiplies fp32 faster than bf16, and engines that run on one do so too
    return base.float() if base.device.type == "cpu" else base


def _sizes(model: Any, settings: DrafterSettings) -> tuple[int, int]:
    """Return how many values a drafter has, and how many a step holds for each of its tokens."""
    hidden, rows = model.hidden_size, settings.draft_vocab or model.vocab_size
    if settings.form == "eagle3":
        # each unrolled step keeps queries, keys, values, states and what they were made from
        values = hidden * (rows + 3 * hidden + 3 * model.intermediate_size + 7 * hidden)
        return values, hidden * (8 + 14 * settings.draft_tokens) + 3 * model.intermediate_size
    # embeddings, hidden states, and a guess's features with their gradients
    width = 2 * hidden
    return width * (rows + settings.layers * width) + 2 * hidden**2, width * (4 + 6 * settings.layers)


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
def layer_states(base: Any, ids: Tensor, layers: Sequence[int]) -> Tensor:
    """Return the inputs of ``layers``, the first layer being 0, and behind them the last hidden states (rows, tokens,
    hidden for each), in fp32."""
    inputs: dict[int, Tensor] = {}

    def watch(number: int) -> Any:
        def hook(_: Any, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            inputs[number] = (arguments[0] if arguments else named["hidden_states"]).float()

        return base.model.layers[number].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(number) for number in layers]
    try:
        last = last_states(base, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([*(inputs[number] for number in layers), last], dim=-1)


def head_of(base: Any, draft_ids: Tensor | None) -> Tensor:
    """Return the rows (tokens, hidden) of the model's own head for the tokens ``draft_ids``; None: of all."""
    weight: Tensor = base.get_output_embeddings().weight
    return weight if draft_ids is None else weight[draft_ids.to(weight.device)]


@torch.no_grad()
def embed(base: Any, ids: Tensor) -> Tensor:
    """Return the model's embeddings (..., hidden) of tokens, in fp32."""
    return base.get_input_embeddings()(ids).float()
