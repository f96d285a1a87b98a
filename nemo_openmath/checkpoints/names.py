"""Hugging Face names <-> Megatron's stored names for lazy tensors.

Which rows go where stands in the table of :mod:`nemo_openmath.models.hf_mapping`. Lazy tensors read them from where
they are: nothing is reordered in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nemo_openmath.checkpoints.formats.torch_dist import MODEL_NAMES
from nemo_openmath.checkpoints.lazy import Blocks, InMemory, LazyTensor, StackedRows, equal, stack_rows
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_mapping import StoredTensor, stored_tensors
from nemo_openmath.models.shapes import check_tensors, checked, no_place

_HEAD, _EMBEDDING = "output_layer.weight", "embedding.word_embeddings.weight"


def to_stored(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> dict[str, LazyTensor]:
    """Return full tensors under stored names for ``tensors`` under HF names.

    Raises UserError naming a tensor that is missing, has a wrong shape, or has no place in the model.
    """
    table = stored_tensors(config)
    check_tensors(tensors, dict(source for entry in table for source in entry.sources), None)
    return {entry.name: stack_rows([tensors[name] for name, _ in entry.sources], entry.runs) for entry in table}


def to_hf(stored: Mapping[str, LazyTensor], config: ModelConfig, file: Path | None = None) -> dict[str, LazyTensor]:
    """Return tensors under HF names for those under stored names.

    Rows that pad the vocabulary are cut off. Norms may have the names that they have where they are not fused. Raises
    UserError naming a tensor that is missing, has a wrong shape, or has no place in the model.
    """
    tensors: dict[str, LazyTensor] = {}
    places = set()
    for entry in stored_tensors(config):
        places |= {entry.name, entry.local_name()}
        source = stored.get(entry.name, stored.get(entry.local_name()))
        if source is not None and entry.is_vocabulary and source.shape[0] > entry.shape[0]:
            source = source.rows(0, entry.shape[0])
        source = checked(entry.name, source, entry.shape, file)
        for number, (name, _) in enumerate(entry.sources):
            tensors[name] = stack_rows([source], entry.rows_of_source(number))
    if config.tie_word_embeddings and _HEAD in stored:  # the last pipeline stage's copy
        places.add(_HEAD)
        if not equal(stored[_HEAD], stored[_EMBEDDING]):
            problem = f"{_HEAD} differs from the embedding, and config.json ties the two"
            remedy = "give the config.json of this model, with tie_word_embeddings false"
            raise UserError(problem, file=file, remedy=remedy)
    if unplaced := {name for name in stored if name.startswith(MODEL_NAMES)} - places:
        raise no_place(unplaced, file)
    return tensors


def tp_slice(entry: StoredTensor, tensor: LazyTensor, size: int, rank: int) -> LazyTensor:
    """Return what tensor-parallel rank ``rank`` of ``size`` holds of a stored tensor."""
    if size == 1 or entry.tp_axis is None:
        return tensor
    if entry.tp_axis == 1:
        width = tensor.shape[1] // size
        return tensor.columns(rank * width, (rank + 1) * width)
    return stack_rows([tensor], entry.rows_of_rank(tensor.shape[0], size, rank))


def tp_join(entry: StoredTensor, slices: Sequence[LazyTensor]) -> LazyTensor:
    """Put a stored tensor together from the slices of all ranks, in rank order: the inverse of :func:`tp_slice`."""
    if len(slices) == 1 or entry.tp_axis is None:
        return slices[0]
    rows, size = slices[0].shape[0], len(slices)
    if entry.tp_axis == 1:
        width = slices[0].shape[1]
        return Blocks((rows, width * size), [((0, rank * width), part) for rank, part in enumerate(slices)])
    return stack_rows(slices, entry.rows_of_whole(rows, size))


def pad_vocabulary(entry: StoredTensor, tensor: LazyTensor, multiple: int) -> LazyTensor:
    """Add zero rows to embedding and output layer, up to a multiple of ``multiple`` rows."""
    missing = -tensor.shape[0] % multiple if entry.is_vocabulary else 0
    if not missing:
        return tensor
    return StackedRows([tensor, InMemory(torch.zeros((missing, *tensor.shape[1:]), dtype=tensor.dtype))])
