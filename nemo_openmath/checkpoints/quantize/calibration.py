"""What quantization must know of the activations: the model is run (by transformers) over calibration texts.

It runs on the GPU where there is one with room: a model of 14B or 32B parameters takes hours on a CPU.

For every linear layer of the decoder: the largest magnitude of its input, the mean magnitude of each of its input's
channels, and a few rows of the input (evenly over the texts) to measure an error with. For the cache: the largest
magnitude of keys, after RoPE as they are cached, and of values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.devices import DeviceChoice, run_device, use_steady_attention

LINEAR = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.)(q|k|v|o|gate|up|down)_proj\.weight")
_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_WORKING_BYTES = 2 << 30  # of a GPU, for the activations of a text of some thousand tokens
_ROWS = 256  # rows of each layer's input that are kept
_ATTENTION = "openmath_watched"


def group_of(name: str) -> str:
    """Return one name for the layers that have one input, and that engines fuse into one matrix."""
    match = LINEAR.fullmatch(name)
    assert match is not None
    return match[1] + _FUSED.get(match[2], match[2])


@dataclass
class Calibration:
    """``largest``: group -> largest input; ``mean``: group -> [in]; ``rows``: group -> [n, in]; ``cache``:
    ``model.layers.N.self_attn.k`` or ``.v`` -> largest element. fp32."""

    largest: dict[str, float] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, float] = field(default_factory=dict)


def load_model(folder: Path, device: DeviceChoice = "cpu", *, working: int = _WORKING_BYTES) -> Any:
    """Load transformers' model of a Hugging Face folder, in its own dtype, frozen.

    ``device``: where it runs; ``auto`` is the GPU where there is one with room for the weights and ``working`` bytes.
    Raises UserError where transformers loads none, and where the device cannot be used.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    tensors = open_checkpoint(folder).tensors  # refuses what transformers would compute in another way, or not at all
    weights = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    place = run_device(device, weights + working, f"running {folder}")
    use_steady_attention(place)
    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        problem = f"transformers cannot load this model ({' '.join(str(error).split())[:200]})"
        raise UserError(problem, file=folder, remedy="give a Hugging Face model folder") from error
    return model.eval().requires_grad_(False).to(place)


def token_ids(folder: Path, texts: Sequence[str], max_tokens: int) -> list[Tensor]:
    """Return texts as [1, n] token ids, each cut to ``max_tokens``. Raises UserError without a tokenizer, or tokens."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError("missing; calibration needs it", file=file, remedy="copy it from the model this one came from")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"not a tokenizer ({error})", file=file, remedy="copy it again") from None
    encoded = [tokenizer.encode(text).ids[:max_tokens] for text in texts]
    sequences = [torch.tensor([ids]) for ids in encoded if ids]
    if not sequences:
        raise UserError("the calibration texts hold no token", file=folder, remedy="give texts with words")
    return sequences


@contextmanager
def attention_through(model: Any, change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Pass keys (after RoPE) and values of every layer through ``change(layer, key, value)``, inside the block.

    Both have the shape [batch, kv heads, tokens, head size].
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        key, value = change(module.layer_idx, key, value)
        return sdpa_attention_forward(module, query, key, value, *rest, **options)

    AttentionInterface.register(_ATTENTION, attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before


@torch.no_grad()
def calibrate(folder: Path, texts: Sequence[str], max_tokens: int, device: DeviceChoice = "auto") -> Calibration:
    """Run the model over ``texts`` on ``device``; what is measured lies on the CPU. Raises UserError where they give
    nothing to measure."""
    ids, model = token_ids(folder, texts, max_tokens), load_model(folder, device)
    measured, counts = Calibration(), dict[str, int]()
    per_text = -(-_ROWS // len(ids))

    def watch(name: str) -> Any:
        group = group_of(name)

        def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().flatten(0, -2).float()
            measured.largest[group] = max(measured.largest.get(group, 0.0), float(x.abs().amax()))
            measured.mean[group] = measured.mean.get(group, torch.zeros(x.shape[1])) + x.abs().sum(0).cpu()
            counts[group] = counts.get(group, 0) + x.shape[0]
            rows = measured.rows.get(group, x[:0].cpu())
            chosen = x[:: max(1, x.shape[0] // per_text)][: min(per_text, _ROWS - len(rows))]
            measured.rows[group] = torch.cat([rows, chosen.cpu()])

        return hook

    def largest(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        for letter, tensor in (("k", key), ("v", value)):
            name = f"model.layers.{layer}.self_attn.{letter}"
            measured.cache[name] = max(measured.cache.get(name, 0.0), float(tensor.abs().amax()))
        return key, value

    seen: set[str] = set()
    for name, module in model.named_modules():
        if LINEAR.fullmatch(f"{name}.weight") and group_of(f"{name}.weight") not in seen:
            seen.add(group_of(f"{name}.weight"))
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    with attention_through(model, largest):
        for sequence in ids:
            model.model(sequence.to(model.device))
    values = [*measured.largest.values(), *measured.cache.values()]
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        remedy = "give other texts, or check the model: inspect names NaN and zeros"
        raise UserError("the calibration texts gave no finite activations", file=folder, remedy=remedy)
    measured.mean = {group: total / counts[group] for group, total in measured.mean.items()}
    return measured
