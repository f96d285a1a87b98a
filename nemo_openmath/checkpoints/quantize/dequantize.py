"""Reading quantized exports back: the weights they stand for, and how far the model moved.

Written from the formats' descriptions, apart from the code that writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import lineage, open_checkpoint
from nemo_openmath.checkpoints.formats.safetensors import write_folder
from nemo_openmath.checkpoints.lazy import Elementwise, LazyTensor
from nemo_openmath.checkpoints.model_files import write_model_files
from nemo_openmath.checkpoints.output import building
from nemo_openmath.checkpoints.quantize import calibration
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.devices import DeviceChoice

_E4M3 = torch.float8_e4m3fn


def dequantized(folder: str | Path) -> dict[str, LazyTensor]:
    """Return the weights that a quantized folder stands for, in fp32, without the scales.

    ``pre_quant_scale`` is multiplied in. Raises UserError where a payload lacks its scale.
    """
    stored = open_checkpoint(folder, strict=False).tensors
    plain: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        weight = name.removesuffix("_packed")
        if name.endswith(("_scale", "_shape")):
            continue
        if name == weight and tensor.dtype not in (torch.int8, torch.uint8, _E4M3):
            plain[name] = Elementwise((tensor,), lambda parts: parts[0].float(), torch.float32)
            continue
        if f"{weight}_scale" not in stored:
            raise UserError(f"{name} has no {weight}_scale", file=folder, remedy="export it again")
        multiplied = stored.get(weight.removesuffix("weight") + "pre_quant_scale")
        before = None if multiplied is None else multiplied.full().float()
        shape = stored.get(f"{weight}_shape")
        size = None if shape is None else (int(shape.full()[0]), int(shape.full()[1]))
        plain[weight] = _Weight(tensor, stored[f"{weight}_scale"].full().float(), before, size)
    return plain


class _Weight(LazyTensor):
    """Payload times scale: one, one a row, or one for each group of a row."""

    dtype = torch.float32

    def __init__(self, payload: LazyTensor, scale: Tensor, before: Tensor | None, size: tuple[int, int] | None):
        self.payload, self.scale, self.before = payload, scale, before
        self.two_rows = payload.dtype == torch.uint8
        self.shape = size or (payload.shape[0] * (2 if self.two_rows else 1), payload.shape[1])

    def read(self, start: int, stop: int) -> Tensor:
        first, end = start // self.row, -(-stop // self.row)
        if self.two_rows:
            first, end = first // 2 * 2, -(-end // 2) * 2
        values, scale = self._values(first, end), self.scale
        if scale.numel() > 1:
            scale = scale.view(self.shape[0], -1)[first:end]
            scale = scale.repeat_interleave(self.row // scale.shape[1], 1)
        values = values * scale
        if self.before is not None:
            values = values * self.before
        return values.view(-1)[start - first * self.row : stop - first * self.row]

    def _values(self, first: int, end: int) -> Tensor:
        if self.two_rows:
            payload = self.payload.rows(first // 2, end // 2).full().int()
            both = torch.stack([payload & 15, payload >> 4], 1).flatten(0, 1)
            return (both - 16 * (both > 7)).float()
        payload = self.payload.rows(first, end).full()
        if payload.dtype != torch.int32:
            return payload.float()
        bits = 32 * payload.shape[1] // self.row
        parts = payload[:, :, None] >> torch.arange(0, 32, bits, dtype=torch.int32) & (1 << bits) - 1
        return parts.flatten(1)[:, : self.row].float() - (1 << bits - 1)


def write_dequantized(src: str | Path, dst: str | Path, *, into_existing: bool = False) -> Path:
    """Write the weights that a quantized folder stands for as a plain Hugging Face folder, in its own dtype.

    That is what an engine without the kernels evaluates. Inputs and cache, which fp8 rounds too, are not rounded there.
    """
    source = open_checkpoint(src, strict=False)
    config = dict(source.config)
    if config.pop("quantization_config", None) is None:
        raise UserError("is not quantized", file=src, remedy="use it as it is")
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
    with building(Path(dst), into_existing=into_existing) as folder:
        write_model_files(source.model_files, folder, config)
        write_folder(folder, {name: tensor.to(dtype) for name, tensor in dequantized(src).items()})
        lineage("checkpoints.dequantize", {"source": source}).write(folder)
    return Path(dst)


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """A quantized export against its source over ``tokens`` tokens. ``error``: |logits - source's| / |source's|;
    ``agree``: share of tokens with the same most likely successor; ``kl``: mean KL(source || export), nats."""

    tokens: int
    error: float
    agree: float
    kl: float

    def line(self) -> str:
        return (
            f"against the source, {self.tokens} tokens: logits differ by {self.error:.2%}, "
            f"the most likely token agrees in {self.agree:.1%}, KL {self.kl:.2g} nats"
        )


@torch.no_grad()
def check_export(
    folder: str | Path,
    source: str | Path,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    device: DeviceChoice = "auto",
) -> ExportCheck:
    """Run the source and the model that ``folder`` stands for (weights, and with fp8 inputs and cache, rounded as an
    engine rounds them) over ``texts``, on ``device``."""
    folder, source = Path(folder), Path(source)
    ids = calibration.token_ids(source, texts, max_tokens)
    model = calibration.load_model(source, device)
    expected = [model(sequence.to(model.device)).logits.float().cpu() for sequence in ids]
    del model
    model = quantized_model(folder, source, device)
    gap = size = kl = 0.0
    agree = tokens = 0
    for sequence, reference in zip(ids, expected, strict=True):
        logits = run_quantized(model, folder, sequence).float().cpu()
        gap += float((logits - reference).square().sum(dtype=torch.float64))
        size += float(reference.square().sum(dtype=torch.float64))
        p, q = reference.log_softmax(-1), logits.log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        agree += int((logits.argmax(-1) == reference.argmax(-1)).sum())
        tokens += sequence.numel()
    return ExportCheck(tokens, (gap / size) ** 0.5, agree / tokens, kl / tokens)


def quantized_model(folder: Path, source: Path, device: DeviceChoice = "cpu") -> Any:
    """Load transformers' model with the export's weights; linear layers round their inputs where the export says."""
    model = calibration.load_model(source, device)
    plain, parameters = dequantized(folder), dict(model.named_parameters())
    for name, tensor in plain.items():
        if name in parameters:
            parameters[name].copy_(tensor.full())
    stored = open_checkpoint(folder, strict=False).tensors
    for name, module in model.named_modules():
        if f"{name}.input_scale" in stored:
            module.register_forward_pre_hook(_rounding(stored[f"{name}.input_scale"].full().to(model.device)))
    return model


def run_quantized(model: Any, folder: Path, sequence: Tensor) -> Tensor:
    """Compute the logits of :func:`quantized_model`, its cache rounded where the export says."""
    stored = open_checkpoint(folder, strict=False).tensors
    sequence = sequence.to(model.device)
    scales = {
        name: tensor.full().to(model.device) for name, tensor in stored.items() if name.endswith(("k_scale", "v_scale"))
    }

    def change(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        prefix = f"model.layers.{layer}.self_attn."
        return fake_e4m3(key, scales[f"{prefix}k_proj.k_scale"]), fake_e4m3(value, scales[f"{prefix}v_proj.v_scale"])

    if not scales:
        return model(sequence).logits
    with calibration.attention_through(model, change):
        return model(sequence).logits


def fake_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return ``x`` rounded to e4m3 with ``scale`` and back, in its dtype; what is too large saturates."""
    return ((x.float() / scale).clamp_(-448, 448).to(_E4M3).float() * scale).to(x.dtype)


def _rounding(scale: Tensor) -> Any:
    return lambda _, arguments: (fake_e4m3(arguments[0], scale), *arguments[1:])
