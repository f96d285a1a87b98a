"""Hugging Face <-> Megatron weights: pure functions on tensors, no model is built.

Three namings meet here:

* *HF*: ``model.layers.3.self_attn.q_proj.weight`` ...
* *stored*: full (unsharded) Megatron tensors under global layer numbers, as they lie in a ``torch_dist`` checkpoint:
  ``decoder.layers.3.self_attention.linear_qkv.weight``. The norms before QKV and MLP are stored as
  ``...linear_qkv.layer_norm_weight`` and ``...linear_fc1.layer_norm_weight`` whether TransformerEngine fuses them or
  not.
* *local*: the parameter names of one pipeline stage's model chunk, where layers count from 0 (:func:`local_name`).

One :class:`Mapped` per stored tensor says which HF tensors it joins, how, and along which axis TP slices it:

    linear_qkv   per KV group g: its queries, its key, its value: [q(g); k(g); v(g)] for g = 0..groups-1; a TP rank
    holds
                 whole groups, so a slice along axis 0 is right
    linear_fc1   stored [gate; up]; a TP rank holds [gate(r); up(r)], so it slices each half
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig

Kind = Literal["same", "qkv", "gate_up"]


@dataclass(frozen=True)
class Mapped:
    """One stored Megatron tensor and the HF tensors it is made of."""

    stored: str
    hf: tuple[str, ...]
    kind: Kind = "same"
    tp_axis: int | None = None  # None: every TP rank holds the whole tensor


def mapping(config: ModelConfig) -> tuple[Mapped, ...]:
    """Every tensor of the model, embedding first."""
    entries = [Mapped("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), tp_axis=0)]
    for layer in range(config.num_hidden_layers):
        entries += _layer(config, f"decoder.layers.{layer}.", f"model.layers.{layer}.")
    entries.append(Mapped("decoder.final_layernorm.weight", ("model.norm.weight",)))
    if not config.tie_word_embeddings:
        entries.append(Mapped("output_layer.weight", ("lm_head.weight",), tp_axis=0))
    return tuple(entries)


def _layer(config: ModelConfig, stored: str, hf: str) -> list[Mapped]:
    attention, mlp = stored + "self_attention.", stored + "mlp."
    entries = [Mapped(attention + "linear_qkv.layer_norm_weight", (hf + "input_layernorm.weight",))]
    for suffix in ("weight", "bias") if config.qkv_bias else ("weight",):
        sources = tuple(f"{hf}self_attn.{name}_proj.{suffix}" for name in "qkv")
        entries.append(Mapped(attention + f"linear_qkv.{suffix}", sources, "qkv", 0))
    if config.qk_norm:
        entries += [Mapped(f"{attention}{x}_layernorm.weight", (f"{hf}self_attn.{x}_norm.weight",)) for x in "qk"]
    gate_up = (hf + "mlp.gate_proj.weight", hf + "mlp.up_proj.weight")
    return [
        *entries,
        Mapped(attention + "linear_proj.weight", (hf + "self_attn.o_proj.weight",), tp_axis=1),
        Mapped(mlp + "linear_fc1.layer_norm_weight", (hf + "post_attention_layernorm.weight",)),
        Mapped(mlp + "linear_fc1.weight", gate_up, "gate_up", 0),
        Mapped(mlp + "linear_fc2.weight", (hf + "mlp.down_proj.weight",), tp_axis=1),
    ]


def join(entry: Mapped, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """HF tensors (in the order of ``entry.hf``) -> the stored tensor."""
    if entry.kind == "same":
        return tensors[0]
    if entry.kind == "gate_up":
        return torch.cat(tuple(tensors))
    groups, rest = config.num_key_value_heads, tensors[0].shape[1:]
    return torch.cat([t.reshape(groups, -1, *rest) for t in tensors], dim=1).reshape(-1, *rest)


def split(entry: Mapped, tensor: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    """The inverse of :func:`join`; the results are contiguous."""
    if entry.kind == "same":
        return (tensor,)
    if entry.kind == "gate_up":
        gate, up = tensor.chunk(2)
        return gate.contiguous(), up.contiguous()
    groups, head, rest = config.num_key_value_heads, config.head_dim, tensor.shape[1:]
    grouped = tensor.reshape(groups, -1, *rest)
    parts = grouped.split([grouped.shape[1] - 2 * head, head, head], dim=1)
    return tuple(part.reshape(-1, *rest).contiguous() for part in parts)


def tp_slice(entry: Mapped, tensor: Tensor, size: int, rank: int) -> Tensor:
    """What tensor-parallel rank ``rank`` of ``size`` holds of a stored tensor."""
    if size == 1 or entry.tp_axis is None:
        return tensor
    if entry.kind == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    return tensor.chunk(size, dim=entry.tp_axis)[rank].contiguous()


def tp_join(entry: Mapped, slices: Sequence[Tensor]) -> Tensor:
    """The inverse of :func:`tp_slice` over all ranks, in rank order."""
    if len(slices) == 1 or entry.tp_axis is None:
        return slices[0]
    if entry.kind == "gate_up":
        halves = [s.chunk(2) for s in slices]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])
    return torch.cat(tuple(slices), dim=entry.tp_axis)


def hf_to_stored(read: Callable[[str], Tensor], config: ModelConfig) -> Iterator[tuple[Mapped, Tensor]]:
    """Stored tensors one after another; ``read(hf_name)`` gives one HF tensor (``KeyError`` when it is not there)."""
    for entry in mapping(config):
        yield entry, join(entry, read_hf(read, entry, config), config)


def read_hf(read: Callable[[str], Tensor], entry: Mapped, config: ModelConfig) -> list[Tensor]:
    """The HF tensors of one entry, checked for existence and shape."""
    tensors = []
    for name, shape in zip(entry.hf, hf_shapes(entry, config), strict=True):
        try:
            tensor = read(name)
        except KeyError:
            raise UserError(f"the weights hold no {name}", remedy="check config.json against the weights") from None
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)}, the configuration says {shape}",
                remedy="check config.json against the weights",
            )
        tensors.append(tensor)
    return tensors


def hf_shapes(entry: Mapped, config: ModelConfig) -> tuple[tuple[int, ...], ...]:
    """Shapes of the HF tensors of ``entry``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if entry.kind == "gate_up":
        return ((inner, hidden), (inner, hidden))
    if entry.kind == "qkv":
        return tuple((n, hidden) if entry.stored.endswith("weight") else (n,) for n in (q, kv, kv))
    last = entry.stored.rsplit(".", 2)[-2]
    shapes: Mapping[str, tuple[int, ...]] = {
        "word_embeddings": (config.vocab_size, hidden),
        "output_layer": (config.vocab_size, hidden),
        "linear_proj": (hidden, q),
        "linear_fc2": (hidden, inner),
        "q_layernorm": (config.head_dim,),
        "k_layernorm": (config.head_dim,),
    }
    return (shapes.get(last, (hidden,)),)


def stored_shape(entry: Mapped, config: ModelConfig) -> tuple[int, ...]:
    """Shape of the stored (full) tensor."""
    shapes = hf_shapes(entry, config)
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


_LOCAL_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def local_name(stored: str, layer_offset: int, *, fused_norms: bool = False) -> str:
    """The parameter name inside a pipeline stage whose first layer is ``layer_offset``.

    ``fused_norms``: the TransformerEngine layer spec, where the norms are part of the linear layers.
    """
    if not stored.startswith("decoder.layers."):
        return stored
    number, rest = stored.removeprefix("decoder.layers.").split(".", 1)
    if not fused_norms:
        rest = _LOCAL_NORMS.get(rest, rest)
    return f"decoder.layers.{int(number) - layer_offset}.{rest}"


def layer_of(stored: str) -> int | None:
    """Global layer number of a stored tensor; None outside the layers."""
    if not stored.startswith("decoder.layers."):
        return None
    return int(stored.removeprefix("decoder.layers.").split(".", 1)[0])
