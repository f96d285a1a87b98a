"""Hugging Face <-> Megatron, and both to TensorRT-LLM: in one process without a GPU, a few pieces in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from nemo_openmath.checkpoints import names
from nemo_openmath.checkpoints.checkpoint import Checkpoint, lineage, open_checkpoint, write_checkpoint
from nemo_openmath.checkpoints.formats import hf, step_folders, trtllm
from nemo_openmath.checkpoints.formats.safetensors import SHARD_BYTES
from nemo_openmath.checkpoints.formats.trtllm_redrafter import TrtllmDrafter
from nemo_openmath.checkpoints.model_files import main_dtype, write_model_files
from nemo_openmath.checkpoints.output import building
from nemo_openmath.checkpoints.quantize.calibration import LINEAR
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.lineage import digest_tree
from nemo_openmath.models.hf_config import describe
from nemo_openmath.models.stop_tokens import StopTokens

Quantization = Literal["int8", "int4"]
_WEIGHT_ONLY = {None: None, "int8": "W8A16", "int4": "W4A16"}
_SCALES = (".weight_scale", ".input_scale", ".k_scale", ".v_scale")  # how scales of an FP8 folder end


def hf_to_megatron(
    src: str | Path,
    dst: str | Path,
    *,
    classic_folders: bool = False,
    tp: int = 1,
    pp: int = 1,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    dtype: torch.dtype | None = None,
    vocabulary_multiple: int = 128,
) -> Path:
    """Convert a Hugging Face folder into a checkpoint that a training starts from, loaded at any layout.

    ``classic_folders``: write ``mp_rank_*`` files for ``tp`` x ``pp`` ranks instead, the vocabulary padded to a
    multiple of ``vocabulary_multiple * tp``. ``rope_theta`` and ``max_positions`` are written into config.json.
    ``dtype``: of the result.
    """
    if not classic_folders and (tp, pp) != (1, 1):
        raise UserError(
            "a torch_dist checkpoint has no layout: tp and pp do nothing", remedy="leave them out, or add --classic"
        )
    source = open_checkpoint(src)
    with building(Path(dst)) as folder:
        settings: dict[str, Any] = {"rope_theta": rope_theta, "max_positions": max_positions}
        write_checkpoint(
            folder,
            "classic" if classic_folders else "torch_dist",
            source.tensors,
            source,
            dtype=dtype,
            ranks=(tp, pp),
            vocabulary_multiple=vocabulary_multiple,
            **settings,
        )
        kind = "checkpoints.hf_to_megatron"
        lineage(kind, {"source": source}, classic=classic_folders, tp=tp, pp=pp, **settings).write(folder)
    return Path(dst)


def megatron_to_hf(
    src: str | Path,
    dst: str | Path,
    *,
    model_files: str | Path | None = None,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Convert a Megatron checkpoint (ours, bare ``torch_dist``, classic ``mp_rank_*``) into a Hugging Face folder.

    ``model_files``: the folder with config.json and tokenizer, needed where the checkpoint does not carry them.
    """
    source = open_checkpoint(src, model_files)
    if source.kind == "hf":
        raise UserError("is a Hugging Face folder already", file=src, remedy="give a Megatron checkpoint")
    settings: dict[str, Any] = {"rope_theta": rope_theta, "max_positions": max_positions}
    with building(Path(dst)) as folder:
        write_checkpoint(
            folder,
            "hf",
            source.tensors,
            source,
            dtype=dtype,
            stops=_taught(source),
            shard_bytes=shard_bytes,
            **settings,
        )
        lineage("checkpoints.megatron_to_hf", {"source": source}, step=source.step, **settings).write(folder)
    return Path(dst)


def _taught(source: Checkpoint) -> StopTokens | None:
    """Return what a training taught to end a text with, where the model files are not those of its checkpoint.

    The checkpoint's own files say it already: None.
    """
    own = source.path / step_folders.MODEL
    if own == source.model_files or not (source.path / step_folders.MANIFEST).is_file() or not own.is_dir():
        return None
    return StopTokens.of(own) if step_folders.read_manifest(source.path).training else None


def hf_to_trtllm(
    src: str | Path,
    dst: str | Path,
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    drafter: str | Path | None = None,
    beams: int = 5,
) -> Path:
    """Convert a checkpoint of any format into a TensorRT-LLM checkpoint for ``tp`` x ``pp`` ranks.

    ``src`` may be an FP8 folder; ``quantization`` is for the others. ``dtype``: bfloat16, float16 or float32; the
    source's when not given. ``drafter``: the folder of a ReDrafter, written beside the model for a search of
    ``beams``. :func:`~nemo_openmath.checkpoints.formats.trtllm.commands` says how to go
    on.
    """
    if quantization not in _WEIGHT_ONLY:
        raise UserError(f"quantization {quantization!r}", remedy="use int8 or int4, or leave it out")
    source = open_checkpoint(src, strict=False)
    trtllm.check_layout(source.model, tp, pp)
    algorithm: str | None = _WEIGHT_ONLY[quantization]
    cache: str | None = None
    if source.quantization:
        algorithm, cache = _fp8(source, quantization)
        described = describe(source.model_files, quantized=True)
        tensors, _ = hf.without_copies(source.tensors, described, source.path)
        scales = {name for name in tensors if name.endswith(_SCALES)}
    else:
        source = open_checkpoint(src)
        tensors, scales = source.tensors, set()
    weights = {name: tensor for name, tensor in tensors.items() if name not in scales}
    plain = {name: tensor for name, tensor in weights.items() if tensor.dtype.itemsize > 1}
    chosen = dtype or main_dtype(plain)
    if chosen not in (torch.bfloat16, torch.float16, torch.float32):
        raise UserError(f"{chosen} is no dtype of TensorRT-LLM", remedy="use bfloat16, float16 or float32")
    beside = None
    if drafter is not None:
        beside = TrtllmDrafter.read(Path(drafter), source.model, tp=tp, pp=pp, dtype=chosen, beams=beams)
    names.to_stored(weights, source.model)  # refuses wrong names and shapes before anything is written
    tensors = tensors | {name: tensor.to(chosen) for name, tensor in plain.items()}
    with building(Path(dst)) as folder:
        write_model_files(source.model_files, folder / trtllm.TOKENIZER, source.config)
        layout = {"tp": tp, "pp": pp}
        trtllm.write(
            folder,
            tensors,
            source.model,
            **layout,
            dtype=chosen,
            algorithm=algorithm,
            cache_algorithm=cache,
            drafter=beside,
        )
        settings = {**layout, "dtype": str(chosen), "quantization": algorithm}
        if drafter is not None:
            settings |= {"drafter": digest_tree(Path(drafter)), "beams": beams}
        lineage("checkpoints.hf_to_trtllm", {"source": source}, **settings).write(folder)
    return Path(dst)


def _fp8(source: Checkpoint, quantization: str | None) -> tuple[str | None, str | None]:
    """Return quant_algo and kv_cache_quant_algo of a quantized folder.

    Raises UserError where it is not ModelOpt's FP8, or a scale is missing.
    """
    described = source.config.get("quantization_config") or {}
    if source.quantization != "FP8" or quantization is not None:
        problem = f"is quantized ({source.quantization})"
        remedy = "FP8 folders are converted as they are, for the other kinds give the plain model"
        raise UserError(problem, file=source.path, remedy=remedy)
    for name, tensor in source.tensors.items():
        wanted = (f"{name}_scale", name.removesuffix("weight") + "input_scale")
        missing = [scale for scale in wanted if scale not in source.tensors]
        if tensor.dtype == trtllm.E4M3 and missing:
            raise UserError(f"{name} has no {missing[0]}", file=source.path, remedy="export it again")
        if LINEAR.fullmatch(name) and tensor.dtype != trtllm.E4M3:
            raise UserError(f"{name} is not in FP8", file=source.path, remedy="quantize all of the decoder's layers")
    cached = any(name.endswith(".k_scale") for name in source.tensors)
    if described.get("kv_cache_scheme") and not cached:
        raise UserError("promises an FP8 cache and has no k_scale", file=source.path, remedy="export it again")
    return "FP8", "FP8" if cached else None
