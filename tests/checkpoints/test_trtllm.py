"""The TensorRT-LLM checkpoint: an independent reader computes logits from the rank files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_openmath.checkpoints.convert import hf_to_trtllm
from nemo_openmath.checkpoints.formats.trtllm import commands
from nemo_openmath.checkpoints.quantize.dequantize import quantized_model, run_quantized
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from tests.checkpoints.word_models import LONG, word_model
from tests.support import models


def e4m3(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """FP8 as TensorRT-LLM computes it: the input rounded, the product of payloads times both scales."""
    if f"{name}.weights_scaling_factor" not in w:
        return x @ w[f"{name}.weight"].T
    return e4m3(x, w[f"{name}.activation_scaling_factor"]) @ w[f"{name}.weight"].T * w[f"{name}.weights_scaling_factor"]


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
                    linear(F.silu(linear(y, w, "mlp.fc")) * linear(y, w, "mlp.gate"), w, "mlp.proj") for w in weights
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
        qkv = linear(x, w, "attention.qkv")
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
        if (scale := w.get("attention.kv_cache_scaling_factor")) is not None:
            k, v = e4m3(k, scale), e4m3(v, scale)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return linear(out.transpose(1, 2).flatten(2), w, "attention.dense")

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
    files = {"config.json", "lineage.json", "tokenizer"} | {f"rank{r}.safetensors" for r in range(8)}
    assert {p.name for p in made.iterdir()} == files
    for rank in range(8):
        tensors = load_file(made / f"rank{rank}.safetensors")
        assert {name: tuple(t.shape) for name, t in tensors.items()} == layers | (first if rank < 4 else last)
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    written = json.loads((made / "config.json").read_text())
    assert written["mapping"] == {"world_size": 8, "tp_size": 4, "pp_size": 2, "gpus_per_node": 8}
    assert (written["rotary_base"], written["dtype"], written["architecture"]) == (1e6, "bfloat16", "Qwen2ForCausalLM")
    assert written["quantization"]["quant_algo"] is None
    build, serve = commands(made)
    assert build.startswith(f"trtllm-build --checkpoint_dir {made} ")
    assert "--tp_size 4 --pp_size 2" in serve
    assert f"--tokenizer {made}/tokenizer " in serve
    assert (made / "tokenizer/generation_config.json").is_file()


SCALES = {"weights_scaling_factor": (1,), "activation_scaling_factor": (1,)}


@pytest.mark.parametrize("format", ["fp8", "fp8_kv"])
def test_fp8(tmp_path: Path, format: Any) -> None:
    source = word_model(tmp_path / "hf")
    folder = quantize(source, tmp_path / "fp8", format=format, calibration=LONG)
    made = hf_to_trtllm(folder, tmp_path / "trt", tp=2, pp=2)
    described = json.loads((made / "config.json").read_text())
    cached = format == "fp8_kv"
    assert described["quantization"] == {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8" if cached else None,
        "exclude_modules": ["lm_head"],
    }
    assert described["dtype"] == "float32"
    linear = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    ranks = [load_file(made / f"rank{n}.safetensors") for n in range(4)]
    for tensors in ranks:  # names, shapes and dtypes, exactly
        names = {f"{name}.{end}": shape for name in linear for end, shape in SCALES.items()}
        names |= {"attention.kv_cache_scaling_factor": (1,)} if cached else {}
        layer = {name.removeprefix("transformer.layers.0."): t for name, t in tensors.items() if "layers.0." in name}
        scales = {name: tuple(t.shape) for name, t in layer.items() if "scaling_factor" in name}
        assert scales == names
        assert {t.dtype for name, t in layer.items() if name in scales} == {torch.float32}
        payloads = {name for name, t in layer.items() if t.dtype == torch.float8_e4m3fn}
        assert payloads == {f"{name}.weight" for name in linear}
    hf = load_file(folder / "model.safetensors")
    for stage in range(2):  # the payloads of both ranks, put together, are the source's, bit for bit
        a, b = (ranks[2 * stage + n] for n in range(2))
        for name, part, axis in (("mlp.gate", "mlp.up_proj", 0), ("attention.dense", "self_attn.o_proj", 1)):
            whole = torch.cat([r[f"transformer.layers.0.{name}.weight"].view(torch.uint8) for r in (a, b)], axis)
            assert torch.equal(whole, hf[f"model.layers.{stage}.{part}.weight"].view(torch.uint8))
        if cached:
            largest = max(hf[f"model.layers.{stage}.self_attn.{x}_proj.{x}_scale"].item() for x in "kv")
            assert a["transformer.layers.0.attention.kv_cache_scaling_factor"].item() == largest
            for x in "kv":  # the model that is expected below has this one scale, too
                hf[f"model.layers.{stage}.self_attn.{x}_proj.{x}_scale"] = torch.tensor(largest)
    save_file(hf, folder / "model.safetensors")
    found = Ranks(made).logits()
    expected = run_quantized(quantized_model(folder, source), folder, models.tokens())
    # sums in another order move some inputs by a step of e4m3; a lost or exchanged scale gives more than 1
    assert (found - expected).norm() < 0.03 * expected.norm()
    build, _ = commands(made)
    assert "--gemm_plugin auto" in build
    assert ("--use_fp8_context_fmha enable" in build) == cached


def test_fp8_of_parts_with_different_scales(tmp_path: Path) -> None:
    """Foreign exports give q, k and v scales of their own; TensorRT-LLM has one, so the others are rounded again."""
    folder = quantize(word_model(tmp_path / "hf"), tmp_path / "fp8", format="fp8", calibration=LONG)
    tensors = load_file(folder / "model.safetensors")
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    tensors[f"{k}_scale"] = 4 * tensors[f"{k}_scale"]
    save_file(tensors, folder / "model.safetensors")
    held = load_file(hf_to_trtllm(folder, tmp_path / "trt") / "rank0.safetensors")
    qkv = held["transformer.layers.0.attention.qkv.weight"].float()
    assert held["transformer.layers.0.attention.qkv.weights_scaling_factor"].item() == tensors[f"{k}_scale"].item()
    assert torch.equal(qkv[128:192], tensors[k].float())
    assert torch.equal(qkv[:128], (tensors[q].float() / 4).to(torch.float8_e4m3fn).float())
    del tensors[f"{q}_scale"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj\.weight has no .*q_proj\.weight_scale"):
        hf_to_trtllm(folder, tmp_path / "x")
    with pytest.raises(UserError, match=r"is quantized \(FP8\)"):
        hf_to_trtllm(folder, tmp_path / "x", quantization="int8")


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
