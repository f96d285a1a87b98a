"""Hugging Face <-> Megatron weights: one table per model, and pure functions on tensors. No model is built.

Three namings meet here:

* *HF*: ``model.layers.3.self_attn.q_proj.weight`` ...
* *stored*: full (unsharded) Megatron tensors under global layer numbers, as they lie in a ``torch_dist`` checkpoint:
  ``decoder.layers.3.self_attention.linear_qkv.weight``. The norms before QKV and MLP are stored as
  ``...linear_qkv.layer_norm_weight`` and ``...linear_fc1.layer_norm_weight`` whether TransformerEngine fuses them or
  not.
* *local*: the parameter names of one pipeline stage's model chunk, where layers count from 0
  (:meth:`StoredTensor.local_name`).

:func:`stored_tensors` is the table: for each stored tensor its shape, the HF tensors whose rows it consists of, and how
tensor parallelism (TP) divides it:

    linear_qkv   for each KV group g its queries, its key, its value: [q(0); k(0); v(0); q(1); k(1); v(1); ...].
                 A TP rank holds whole groups: consecutive rows.
    linear_fc1   [gate; up]. A TP rank holds [gate(rank); up(rank)]: rows of each of two blocks.
    the others   one HF tensor as it is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.shapes import checked

Shape = tuple[int, ...]
_LAYERS = "decoder.layers."
_LOCAL_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


class RowRun(NamedTuple):
    """Rows [first, end) of one of several tensors."""

    tensor: int
    first: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """One stored Megatron tensor and the HF tensors whose rows it consists of."""

    name: str
    sources: tuple[tuple[str, Shape], ...]
    """Name and shape of each HF tensor."""
    runs: tuple[RowRun, ...]
    """The stored rows from the first to the last, as runs of the sources' rows."""
    tp_axis: int | None = None
    """Axis along which TP divides the tensor. None: every TP rank holds the whole tensor."""
    tp_blocks: int = 1
    """Equal blocks of rows that TP divides one by one."""

    @property
    def shape(self) -> Shape:
        return (sum(shape[0] for _, shape in self.sources), *self.sources[0][1][1:])

    @property
    def is_vocabulary(self) -> bool:
        """Whether the rows are tokens, which Megatron pads with zero rows."""
        return self.name in ("embedding.word_embeddings.weight", "output_layer.weight")

    @property
    def layer(self) -> int | None:
        """Global layer number; None outside the layers."""
        return layer_of(self.name)

    def local_name(self, layer_offset: int = 0, *, fused_norms: bool = False) -> str:
        """Return the parameter's name inside a pipeline stage whose first layer is ``layer_offset``.

        ``fused_norms``: the TransformerEngine layer spec, where the norms are part of the linear layers.
        """
        if self.layer is None:
            return self.name
        rest = self.name.split(".", 3)[3]
        return f"{_LAYERS}{self.layer - layer_offset}.{rest if fused_norms else _LOCAL_NORMS.get(rest, rest)}"

    def rows_of_source(self, source: int) -> list[RowRun]:
        """Return where the rows of one HF tensor lie in the stored tensor, in the HF tensor's order."""
        ends = itertools.accumulate(run.end - run.first for run in self.runs)
        placed = [(run, RowRun(0, end - (run.end - run.first), end)) for run, end in zip(self.runs, ends, strict=True)]
        return [rows for run, rows in sorted(placed) if run.tensor == source]

    def rows_of_rank(self, rows: int, size: int, rank: int) -> list[RowRun]:
        """Return the rows that TP rank ``rank`` of ``size`` holds of a tensor of ``rows`` rows divided along axis 0."""
        block, share = rows // self.tp_blocks, rows // self.tp_blocks // size
        starts = [number * block + rank * share for number in range(self.tp_blocks)]
        return [RowRun(0, start, start + share) for start in starts]

    def rows_of_whole(self, rows: int, size: int) -> list[RowRun]:
        """Return how the whole tensor is put together from the ``rows`` rows of each of ``size`` TP ranks."""
        share = rows // self.tp_blocks
        return [
            RowRun(rank, block * share, (block + 1) * share) for block in range(self.tp_blocks) for rank in range(size)
        ]


@functools.lru_cache(16)
def stored_tensors(config: ModelConfig) -> tuple[StoredTensor, ...]:
    """Return every tensor of the model, the embedding first and each exactly once."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    table = [_one("embedding.word_embeddings.weight", "model.embed_tokens.weight", (vocabulary, hidden), 0)]
    for layer in range(config.num_hidden_layers):
        table += _layer(config, f"{_LAYERS}{layer}.", f"model.layers.{layer}.")
    table.append(_one("decoder.final_layernorm.weight", "model.norm.weight", (hidden,)))
    if not config.tie_word_embeddings:
        table.append(_one("output_layer.weight", "lm_head.weight", (vocabulary, hidden), 0))
    return tuple(table)


def _one(name: str, source: str, shape: Shape, tp_axis: int | None = None) -> StoredTensor:
    return StoredTensor(name, ((source, shape),), (RowRun(0, 0, shape[0]),), tp_axis)


def _layer(config: ModelConfig, stored: str, hf: str) -> list[StoredTensor]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    groups, queries = config.num_key_value_heads, config.num_attention_heads * config.head_dim
    attention, mlp = f"{stored}self_attention.", f"{stored}mlp."
    table = [_one(f"{attention}linear_qkv.layer_norm_weight", f"{hf}input_layernorm.weight", (hidden,))]
    sizes = (queries // groups, head, head)  # rows of a group
    runs = tuple(RowRun(x, group * size, (group + 1) * size) for group in range(groups) for x, size in enumerate(sizes))
    for suffix, rest in [("weight", (hidden,)), ("bias", ())] if config.qkv_bias else [("weight", (hidden,))]:
        sources = [
            (f"{hf}self_attn.{x}_proj.{suffix}", (groups * size, *rest)) for x, size in zip("qkv", sizes, strict=True)
        ]
        table.append(StoredTensor(f"{attention}linear_qkv.{suffix}", tuple(sources), runs, 0))
    for x in "qk" if config.qk_norm else "":
        table.append(_one(f"{attention}{x}_layernorm.weight", f"{hf}self_attn.{x}_norm.weight", (head,)))
    gate_up = tuple((f"{hf}mlp.{x}_proj.weight", (inner, hidden)) for x in ("gate", "up"))
    return [
        *table,
        _one(f"{attention}linear_proj.weight", f"{hf}self_attn.o_proj.weight", (hidden, queries), 1),
        _one(f"{mlp}linear_fc1.layer_norm_weight", f"{hf}post_attention_layernorm.weight", (hidden,)),
        StoredTensor(f"{mlp}linear_fc1.weight", gate_up, (RowRun(0, 0, inner), RowRun(1, 0, inner)), 0, 2),
        _one(f"{mlp}linear_fc2.weight", f"{hf}mlp.down_proj.weight", (hidden, inner), 1),
    ]


def layer_of(name: str) -> int | None:
    """Return the layer number in a Megatron name; None outside the layers."""
    return int(name.removeprefix(_LAYERS).split(".", 1)[0]) if name.startswith(_LAYERS) else None


def read_sources(entry: StoredTensor, read: Callable[[str], Tensor]) -> list[Tensor]:
    """Return the HF tensors of ``entry``. ``read`` gives one by its name and raises KeyError where there is none.

    Raises UserError naming a tensor that is missing or has a wrong shape.
    """
    tensors = []
    for name, shape in entry.sources:
        tensor = None
        with contextlib.suppress(KeyError):
            tensor = read(name)
        tensors.append(checked(name, tensor, shape))
    return tensors


def join(entry: StoredTensor, tensors: Sequence[Tensor]) -> Tensor:
    """Put the stored tensor together from the HF tensors, given in the order of ``entry.sources``."""
    return _take(tensors, entry.runs)


def split(entry: StoredTensor, tensor: Tensor) -> tuple[Tensor, ...]:
    """Take the HF tensors out of a stored tensor, contiguous: the inverse of :func:`join`."""
    return tuple(_take([tensor], entry.rows_of_source(number)) for number in range(len(entry.sources)))


def tp_slice(entry: StoredTensor, tensor: Tensor, size: int, rank: int) -> Tensor:
    """Return what tensor-parallel rank ``rank`` of ``size`` holds of a stored tensor."""
    if size == 1 or entry.tp_axis is None:
        return tensor
    if entry.tp_axis == 1:
        return tensor.chunk(size, dim=1)[rank].contiguous()
    return _take([tensor], entry.rows_of_rank(tensor.shape[0], size, rank))


def tp_join(entry: StoredTensor, slices: Sequence[Tensor]) -> Tensor:
    """Put a stored tensor together from the slices of all ranks, in rank order: the inverse of :func:`tp_slice`."""
    if len(slices) == 1 or entry.tp_axis is None:
        return slices[0]
    if entry.tp_axis == 1:
        return torch.cat(tuple(slices), dim=1)
    return _take(slices, entry.rows_of_whole(slices[0].shape[0], len(slices)))


def _take(tensors: Sequence[Tensor], runs: Sequence[RowRun]) -> Tensor:
    if len(runs) == 1:
        return tensors[runs[0].tensor][runs[0].first : runs[0].end].contiguous()
    return torch.cat([tensors[run.tensor][run.first : run.end] for run in runs])
