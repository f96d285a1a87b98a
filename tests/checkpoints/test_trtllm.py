"""The TensorRT-LLM checkpoint: an independent reader computes logits from the rank files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nemo_openmath.checkpoints.trtllm import commands, hf_to_trtllm
from nemo_openmath.errors import UserError
from nemo_openmath.models.configs import ModelConfig

from . import models


class Ranks:
    """Runs a TensorRT-LLM checkpoint as its ranks would: partial sums over TP, stage after stage over PP."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tp, self.pp = self.config["mapping"]["tp_size"], self.config["mapping"]["pp_size"]
        self.files = [load_file(folder / f"rank{rank}.safetensors") for rank in range(self.tp * self.pp)]

    def logits(self) -> Tensor:
        x = self.files[0]["transformer.vocab_embedding.weight"].to(self.dtype)[models.tokens()]
        for stage in range(self.pp):
            ranks = self.files[stage * self.tp : (stage + 1) * self.tp]
            for layer in range(self.config["num_hidden_layers"] // self.pp):
                prefix = f"transformer.layers.{layer}."
                weights = [
                    {k[len(prefix) :]: v.to(self.dtype) for k, v in r.items() if k.startswith(prefix)} for r in ranks
                ]
                y = self.norm(x, weights[0]["input_layernorm.weight"])
                x = x + sum(self.attention(y, w) for w in weights)
                y = self.norm(x, weights[0]["post_layernorm.weight"])
                x = x + sum(
                    (F.silu(y @ w["mlp.fc.weight"].T) * (y @ w["mlp.gate.weight"].T)) @ w["mlp.proj.weight"].T
                    for w in weights
                )
        x = self.norm(x, ranks[0]["transformer.ln_f.weight"].to(self.dtype))
        return torch.cat([x @ r["lm_head.weight"].to(self.dtype).T for r in ranks], -1)[
            ..., : self.config["vocab_size"]
        ]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config["norm_epsilon"])

    def attention(self, x: Tensor, w: dict[str, Tensor]) -> Tensor:
        size, heads = self.config["head_size"], self.config["num_attention_heads"] // self.tp
        kv = max(1, self.config["num_key_value_heads"] // self.tp)
        qkv = x @ w["attention.qkv.weight"].T
        qkv = qkv + w["attention.qkv.bias"] if self.config["attn_bias"] else qkv
        parts = qkv.split([heads * size, kv * size, kv * size], -1)
        q, k, v = (t.unflatten(-1, (-1, size)).transpose(1, 2) for t in parts)
        if self.config["qk_layernorm"]:
            q, k = self.norm(q, w["attention.q_layernorm.weight"]), self.norm(k, w["attention.k_layernorm.weight"])
        inverse = self.config["rotary_base"] ** (-torch.arange(0, size, 2).float() / size)
        turn = torch.polar(torch.ones(()), torch.outer(torch.arange(x.shape[1]).float(), inverse)).to(
            self.dtype.to_complex()
        )
        q, k = (self.rotate(t, turn) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2) @ w["attention.dense.weight"].T

    @staticmethod
    def rotate(t: Tensor, turn: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        turned = torch.complex(a, b) * turn
        return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize(
    ("config", "tp", "pp"),
    [(models.UNTIED, 2, 2), (models.TIED, 1, 1), (models.WIDE, 4, 1), (models.WIDE.with_changes(rope_theta=1e4), 8, 2)],
)
def test_logits_from_rank_files(tmp_path: Path, config: ModelConfig, tp: int, pp: int) -> None:
    source = models.make(tmp_path / "hf", config)
    made = hf_to_trtllm(source, tmp_path / "trt", tp=tp, pp=pp)
    torch.testing.assert_close(Ranks(made).logits(), models.logits(source), rtol=0, atol=1e-5)


def test_qwen3(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    source = models.make(tmp_path / "hf", models.QWEN3)
    made = hf_to_trtllm(source, tmp_path / "trt", tp=2, pp=2)
    # in float64: its norms of every head leave 1e-5 of rounding in fp32, in the reader and in transformers alike
    model = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(models.tokens()).logits
    torch.testing.assert_close(Ranks(made, torch.float64).logits(), expected, rtol=0, atol=1e-5)


def test_bf16_is_exact(tmp_path: Path) -> None:
    """bf16 weights are passed on unchanged: fp32 arithmetic over them gives the logits of the fp32 model."""
    source = models.make(tmp_path / "hf", dtype=torch.bfloat16)
    made = hf_to_trtllm(source, tmp_path / "trt", tp=2, pp=2, quantization="int8")
    torch.testing.assert_close(Ranks(made).logits(), models.logits(source), rtol=0, atol=1e-5)


def test_names_shapes_and_dtypes(tmp_path: Path) -> None:
    made = hf_to_trtllm(models.make(tmp_path / "hf", models.WIDE), tmp_path / "trt", tp=4, pp=2, dtype=torch.bfloat16)
    layer = {
        "attention.qkv.weight": (16 + 8 + 8, 64),  # 2 of 8 heads, 1 of 2 KV heads (on two ranks each)
        "attention.qkv.bias": (32,),
        "attention.dense.weight": (64, 16),
        "input_layernorm.weight": (64,),
        "post_layernorm.weight": (64,),
        "mlp.fc.weight": (20, 64),
        "mlp.gate.weight": (20, 64),
        "mlp.proj.weight": (64, 20),
    }
    layers = {f"transformer.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    first = {"transformer.vocab_embedding.weight": (107, 64)}
    last = {"transformer.ln_f.weight": (64,), "lm_head.weight": (27, 64)}  # 107 padded to 108
    files = {"config.json", "lineage.json"} | {f"rank{r}.safetensors" for r in range(8)}
    assert {p.name for p in made.iterdir()} == files
    for rank in range(8):
        tensors = load_file(made / f"rank{rank}.safetensors")
        assert {name: tuple(t.shape) for name, t in tensors.items()} == layers | (first if rank < 4 else last)
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    written = json.loads((made / "config.json").read_text())
    assert written["mapping"] == {"world_size": 8, "tp_size": 4, "pp_size": 2, "gpus_per_node": 8}
    assert (written["rotary_base"], written["dtype"], written["architecture"]) == (1e6, "bfloat16", "Qwen2ForCausalLM")
    assert written["quantization"]["quant_algo"] is None
    build, serve = commands(made, tmp_path / "hf")
    assert build.startswith(f"trtllm-build --checkpoint_dir {made} ")
    assert "--tp_size 4 --pp_size 2" in serve


@pytest.mark.parametrize(("quantization", "algorithm"), [("int8", "W8A16"), ("int4", "W4A16")])
def test_weight_only_is_left_to_the_loader(tmp_path: Path, quantization: Any, algorithm: str) -> None:
    made = hf_to_trtllm(models.make(tmp_path / "hf"), tmp_path / "trt", quantization=quantization)
    assert json.loads((made / "config.json").read_text())["quantization"]["quant_algo"] == algorithm


def test_layouts_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    with pytest.raises(UserError, match="6 attention heads are not divisible by tp = 4"):
        hf_to_trtllm(source, tmp_path / "trt", tp=4)
    with pytest.raises(UserError, match="4 layers are not divisible by pp = 3"):
        hf_to_trtllm(source, tmp_path / "trt", pp=3)
    assert not (tmp_path / "trt").exists()
