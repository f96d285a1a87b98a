"""Quantized Hugging Face export, in the form NVIDIA's ModelOpt writes and TensorRT-LLM's PyTorch backend loads.

For every linear layer of the decoder (embedding, norms and lm_head stay):

    int8   W8A16, weights alone: int8 [out, in], ``weight_scale`` fp32 [out] = largest magnitude of the row / 127
    fp8    weights and activations: e4m3 [out, in], ``weight_scale`` and ``input_scale`` fp32 scalars = largest / 448

Engines run q, k, v as one matrix, and gate and up as another, with one scale each: in fp8 these share theirs. Weights
are streamed; the inputs' largest magnitudes come from running the model (transformers) on calibration texts.
``config.json`` gets a ``quantization_config``, so that a loader that does not know the format stops instead of
computing with unscaled weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import Checkpoint, lineage, open_checkpoint
from nemo_openmath.checkpoints.folders import building, changed_config, copy_model_files, main_dtype
from nemo_openmath.checkpoints.lazy import PIECE, Held, LazyTensor, rows
from nemo_openmath.checkpoints.safetensors_files import write_folder
from nemo_openmath.errors import UserError

QuantizedFormat = Literal["fp8", "int8"]
QUANT_CONFIG = "hf_quant_config.json"
E4M3 = torch.float8_e4m3fn
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_ALGORITHM = {"fp8": "FP8", "int8": "W8A16"}
_LINEAR = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.)(q|k|v|o|gate|up|down)_proj\.weight")
_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    format: QuantizedFormat,
    calibration: Sequence[str] | None = None,
    max_tokens: int = 2048,
) -> Path:
    """Hugging Face folder -> quantized Hugging Face folder ``dst``. Memory: bounded for int8, the model for fp8.

    ``calibration``: texts of the kind the model will see (prompts with solutions), for fp8; each is cut to
    ``max_tokens``. Raises UserError naming what is missing.
    """
    if format not in get_args(QuantizedFormat):
        raise UserError(f"format {format!r}", remedy=f"use one of {', '.join(get_args(QuantizedFormat))}")
    source = open_checkpoint(src)
    if source.kind != "hf":
        raise UserError("is no Hugging Face folder", file=src, remedy="convert it first: convert megatron-to-hf")
    inputs: Mapping[str, float] = {}
    if format == "fp8":
        if not calibration:
            raise UserError("fp8 scales activations", remedy="give calibration texts")
        inputs = largest_inputs(source, calibration, max_tokens)
    tensors = _quantized(source.tensors, format, inputs)
    described = {"quant_algo": _ALGORITHM[format], "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    producer = {"name": "nemo-openmath", "version": version("nemo-openmath")}
    with building(Path(dst)) as folder:
        config = changed_config(source.config, dtype=main_dtype(source.tensors))
        config["quantization_config"] = {"quant_method": "modelopt", **described, "producer": producer}
        copy_model_files(source.model_files, folder, config)
        text = json.dumps({"producer": producer, "quantization": described}, indent=2)
        (folder / QUANT_CONFIG).write_text(text + "\n")
        write_folder(folder, tensors)
        texts = len(calibration or ())
        lineage("checkpoints.quantize", {"source": source}, format=format, calibration_texts=texts).write(folder)
    return Path(dst)


def dequantized(folder: str | Path) -> dict[str, LazyTensor]:
    """The weights that a quantized folder stands for, in fp32, without the scales: for checking an export."""
    held = open_checkpoint(folder).tensors
    plain: dict[str, LazyTensor] = {}
    for name, tensor in held.items():
        if f"{name}_scale" in held:
            plain[name] = _Scaled(tensor, held[f"{name}_scale"].full().reshape(-1), torch.float32)
        elif not name.endswith("_scale"):
            plain[name] = tensor.to(torch.float32)
    return plain


def _quantized(
    tensors: Mapping[str, LazyTensor], format: QuantizedFormat, inputs: Mapping[str, float]
) -> dict[str, LazyTensor]:
    of_rows = {name: _row_largest(tensor) for name, tensor in tensors.items() if _LINEAR.fullmatch(name)}
    weights, activations = _by_group({n: float(t.amax()) for n, t in of_rows.items()}), _by_group(inputs)
    made: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name not in of_rows:
            made[name] = tensor
            continue
        if format == "fp8":
            scale = torch.tensor(weights[_group(name)] / _LARGEST[format])
            input_scale = torch.tensor(activations[_group(name)] / _LARGEST[format])
            made[name.removesuffix("weight") + "input_scale"] = Held(input_scale)
        else:
            scale = of_rows[name] / _LARGEST[format]
        scale = torch.where(scale > 0, scale, torch.ones(()))  # rows of zeros
        made[name] = _Scaled(tensor, scale.reshape(-1), torch.int8 if format == "int8" else E4M3, divide=True)
        made[f"{name}_scale"] = Held(scale)
    return made


def _group(name: str) -> str:
    """One name for the layers that an engine fuses."""
    match = _LINEAR.fullmatch(name)
    assert match is not None
    return match[1] + _FUSED.get(match[2], match[2])


def _by_group(values: Mapping[str, float]) -> dict[str, float]:
    groups: dict[str, float] = {}
    for name, value in values.items():
        groups[_group(name)] = max(groups.get(_group(name), 0.0), value)
    return groups


def _row_largest(tensor: LazyTensor) -> Tensor:
    """Largest magnitude of every row, fp32 [out]; a few rows at a time."""
    step = max(1, PIECE // tensor.row)
    parts = [rows(tensor, at, min(at + step, tensor.shape[0])).full() for at in range(0, tensor.shape[0], step)]
    return torch.cat([part.abs().amax(1).float() for part in parts])


class _Scaled(LazyTensor):
    """``source`` times (or divided by) ``scale``, one number or one per row, then in ``dtype``."""

    def __init__(self, source: LazyTensor, scale: Tensor, dtype: torch.dtype, *, divide: bool = False):
        self.source, self.scale, self.divide = source, scale, divide
        self.dtype, self.shape = dtype, source.shape

    def read(self, start: int, stop: int) -> Tensor:
        values, scale = self.source.read(start, stop).float(), self.scale
        if scale.numel() > 1:
            first, end = start // self.row, -(-stop // self.row)
            at = start - first * self.row
            scale = scale[first:end].repeat_interleave(self.row)[at : at + stop - start]
        values = values / scale if self.divide else values * scale
        if self.dtype == torch.int8:
            values = values.round_().clamp_(-127, 127)
        elif self.dtype == E4M3:
            values = values.clamp_(-448, 448)
        return values.to(self.dtype)


@torch.no_grad()
def largest_inputs(source: Checkpoint, texts: Sequence[str], max_tokens: int) -> dict[str, float]:
    """Largest magnitude of each linear layer's input over ``texts``: weight name -> value. Runs the whole model."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    file = source.path / "tokenizer.json"
    if not file.is_file():
        raise UserError("missing; calibration needs it", file=file, remedy="copy it from the model this one came from")
    tokenizer = Tokenizer.from_file(str(file))
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype="auto").eval()
    largest: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(arguments[0].abs().amax()))

        return hook

    for name, module in model.named_modules():
        if _LINEAR.fullmatch(f"{name}.weight"):
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    for text in texts:
        ids = tokenizer.encode(text).ids[:max_tokens]
        if ids:
            model.model(torch.tensor([ids]))
    if not largest or not all(math.isfinite(value) and value > 0 for value in largest.values()):
        raise UserError("the calibration texts gave no activations", file=source.path, remedy="give texts with words")
    return largest
