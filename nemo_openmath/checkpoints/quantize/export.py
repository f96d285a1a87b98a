"""Quantized Hugging Face export, in the form NVIDIA's ModelOpt writes and TensorRT-LLM's PyTorch backend loads.

For every linear layer of the decoder (embedding, norms and lm_head stay):

    int8      W8A16, weights alone: int8 [out, in], ``weight_scale`` fp32 [out] = largest magnitude of the row / 127
    fp8       weights and activations: e4m3 [out, in], ``weight_scale`` and ``input_scale`` fp32 scalars = largest / 448
    fp8_kv    fp8, and the cache in e4m3: ``k_proj.k_scale``, ``v_proj.v_scale`` fp32 scalars, of keys after RoPE
    int4_awq  W4A16 (:mod:`~nemo_openmath.checkpoints.quantize.awq`): uint8 [out/2, in], row 2i in the low half of
              the byte; ``weight_scale`` fp32 [out, in/128]; ``pre_quant_scale`` [in] of o_proj and down_proj

Engines run q, k, v as one matrix, and gate and up as another, with one scale each: in fp8 these share theirs. Weights
are streamed; what is to be known of the activations comes from running the model on calibration texts.
``config.json`` gets a ``quantization_config``, so that a loader that does not know the format stops instead of
computing with unscaled weights. ``layout="compressed-tensors"``: int8 and int4_awq as vLLM reads them (it reads
ModelOpt's FP8 as it is): int32 ``weight_packed`` of values from 0 on, first value lowest, ``weight_scale`` in the
model's dtype, ``weight_shape``.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import lineage, open_checkpoint
from nemo_openmath.checkpoints.formats.safetensors import write_folder
from nemo_openmath.checkpoints.lazy import PIECE, InMemory, LazyTensor, check_finite
from nemo_openmath.checkpoints.methods import Layout, QuantizedFormat
from nemo_openmath.checkpoints.model_files import changed_config, main_dtype, write_model_files
from nemo_openmath.checkpoints.output import building
from nemo_openmath.checkpoints.quantize import awq
from nemo_openmath.checkpoints.quantize.calibration import LINEAR, Calibration, calibrate, group_of
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.devices import DeviceChoice

QUANT_CONFIG = "hf_quant_config.json"
E4M3 = torch.float8_e4m3fn
_LARGEST = {"fp8": 448.0, "fp8_kv": 448.0, "int8": 127.0}
_ALGORITHM = {"fp8": "FP8", "fp8_kv": "FP8", "int8": "W8A16", "int4_awq": "W4A16_AWQ"}
_EXCLUDED = ["lm_head", "model.embed_tokens"]


def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    format: QuantizedFormat,
    calibration: Sequence[str] | None = None,
    max_tokens: int = 2048,
    layout: Layout = "modelopt",
    device: DeviceChoice = "auto",
    into_existing: bool = False,
) -> Path:
    """Convert a Hugging Face folder into a quantized one. Memory: bounded for int8, the model for the others.

    ``calibration``: texts of the kind the model will see (prompts with solutions), for all but int8; each is cut to
    ``max_tokens``. ``device``: where the model runs over them; ``auto`` is the GPU where there is one with room. Raises
    UserError naming what is missing.
    """
    for what, value, known in (("format", format, QuantizedFormat), ("layout", layout, Layout)):
        if value not in get_args(known):
            raise UserError(f"{what} {value!r}", remedy=f"use one of {', '.join(get_args(known))}")
    if layout != "modelopt" and format.startswith("fp8"):
        raise UserError(
            f"{format} is not written as {layout}", remedy="leave the layout out: vLLM reads ModelOpt's FP8"
        )
    source = open_checkpoint(src, strict=False)
    if source.kind != "hf":
        raise UserError("is no Hugging Face folder", file=src, remedy="convert it first: convert megatron-to-hf")
    if source.quantization:
        raise UserError("is quantized already", file=src, remedy="give the model that it was made from")
    source = open_checkpoint(src)
    activations = Calibration()
    if format != "int8":
        if not calibration:
            raise UserError(f"{format} needs to know the activations", remedy="give texts (--calibration FILE)")
        activations = calibrate(source.path, calibration, max_tokens, device)
    dtype = main_dtype(source.tensors)
    if format == "int4_awq":
        tensors = _int4(awq.scaled(source.tensors, activations, stored_scales=layout == "modelopt"), layout, dtype)
    else:
        tensors = _eight_bits(source.tensors, format, activations, layout, dtype)
    with building(Path(dst), into_existing=into_existing) as folder:
        config = changed_config(source.config, dtype=dtype)
        config["quantization_config"] = _described(format) if layout == "modelopt" else _compressed(format)
        write_model_files(source.model_files, folder, config)
        if layout == "modelopt":
            (folder / QUANT_CONFIG).write_text(json.dumps(_quant_config(format), indent=4) + "\n")
        write_folder(folder, tensors)
        settings = {"format": format, "layout": layout, "calibration_texts": len(calibration or ())}
        lineage("checkpoints.quantize", {"source": source}, **settings, max_tokens=max_tokens).write(folder)
    return Path(dst)


def _producer() -> dict[str, str]:
    return {"name": "nemo-openmath", "version": version("nemo-openmath")}


def _quant_config(format: QuantizedFormat) -> dict[str, Any]:
    """hf_quant_config.json as ModelOpt writes it; TensorRT-LLM reads it."""
    described: dict[str, Any] = {"quant_algo": _ALGORITHM[format]}
    described["kv_cache_quant_algo"] = "FP8" if format == "fp8_kv" else None
    if format == "int4_awq":
        described |= {"group_size": awq.GROUP, "has_zero_point": False, "pre_quant_scale": True}
    return {"producer": _producer(), "quantization": {**described, "exclude_modules": _EXCLUDED}}


def _described(format: QuantizedFormat) -> dict[str, Any]:
    """The same within config.json, in ModelOpt's other wording; vLLM and SGLang read it."""
    eight = {"dynamic": False, "num_bits": 8, "type": "float"}
    described: dict[str, Any] = {"ignore": _EXCLUDED, "quant_algo": _ALGORITHM[format]}
    if format.startswith("fp8"):
        group = {"input_activations": eight, "weights": eight, "targets": ["Linear"]}
        described["config_groups"] = {"group_0": group}
    if format == "fp8_kv":
        described["kv_cache_scheme"] = eight
    if format == "int4_awq":
        described["group_size"] = awq.GROUP
    return described | {"producer": _producer(), "quant_method": "modelopt"}


def _compressed(format: QuantizedFormat) -> dict[str, Any]:
    """quantization_config of compressed-tensors."""
    four = format == "int4_awq"
    weights = {
        "num_bits": 4 if four else 8,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group" if four else "channel",
        "group_size": awq.GROUP if four else None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _eight_bits(
    tensors: Mapping[str, LazyTensor],
    format: QuantizedFormat,
    activations: Calibration,
    layout: Layout,
    dtype: torch.dtype,
) -> dict[str, LazyTensor]:
    of_rows = {name: _row_largest(name, tensor) for name, tensor in tensors.items() if LINEAR.fullmatch(name)}
    of_groups: dict[str, float] = {}
    for name, largest in of_rows.items():
        of_groups[group_of(name)] = max(of_groups.get(group_of(name), 0.0), float(largest.amax()))
    rounded: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name not in of_rows:
            rounded[name] = tensor
            continue
        prefix = name.removesuffix("weight")
        if format == "int8":
            scale = _positive(of_rows[name] / _LARGEST[format])
            scale = scale.to(dtype).float() if layout != "modelopt" else scale
            values = _Scaled(tensor, scale, torch.int8, divide=True)
            if layout != "modelopt":
                rounded |= _packed(name, values, scale[:, None].to(dtype), bits=8)
                continue
        else:
            scale = _positive(torch.tensor(of_groups[group_of(name)] / _LARGEST[format]))
            values = _Scaled(tensor, scale.reshape(-1), E4M3, divide=True)
            rounded[prefix + "input_scale"] = InMemory(
                torch.tensor(activations.largest[group_of(name)] / _LARGEST[format])
            )
            letter = prefix.rsplit(".", 2)[1].removesuffix("_proj")
            if format == "fp8_kv" and letter in "kv":
                peak = activations.cache[prefix.removesuffix("_proj.")]
                rounded[f"{prefix}{letter}_scale"] = InMemory(torch.tensor(peak / _LARGEST[format]))
        rounded[name], rounded[f"{name}_scale"] = values, InMemory(scale)
    return rounded


def _int4(tensors: Mapping[str, LazyTensor], layout: Layout, dtype: torch.dtype) -> dict[str, LazyTensor]:
    rounded: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if not LINEAR.fullmatch(name):
            rounded[name] = tensor
            continue
        scale = torch.cat([awq.rounded(part.float())[1] for part in _blocks(name, tensor)])
        if layout == "modelopt":
            rounded[name] = _Int4(tensor, scale, rows_a_byte=2)
            rounded[f"{name}_scale"] = InMemory(scale)
        else:
            narrow = scale.to(dtype)
            rounded |= _packed(name, _Int4(tensor, narrow.float()), narrow, bits=4)
    return rounded


def _packed(name: str, values: LazyTensor, scale: Tensor, bits: int) -> dict[str, LazyTensor]:
    shape = torch.tensor(values.shape)
    return {f"{name}_packed": _Words(values, bits), f"{name}_scale": InMemory(scale), f"{name}_shape": InMemory(shape)}


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones(()))  # of zeros


def _blocks(name: str, tensor: LazyTensor) -> Iterator[Tensor]:
    """A matrix, a few rows at a time; what is not finite is refused here, for no integer shows it."""
    step = max(1, PIECE // tensor.row)
    for at in range(0, tensor.shape[0], step):
        part = tensor.rows(at, min(at + step, tensor.shape[0])).full()
        check_finite(name, part)
        yield part


def _row_largest(name: str, tensor: LazyTensor) -> Tensor:
    """Largest magnitude of every row, fp32 [out]."""
    return torch.cat([part.abs().amax(1).float() for part in _blocks(name, tensor)])


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


class _ByRows(LazyTensor):
    """A matrix that is computed in whole rows."""

    @abstractmethod
    def of_rows(self, first: int, end: int) -> Tensor:
        """Compute rows ``first`` to ``end`` of the matrix."""

    def read(self, start: int, stop: int) -> Tensor:
        first, end = start // self.row, -(-stop // self.row)
        return self.of_rows(first, end).reshape(-1)[start - first * self.row : stop - first * self.row]


class _Int4(_ByRows):
    """``source`` / ``scale`` [out, in / 128] rounded to -8..7: int8, or two rows a byte, uint8 [out/2, in]."""

    def __init__(self, source: LazyTensor, scale: Tensor, rows_a_byte: int = 1):
        self.source, self.scale, self.pack = source, scale, rows_a_byte
        self.dtype = torch.uint8 if rows_a_byte == 2 else torch.int8
        self.shape = (source.shape[0] // rows_a_byte, source.shape[1])

    def of_rows(self, first: int, end: int) -> Tensor:
        first, end = first * self.pack, end * self.pack
        groups = self.source.rows(first, end).full().float().unflatten(1, (-1, awq.GROUP))
        values = (groups / self.scale[first:end, :, None]).round_().clamp_(-8, 7).flatten(1).to(torch.int8)
        if self.pack == 1:
            return values
        low, high = (values.view(torch.uint8) & 0xF).unflatten(0, (-1, 2)).unbind(1)
        return low | (high << 4)


class _Words(_ByRows):
    """int8 values of ``bits`` bits as int32 words [out, in * bits / 32], from 0 on, the first value lowest."""

    dtype = torch.int32

    def __init__(self, source: LazyTensor, bits: int):
        self.source, self.bits = source, bits
        self.shape = (source.shape[0], -(-source.shape[1] * bits // 32))

    def of_rows(self, first: int, end: int) -> Tensor:
        values = self.source.rows(first, end).full().long() + (1 << self.bits - 1)
        values = torch.nn.functional.pad(values, (0, -values.shape[1] % (32 // self.bits)))
        words = (values.unflatten(1, (-1, 32 // self.bits)) << torch.arange(0, 32, self.bits)).sum(2)
        return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
