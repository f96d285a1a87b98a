"""Hugging Face directory -> weights laid out for decoding.

Four rewrites are made once, at load, so that the decoding step needs fewer operations; none changes the function:

* Q, K and V are one matrix whose rows are grouped by KV head, ``[kv_head, (q_1 .. q_G, k, v), head_dim]``, so that the
  heads of one group lie side by side and grouped-query attention is one batched matrix product without copies.
* The head dimensions of Q and K are interleaved, ``(0, d/2, 1, d/2+1, ..)``: the rotation of rotary embedding becomes
  one complex product in place.
* The softmax scale goes into Q, and the weights of the two norms of a layer go into the matrices that follow them.
* gate and up are one matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.errors import UserError

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer; matrices are [out, in]."""

    qkv: Tensor  # [kv_heads * (group + 2) * head_dim, hidden]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # Qwen3: [group + 1, head_dim], of q_1 .. q_G and k
    o: Tensor  # [hidden, heads * head_dim]
    o_bias: Tensor | None
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
    config = _read_config(path)
    limit = int(config.max_position_embeddings)
    if max_context is not None and max_context > limit:
        raise UserError(
            f"max_context {max_context} exceeds the model's {limit} positions",
            file=path / "config.json",
            remedy=f"use max_context <= {limit}",
        )
    context = max_context or limit
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    with ExitStack() as stack:
        read = _open_tensors(path, stack)

        def get(name: str) -> Tensor:
            tensor = read(name)
            assert tensor is not None  # only optional names may be missing, and those use `read`
            return tensor.float()

        embedding = get("model.embed_tokens.weight")
        head = embedding if config.tie_word_embeddings else get("lm_head.weight")
        layers = []
        for i in range(int(config.num_hidden_layers)):
            layer = _layer(get, read, f"model.layers.{i}", heads, kv_heads, head_dim)
            placed_layer: Any = (None if t is None else t.to(device, dtype).contiguous() for t in layer)
            layers.append(Layer(*placed_layer))
        placed = embedding.to(device, dtype)
        return Weights(
            embedding=placed,
            layers=tuple(layers),
            norm=get("model.norm.weight").to(device, dtype),
            head=placed if head is embedding else head.to(device, dtype),
            rotation=_rotation(config, context, head_dim).to(device),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            eps=float(config.rms_norm_eps),
            max_context=context,
        )


def _layer(
    get: Callable[[str], Tensor],
    read: Callable[[str, bool], Tensor | None],
    prefix: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> tuple[Tensor | None, ...]:
    group = heads // kv_heads
    interleave = torch.arange(head_dim).view(2, head_dim // 2).t().flatten()
    scale = head_dim**-0.5
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    before_attention = get(f"{prefix}.input_layernorm.weight")
    before_mlp = get(f"{prefix}.post_attention_layernorm.weight")
    q_norm, k_norm = read(f"{attention}.q_norm.weight", True), read(f"{attention}.k_norm.weight", True)

    def fuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[heads * head_dim, n] and twice [kv_heads * head_dim, n] -> [kv_heads * (group + 2) * head_dim, n]."""
        n = q.shape[1]
        q = q.view(kv_heads, group, head_dim, n)[:, :, interleave]
        if q_norm is None:
            q = q * scale
        k = k.view(kv_heads, 1, head_dim, n)[:, :, interleave]
        return torch.cat([q, k, v.view(kv_heads, 1, head_dim, n)], 1).view(-1, n)

    qkv = fuse(*(get(f"{attention}.{x}_proj.weight") for x in "qkv")) * before_attention
    bias = None
    if read(f"{attention}.q_proj.bias", True) is not None:
        bias = fuse(*(get(f"{attention}.{x}_proj.bias").unsqueeze(1) for x in "qkv")).squeeze(1)
    qk_norm = None
    if q_norm is not None and k_norm is not None:
        qk_norm = torch.stack([q_norm.float() * scale] * group + [k_norm.float()])[:, interleave]
    o_bias = read(f"{attention}.o_proj.bias", True)
    gate_up = torch.cat([get(f"{mlp}.gate_proj.weight"), get(f"{mlp}.up_proj.weight")]) * before_mlp
    return qkv, bias, qk_norm, get(f"{attention}.o_proj.weight"), o_bias, gate_up, get(f"{mlp}.down_proj.weight")


def _read_config(path: Path) -> Any:
    from transformers import AutoConfig

    file = path / "config.json"
    if not file.is_file():
        raise UserError("no model here (config.json is missing)", file=path, remedy="name a Hugging Face directory")
    try:
        architectures = json.loads(file.read_text()).get("architectures") or []
        config = AutoConfig.from_pretrained(path)
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"not a model configuration: {error}", file=file, remedy="export the model again") from error
    if not set(architectures) & set(ARCHITECTURES):
        raise UserError(
            f"architecture {architectures} is not one the embedded engine computes",
            file=file,
            remedy=f"use one of {', '.join(ARCHITECTURES)}, or serve it with vLLM (kind: http)",
        )
    window = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    for refused, what in (
        (window, "sliding-window attention"),
        (config.hidden_act != "silu", f"activation {config.hidden_act}"),
        (getattr(config, "mlp_bias", False), "MLP biases"),
        (getattr(config, "quantization_config", None) is not None, "quantized weights"),
    ):
        if refused:
            raise UserError(f"{what} is not computed by the embedded engine", file=file, remedy="serve it with vLLM")
    return config


def _rotation(config: Any, positions: int, head_dim: int) -> Tensor:
    """exp(i * position * frequency), complex64 [positions, head_dim / 2], with the configuration's scaling."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    factor = 1.0
    if kind == "default":
        theta = float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    elif kind in ("linear", "llama3", "yarn"):
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    else:
        raise UserError(f"rope type {kind!r} changes with the length", remedy="serve this model with vLLM (kind: http)")
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies.float())
    return torch.polar(torch.full_like(angles, factor), angles)


def _open_tensors(path: Path, stack: ExitStack) -> Callable[..., Tensor | None]:
    """Return ``read(name, optional=False)`` over all safetensors files of ``path``."""
    from safetensors import SafetensorError, safe_open

    where: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            handle = stack.enter_context(safe_open(file, framework="pt"))
        except SafetensorError as error:
            raise UserError(f"damaged weights: {error}", file=file, remedy="export the model again") from error
        where.update(dict.fromkeys(handle.keys(), handle))
    if not where:
        raise UserError("no *.safetensors weights here", file=path, remedy="save the model with safe_serialization")

    def read(name: str, optional: bool = False) -> Tensor | None:
        if name not in where:
            if optional:
                return None
            raise UserError(f"weights lack {name}", file=path, remedy="export the model again")
        return where[name].get_tensor(name)

    return read
