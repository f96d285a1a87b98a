"""Hugging Face names <-> Megatron's stored names for lazy tensors.

What goes where is known by :mod:`nemo_openmath.models.hf_mapping` alone. Its functions reorder rows; applied to row
numbers instead of weights they give the order, and lazy tensors then read the rows from where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nemo_openmath.checkpoints.formats.hf import equal, no_place
from nemo_openmath.checkpoints.lazy import Grid, Held, LazyTensor, Rows, columns, rows, take_rows
from nemo_openmath.core.errors import UserError
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_mapping import Mapped

MODEL = ("embedding.", "decoder.", "output_layer.")  # how the names of a model's tensors begin; the rest is training


def to_stored(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> dict[str, LazyTensor]:
    """HF names -> stored names, full tensors. Raises UserError naming a missing tensor or a wrong shape."""
    stored = {}
    for entry in hf_mapping.mapping(config):
        parts = []
        for name, shape in zip(entry.hf, hf_mapping.hf_shapes(entry, config), strict=True):
            parts.append(_checked(tensors, name, shape))
        order = hf_mapping.join(entry, _row_numbers(parts), config)
        stored[entry.stored] = parts[0] if len(parts) == 1 else take_rows(parts, order)
    check_nothing_left(tensors, config)
    return stored


def check_nothing_left(tensors: Iterable[str], config: ModelConfig, file: Path | None = None) -> None:
    """Raises UserError naming a tensor that the architecture of config.json has no place for: it would be lost."""
    known = {name for entry in hf_mapping.mapping(config) for name in entry.hf}
    if left := set(tensors) - known:
        raise no_place(left, file)


def to_hf(stored: Mapping[str, LazyTensor], config: ModelConfig, file: Path | None = None) -> dict[str, LazyTensor]:
    """Stored names -> HF names. Rows that pad the vocabulary are cut off; norms may have their unfused names."""
    tensors: dict[str, LazyTensor] = {}
    for entry in hf_mapping.mapping(config):
        shape = hf_mapping.stored_shape(entry, config)
        name = entry.stored if entry.stored in stored else _unfused(entry.stored)
        source = stored.get(name)
        if source is not None and _is_vocabulary(entry) and source.shape[0] > shape[0]:
            source = rows(source, 0, shape[0])
        source = _checked({} if source is None else {entry.stored: source}, entry.stored, shape, file)
        if entry.kind == "same":
            tensors[entry.hf[0]] = source
            continue
        for part, order in zip(entry.hf, hf_mapping.split(entry, torch.arange(shape[0]), config), strict=True):
            tensors[part] = take_rows([source], order)
    known = {name for entry in hf_mapping.mapping(config) for name in (entry.stored, _unfused(entry.stored))}
    if config.tie_word_embeddings and "output_layer.weight" in stored:  # the last stage's copy
        known.add("output_layer.weight")
        if not equal(stored["output_layer.weight"], stored["embedding.word_embeddings.weight"]):
            problem = "output_layer.weight differs from the embedding, and config.json ties the two"
            raise UserError(
                problem, file=file, remedy="give the config.json of this model, with tie_word_embeddings false"
            )
    left = {name for name in stored if name.startswith(MODEL) and name not in known}
    if left:
        raise no_place(left, file)
    return tensors


def tp_slice(entry: Mapped, tensor: LazyTensor, size: int, rank: int) -> LazyTensor:
    """What tensor-parallel rank ``rank`` of ``size`` holds."""
    if size == 1 or entry.tp_axis is None:
        return tensor
    if entry.tp_axis == 1:
        width = tensor.shape[1] // size
        return columns(tensor, rank * width, (rank + 1) * width)
    return take_rows([tensor], hf_mapping.tp_slice(entry, torch.arange(tensor.shape[0]), size, rank))


def tp_join(entry: Mapped, slices: Sequence[LazyTensor]) -> LazyTensor:
    """The inverse of :func:`tp_slice` over all ranks."""
    if len(slices) == 1 or entry.tp_axis is None:
        return slices[0]
    if entry.tp_axis == 1:
        width = slices[0].shape[1]
        blocks = [((0, rank * width), part) for rank, part in enumerate(slices)]
        return Grid((slices[0].shape[0], width * len(slices)), blocks)
    return take_rows(slices, hf_mapping.tp_join(entry, _row_numbers(slices)))


def pad_vocabulary(entry: Mapped, tensor: LazyTensor, multiple: int) -> LazyTensor:
    """Zero rows up to a multiple, for embedding and output layer."""
    missing = -tensor.shape[0] % multiple if _is_vocabulary(entry) else 0
    return Rows([tensor, Held(torch.zeros((missing, *tensor.shape[1:]), dtype=tensor.dtype))]) if missing else tensor


def _is_vocabulary(entry: Mapped) -> bool:
    return entry.stored in ("embedding.word_embeddings.weight", "output_layer.weight")


def _unfused(stored: str) -> str:
    """``...3.self_attention.linear_qkv.layer_norm_weight`` -> ``...3.input_layernorm.weight``."""
    layer = hf_mapping.layer_of(stored)
    return (
        stored if layer is None else f"decoder.layers.{layer}." + hf_mapping.local_name(stored, layer).split(".", 3)[3]
    )


def _row_numbers(parts: Sequence[LazyTensor]) -> list[Tensor]:
    """Row numbers of each part within the stack of all."""
    return list(torch.arange(sum(part.shape[0] for part in parts)).split([part.shape[0] for part in parts]))


def _checked(
    tensors: Mapping[str, LazyTensor], name: str, shape: tuple[int, ...], file: Path | None = None
) -> LazyTensor:
    tensor, remedy = tensors.get(name), "check config.json against the weights"
    if tensor is None:
        raise UserError(f"the weights hold no {name}", file=file, remedy=remedy)
    if tensor.shape != shape:
        raise UserError(f"{name} has shape {tensor.shape}, the configuration says {shape}", file=file, remedy=remedy)
    return tensor
