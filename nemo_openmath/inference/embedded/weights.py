"""Hugging Face directory -> weights laid out for decoding.

Rewrites are made once, at load, so that the decoding step needs fewer operations; none changes the function:

* Q, K and V are one matrix whose rows are grouped by KV head, ``[kv_head, (q_1 .. q_G, k, v), head_dim]``, so that the
  heads of one group lie side by side and grouped-query attention is one batched matrix product without copies.
* The head dimensions of Q and K are interleaved, ``(0, d/2, 1, d/2+1, ..)``: the rotation of rotary embedding becomes
  one complex product in place.
* gate and up are one matrix.
* In float32 the softmax scale goes into Q, and the weights of the two norms of a layer go into the matrices that follow
  them. In types of 16 bits a product would be rounded once more, so they stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.hf_config import Described, describe

SCALED = ("linear", "llama3", "yarn")  # kinds of RoPE that do not depend on the length of a text


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer; matrices are [out, in]."""

    attention_norm: Tensor | None  # [hidden]; None where it is in qkv
    qkv: Tensor  # [kv_heads * (group + 2) * head_dim, hidden]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # Qwen3: [group + 1, head_dim], of q_1 .. q_G and k
    o: Tensor  # [hidden, heads * head_dim]
    o_bias: Tensor | None
    mlp_norm: Tensor | None  # [hidden]; None where it is in gate_up
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. ``rotation``: complex64 [max_context, head_dim / 2]."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[Layer, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]
    rotation: Tensor
    scale: float  # of attention scores; 1.0 where it is in the weights of q
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    max_context: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def load_weights(
    model_dir: str | Path,
    *,
    max_context: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Weights:
    """Read a Qwen2, Qwen3 or Llama directory (config.json, *.safetensors).

    ``max_context``: tokens of prompt + completion; default: the model's ``max_position_embeddings``.
    Raises UserError for an architecture or option that this engine does not compute.
    """
    path = Path(model_dir)
    model = describe(path)
    limit = model.max_position_embeddings
    context = limit if max_context is None else max_context
    if context < 1:
        raise UserError(f"max_context {context} is no length", file=model.file, remedy="use 1 or more")
    if context > limit:
        problem = f"max_context {context} exceeds the model's {limit} positions"
        raise UserError(problem, file=model.file, remedy=f"use max_context <= {limit}")
    rotation = _rotation(model, context)
    checkpoint = open_checkpoint(path)

    def get(name: str) -> Tensor:
        return checkpoint.read(name).float()

    embedding = get("model.embed_tokens.weight")
    head = embedding if model.tie_word_embeddings else get("lm_head.weight")
    layers, folded = [], dtype == torch.float32
    for i in range(model.num_hidden_layers):
        placed_layer: Any = (
            None if t is None else t.to(device, dtype).contiguous()
            for t in _layer(get, f"model.layers.{i}", model, folded)
        )
        layers.append(Layer(*placed_layer))
    placed = embedding.to(device, dtype)
    return Weights(
        embedding=placed,
        layers=tuple(layers),
        norm=get("model.norm.weight").to(device, dtype),
        head=placed if head is embedding else head.to(device, dtype),
        rotation=rotation.to(device),
        scale=1.0 if folded else model.head_dim**-0.5,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        eps=model.rms_norm_eps,
        max_context=context,
    )


def _layer(get: Callable[[str], Tensor], prefix: str, model: Described, folded: bool) -> tuple[Tensor | None, ...]:
    """The fields of :class:`Layer` in fp32. ``folded``: norms and scale go into the matrices."""
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    group = heads // kv_heads
    interleave = torch.arange(head_dim).view(2, head_dim // 2).t().flatten()
    scale = head_dim**-0.5 if folded else 1.0
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    attention_norm, mlp_norm = get(f"{prefix}.input_layernorm.weight"), get(f"{prefix}.post_attention_layernorm.weight")

    def fuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[heads * head_dim, n] and twice [kv_heads * head_dim, n] -> [kv_heads * (group + 2) * head_dim, n]."""
        n = q.shape[1]
        q = q.view(kv_heads, group, head_dim, n)[:, :, interleave]
        if not model.qk_norm:
            q = q * scale
        k = k.view(kv_heads, 1, head_dim, n)[:, :, interleave]
        return torch.cat([q, k, v.view(kv_heads, 1, head_dim, n)], 1).view(-1, n)

    qkv = fuse(*(get(f"{attention}.{x}_proj.weight") for x in "qkv"))
    bias = qk_norm = None
    if model.qkv_bias:
        bias = fuse(*(get(f"{attention}.{x}_proj.bias").unsqueeze(1) for x in "qkv")).squeeze(1)
    if model.qk_norm:
        q_norm, k_norm = get(f"{attention}.q_norm.weight") * scale, get(f"{attention}.k_norm.weight")
        qk_norm = torch.stack([q_norm] * group + [k_norm])[:, interleave]
    o_bias = get(f"{attention}.o_proj.bias") if model.o_bias else None
    gate_up = torch.cat([get(f"{mlp}.gate_proj.weight"), get(f"{mlp}.up_proj.weight")])
    o, down = get(f"{attention}.o_proj.weight"), get(f"{mlp}.down_proj.weight")
    if folded:
        return None, qkv * attention_norm, bias, qk_norm, o, o_bias, None, gate_up * mlp_norm, down
    return attention_norm, qkv, bias, qk_norm, o, o_bias, mlp_norm, gate_up, down


def _rotation(model: Described, positions: int) -> Tensor:
    """exp(i * position * frequency), complex64 [positions, head_dim / 2], with the configuration's scaling."""
    kind, factor = model.rope.kind, 1.0
    if kind == "default":
        exponents = torch.arange(0, model.head_dim, 2, dtype=torch.int64).float() / model.head_dim
        frequencies = model.theta**-exponents
    elif kind in SCALED:
        frequencies, factor = _scaled(model)
    else:
        raise UserError(
            f"RoPE scaling {kind!r} is not computed by the embedded engine",
            file=model.file,
            remedy="serve this model with vLLM (kind: http)",
        )
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies.float())
    return torch.polar(torch.full_like(angles, factor), angles)


def _scaled(model: Described) -> tuple[Tensor, float]:
    """transformers' frequencies and factor of a kind of :data:`SCALED`; what is wrong with its settings is a
    UserError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    try:
        config = AutoConfig.from_pretrained(model.file.parent)
        read = config.rope_parameters
        if (read["rope_type"], float(read["rope_theta"])) != (model.rope.kind, model.theta):
            raise ValueError(f"transformers reads {read}")
        frequencies, factor = ROPE_INIT_FUNCTIONS[model.rope.kind](config, "cpu")
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, OSError, StrictDataclassError) as error:
        reason = " ".join(repr(error).split())
        problem = f"RoPE scaling {model.rope.kind!r} with {dict(model.rope.settings)}: {reason}"
        raise UserError(problem, file=model.file, remedy="write its settings as its authors published them") from error
    return frequencies, factor
