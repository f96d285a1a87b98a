"""What conversion preserves is the function: logits of the model rebuilt from Megatron's layout equal transformers'.

The rebuilt model is written here in plain torch from Megatron's description (fused QKV per group, fused gate and up),
so it is independent of the code that converts; and exchanging any two things in the checkpoint must show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.formats import torch_dist
from nemo_openmath.models.configs import ModelConfig
from tests.support import models

CONFIG = models.UNTIED


def megatron_logits(weights: dict[str, Tensor], config: ModelConfig) -> Tensor:
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    x = weights["embedding.word_embeddings.weight"][models.tokens()]
    b, s, _ = x.shape
    inverse = config.rope_theta ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(s).float(), inverse).repeat(1, 2)

    def rope(t: Tensor) -> Tensor:  # [b, s, n, size]
        half = torch.cat([-t[..., size // 2 :], t[..., : size // 2]], -1)
        return t * angles.cos()[:, None] + half * angles.sin()[:, None]

    for layer in range(config.num_hidden_layers):
        w = {k.split(".", 3)[3]: v for k, v in weights.items() if k.startswith(f"decoder.layers.{layer}.")}
        y = norm(x, w["self_attention.linear_qkv.layer_norm_weight"])
        qkv = y @ w["self_attention.linear_qkv.weight"].T + w["self_attention.linear_qkv.bias"]
        qkv = qkv.view(b, s, groups, -1, size)
        q, k, v = qkv.split([heads // groups, 1, 1], 3)
        q, k = rope(q.reshape(b, s, heads, size)), rope(k.reshape(b, s, groups, size))
        k, v = (t.reshape(b, s, groups, size).repeat_interleave(heads // groups, 2) for t in (k, v))
        scores = torch.einsum("bqnd,bknd->bnqk", q, k) / size**0.5
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), float("-inf")).softmax(-1)
        mixed = torch.einsum("bnqk,bknd->bqnd", scores, v).reshape(b, s, -1)
        x = x + mixed @ w["self_attention.linear_proj.weight"].T
        y = norm(x, w["mlp.linear_fc1.layer_norm_weight"])
        gate, up = (y @ w["mlp.linear_fc1.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w["mlp.linear_fc2.weight"].T
    return norm(x, weights["decoder.final_layernorm.weight"]) @ weights["output_layer.weight"].T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("logits")
    source = models.make(folder / "hf", CONFIG)
    state = hf_to_megatron(source, folder / "megatron") / "state"
    return models.logits(source), {name: tensor.full() for name, tensor in torch_dist.read(state).items()}


def test_logits_equal_transformers(converted: tuple[Tensor, dict[str, Tensor]]) -> None:
    expected, weights = converted
    torch.testing.assert_close(megatron_logits(weights, CONFIG), expected, rtol=0, atol=1e-5)


FC1, QKV = "decoder.layers.1.mlp.linear_fc1.weight", "decoder.layers.2.self_attention.linear_qkv"
HEAD = CONFIG.head_dim


def gate_up(w: dict[str, Tensor]) -> None:
    w[FC1] = w[FC1].roll(CONFIG.intermediate_size, 0)


def reorder(*blocks: int) -> Callable[[dict[str, Tensor]], None]:
    """Blocks of one head in the QKV of a group (3 queries, key, value), weight and bias."""

    def swap(w: dict[str, Tensor]) -> None:
        for suffix in (".weight", ".bias"):
            t = w[QKV + suffix].clone()
            for to, source in enumerate(blocks):
                w[QKV + suffix][to * HEAD : (to + 1) * HEAD] = t[source * HEAD : (source + 1) * HEAD]

    return swap


def layers(w: dict[str, Tensor]) -> None:
    for name in [name for name in w if name.startswith("decoder.layers.1.")]:
        other = name.replace("layers.1.", "layers.2.")
        w[name], w[other] = w[other], w[name]


def bias_only(w: dict[str, Tensor]) -> None:
    w[QKV + ".bias"] = w[QKV + ".bias"].roll(HEAD)


def norms(w: dict[str, Tensor]) -> None:
    a, b = (f"decoder.layers.0.{x}.layer_norm_weight" for x in ("self_attention.linear_qkv", "mlp.linear_fc1"))
    w[a], w[b] = w[b], w[a]


@pytest.mark.parametrize(
    "exchange",
    [gate_up, reorder(3, 1, 2, 0, 4), reorder(0, 1, 2, 4, 3), reorder(1, 0, 2, 3, 4), layers, bias_only, norms],
    ids=["gate/up", "q/k", "k/v", "two heads", "two layers", "bias", "norms"],
)
def test_every_exchange_shows(
    converted: tuple[Tensor, dict[str, Tensor]], exchange: Callable[[dict[str, Tensor]], None]
) -> None:
    expected, weights = converted
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    exchange(changed)
    assert (megatron_logits(changed, CONFIG) - expected).abs().max() > 1e-3


def test_another_rope_base_shows(converted: tuple[Tensor, dict[str, Tensor]], tmp_path: Path) -> None:
    expected, weights = converted
    source = models.make(tmp_path / "hf", CONFIG)
    folder = hf_to_megatron(source, tmp_path / "megatron", rope_theta=10_000)
    written = ModelConfig.from_hf(folder / "model")
    assert json.loads((folder / "model" / "config.json").read_text())["rope_parameters"]["rope_theta"] == 10_000
    assert (megatron_logits(weights, written) - expected).abs().max() > 1e-4
