"""Hugging Face <-> Megatron, in one process without a GPU, a few pieces of a tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints import names
from nemo_openmath.checkpoints.checkpoint import Checkpoint, lineage, open_checkpoint
from nemo_openmath.checkpoints.formats import classic, hf, step_folders, torch_dist
from nemo_openmath.checkpoints.formats.safetensors import SHARD_BYTES
from nemo_openmath.checkpoints.lazy import LazyTensor
from nemo_openmath.checkpoints.model_files import changed_config, main_dtype, write_model_files
from nemo_openmath.checkpoints.output import building
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import read_config
from nemo_openmath.models.stop_tokens import StopTokens


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
    """Hugging Face folder -> ``dst``: a checkpoint that a training starts from, loaded at any layout.

    ``classic_folders``: instead ``mp_rank_*`` files for ``tp`` x ``pp`` ranks, the vocabulary padded to a multiple of
    ``vocabulary_multiple * tp``. ``rope_theta``, ``max_positions``: written into config.json. ``dtype``: of the result.
    """
    if not classic_folders and (tp, pp) != (1, 1):
        raise UserError(
            "a torch_dist checkpoint has no layout: tp and pp do nothing", remedy="leave them out, or add --classic"
        )
    source = open_checkpoint(src)
    tensors = _as(source.tensors, dtype)
    with building(Path(dst)) as folder:
        settings: dict[str, Any] = {"rope_theta": rope_theta, "max_positions": max_positions}
        write_megatron(
            folder,
            tensors,
            source.model_files,
            classic_layout=(tp, pp) if classic_folders else None,
            vocabulary_multiple=vocabulary_multiple,
            step=source.step or 0,
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
    """A Megatron checkpoint (ours, bare ``torch_dist``, classic ``mp_rank_*``) -> Hugging Face folder ``dst``.

    ``model_files``: the folder with config.json and tokenizer, needed where the checkpoint does not carry them.
    """
    source = open_checkpoint(src, model_files)
    if source.kind == "hf":
        raise UserError("is a Hugging Face folder already", file=src, remedy="give a Megatron checkpoint")
    settings: dict[str, Any] = {"rope_theta": rope_theta, "max_positions": max_positions}
    with building(Path(dst)) as folder:
        tensors, stops = _as(source.tensors, dtype), _taught(source)
        hf.write(folder, tensors, source.model_files, shard_bytes=shard_bytes, stops=stops, **settings)
        lineage("checkpoints.megatron_to_hf", {"source": source}, step=source.step, **settings).write(folder)
    return Path(dst)


def _taught(source: Checkpoint) -> StopTokens | None:
    """What a training taught to end a text with, where config.json and tokenizer are not those of its checkpoint. The
    checkpoint's own files say it already."""
    own = source.path / step_folders.MODEL
    if own == source.model_files or not (source.path / step_folders.MANIFEST).is_file() or not own.is_dir():
        return None
    return StopTokens.of(own) if step_folders.read_manifest(source.path).training else None


def write_megatron(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    model_files: Path,
    *,
    classic_layout: tuple[int, int] | None = None,
    vocabulary_multiple: int = 128,
    step: int = 0,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    stops: StopTokens | None = None,
) -> None:
    """HF-named tensors into ``folder`` as a checkpoint of ours, or as classic files for ``classic_layout`` (tp, pp)."""
    config = ModelConfig.from_hf(model_files)
    stored = names.to_stored(tensors, config)
    raw = read_config(model_files)
    changed = changed_config(raw, rope_theta=rope_theta, max_positions=max_positions, dtype=main_dtype(tensors))
    write_model_files(model_files, folder / step_folders.MODEL, changed, stops=stops)
    if classic_layout is not None:
        tp, pp = classic_layout
        classic.write(folder, stored, config, tp=tp, pp=pp, step=step, vocabulary_multiple=vocabulary_multiple)
        return
    common = {"iteration": step, "checkpoint_version": 3.0, "content_metadata": {"non_homogeneous_layers": True}}
    written = torch_dist.write(folder / step_folders.STATE, stored, objects=_extra_states(config), common=common)
    files = {f"{step_folders.STATE}/{name}": entry for name, entry in written.items()}
    for path in (folder / step_folders.MODEL).iterdir():
        files[f"{step_folders.MODEL}/{path.name}"] = step_folders.checksum(path)
    manifest = step_folders.StepManifest(step, files)
    (folder / step_folders.MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))


def _extra_states(config: ModelConfig) -> dict[str, None]:
    """megatron-core's own loader asks for these (TransformerEngine keeps FP8 scales there); empty ones satisfy it."""
    linear = ["self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"]
    inner = [*linear, "self_attention.core_attention"]
    modules = [f"decoder.layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in inner]
    if not config.tie_word_embeddings:
        modules.append("output_layer")
    return {f"{module}._extra_state/shard_0_1": None for module in [*modules, "decoder.final_layernorm"]}


def _as(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    return {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}
