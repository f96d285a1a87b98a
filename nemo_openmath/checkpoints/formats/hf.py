"""The weights of a Hugging Face folder: opened here by training, the embedded engine and all tools alike.

What is opened is what transformers would load, or it is refused: other files of weights are named, quantized payloads
refused, and for the architectures that we know every tensor has its place and its shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nemo_openmath.checkpoints.formats import safetensors
from nemo_openmath.checkpoints.lazy import LazyTensor, equal
from nemo_openmath.checkpoints.model_files import changed_config, main_dtype, write_model_files
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.hf_config import (
    ARCHITECTURES,
    Described,
    checked,
    describe,
    no_place,
    once,
    read_config,
    refuse_quantized,
)
from nemo_openmath.models.stop_tokens import StopTokens

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
log = logging.getLogger(__name__)
warn = once(log.warning)


def open_tensors(
    folder: Path, model_files: Path | None = None, *, strict: bool = True, say: Callable[[str], None] = warn
) -> dict[str, LazyTensor]:
    """The tensors of a folder under their names. ``model_files``: where config.json is, if not in it. ``strict``:
    refuse what :func:`check` refuses. ``say`` is told in a line what is left out and which fields of config.json nobody
    uses."""
    read_config(model_files or folder)
    tensors, others = safetensors.read_folder(folder)
    if others:
        say(f"{folder}: not read, because they are not the model's: {', '.join(others)}")
    return check(folder, tensors, model_files, say=say) if strict else tensors


def check(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    model_files: Path | None = None,
    *,
    say: Callable[[str], None] = warn,
) -> dict[str, LazyTensor]:
    """``tensors`` without those that a model does not hold (RoPE's tables, a tied lm_head). Raises UserError for
    quantized folders, said to be so or not, and where the model is one that we know, for missing tensors, wrong shapes
    and tensors without a place."""
    files = model_files or folder
    raw = read_config(files)
    refuse_quantized(folder, raw)
    refuse_payloads(folder, tensors)
    if raw.get("model_type") not in tuple(ARCHITECTURES):
        return dict(tensors)
    described = describe(files)
    for line in described.notes:
        say(line)
    kept = without_copies(tensors, described, folder, say)
    shapes = described.tensors()
    for name, shape in shapes.items():
        checked(name, kept.get(name), shape, folder)
    if left := kept.keys() - shapes.keys():
        raise no_place(left, folder)
    return kept


def refuse_payloads(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """UserError naming a tensor that is no weight: payloads of integers or 8 bits mean nothing without their scales."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _PLAIN:
            problem = f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and config.json does not say what for"
            raise UserError(problem, file=folder, remedy="give a model of plain weights")


def without_copies(
    tensors: Mapping[str, LazyTensor], described: Described, folder: Path, say: Callable[[str], None] = warn
) -> dict[str, LazyTensor]:
    """Without RoPE's tables, which are computed, and without the lm_head of a model whose config.json ties it to the
    embedding. Programs differ in which of two different ones they take, so that is a UserError."""
    tables = [name for name in tensors if name.endswith("rotary_emb.inv_freq")]
    if tables:
        say(f"{folder}: {len(tables)} tables of RoPE (rotary_emb.inv_freq) are left out: they are computed")
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(tables)}
    if described.tie_word_embeddings and HEAD in kept and EMBEDDING in kept:
        if not equal(kept[HEAD], kept[EMBEDDING]):
            raise UserError(
                f"{HEAD} differs from the embedding, and config.json ties the two: programs differ in which they take",
                file=folder,
                remedy="set tie_word_embeddings to false, or remove the tensor",
            )
        say(f"{folder}: {HEAD} is left out: it is the embedding, to which config.json ties it")
        del kept[HEAD]
    return kept


def write(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    model_files: Path,
    *,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    shard_bytes: int = safetensors.SHARD_BYTES,
    stops: StopTokens | None = None,
) -> None:
    """Write a Hugging Face folder: ``tensors``, and config.json and tokenizer from ``model_files`` with their dtype.

    ``rope_theta``, ``max_positions``: changes of config.json. ``stops``: see :func:`write_model_files`.
    """
    dtype = main_dtype(tensors)
    config = changed_config(read_config(model_files), rope_theta=rope_theta, max_positions=max_positions, dtype=dtype)
    write_model_files(model_files, folder, config, stops=stops)
    safetensors.write_folder(folder, tensors, shard_bytes)
