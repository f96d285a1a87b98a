"""Quantized exports against hand-computed values and against the model they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.lazy import InMemory
from nemo_openmath.checkpoints.quantize import awq
from nemo_openmath.checkpoints.quantize.calibration import calibrate
from nemo_openmath.checkpoints.quantize.dequantize import (
    check_export,
    dequantized,
    quantized_model,
    run_quantized,
    write_dequantized,
)
from nemo_openmath.checkpoints.quantize.export import QUANT_CONFIG, _Int4, _Words, quantize
from nemo_openmath.checkpoints.script import texts
from nemo_openmath.core.errors import UserError
from tests.checkpoints.word_models import LONG, with_tokenizer, word_model
from tests.support import models
from tests.support.fake_cuda import GIB, fake_cuda

TEXTS = ["w3 w5 w7 w9", "w1 w1 w2 w100"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return with_tokenizer(models.make(tmp_path / "hf", models.UNTIED))


def logits_of(weights: dict[str, torch.Tensor], source: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(models.tokens()).logits


def test_int8_by_hand(tmp_path: Path, source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][0] = torch.linspace(-1.27, 1.27, 80)
    tensors[name][1] = 0.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    made = load_file(quantize(source, tmp_path / "q", format="int8") / "model.safetensors")
    assert made[name].dtype == torch.int8
    assert made[f"{name}_scale"][:2].tolist() == pytest.approx([0.01, 1.0])
    assert (
        made[name][0].tolist()
        == (torch.linspace(-1.27, 1.27, 80) / (tensors[name][0].abs().max() / 127)).round().tolist()
    )
    assert not made[name][1].any()
    assert set(made) == set(tensors) | {f"{n}_scale" for n in tensors if n.endswith("proj.weight")}
    assert made["lm_head.weight"].dtype == torch.float32


def test_int8_keeps_the_model(tmp_path: Path, source: Path) -> None:
    made = quantize(source, tmp_path / "q", format="int8")
    original = load_file(source / "model.safetensors")
    fake = dict(original)
    for name, tensor in original.items():
        if name.endswith("proj.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            fake[name] = (tensor / scale).round() * scale
    ours = {name: tensor.full() for name, tensor in dequantized(made).items()}
    torch.testing.assert_close(logits_of(ours, source), logits_of(fake, source), rtol=0, atol=1e-5)
    drift = (logits_of(ours, source) - models.logits(source)).norm() / models.logits(source).norm()
    assert 1e-4 < drift < 0.05
    written = json.loads((made / QUANT_CONFIG).read_text())
    assert written["quantization"] == {
        "quant_algo": "W8A16",
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head", "model.embed_tokens"],
    }
    assert json.loads((made / "config.json").read_text())["quantization_config"]["quant_method"] == "modelopt"


def test_fp8_shares_the_scales_of_fused_layers(tmp_path: Path, source: Path) -> None:
    made = quantize(source, tmp_path / "q", format="fp8", calibration=TEXTS)
    tensors, original = load_file(made / "model.safetensors"), load_file(source / "model.safetensors")
    q, k, v = (f"model.layers.2.self_attn.{x}_proj." for x in "qkv")
    assert tensors[q + "weight"].dtype == torch.float8_e4m3fn
    largest = max(original[x + "weight"].abs().max().item() for x in (q, k, v))
    for part in (q, k, v):
        assert tensors[part + "weight_scale"].item() == pytest.approx(largest / 448)
        assert tensors[part + "input_scale"].item() == tensors[q + "input_scale"].item()
    expected = (original[k + "weight"] / tensors[k + "weight_scale"]).to(torch.float8_e4m3fn)
    assert torch.equal(tensors[k + "weight"].view(torch.uint8), expected.view(torch.uint8))
    ours = {name: tensor.full() for name, tensor in dequantized(made).items()}
    for name, tensor in original.items():
        error = (ours[name] - tensor).abs()
        if name.endswith("proj.weight"):  # three bits of mantissa; below 2**-6 steps, the smallest, of 2**-9
            assert (error <= tensor.abs() / 16 + tensors[f"{name}_scale"] * 2.0**-10).all(), name
        else:
            assert not error.any()
    drift = (logits_of(ours, source) - models.logits(source)).norm() / models.logits(source).norm()
    assert 1e-3 < drift < 0.3  # of random weights; a scale that is lost or swapped gives more than 1


def test_fp8_input_scale_is_the_largest_input(tmp_path: Path, source: Path) -> None:
    made = load_file(quantize(source, tmp_path / "q", format="fp8", calibration=TEXTS) / "model.safetensors")
    weights = load_file(source / "model.safetensors")
    ids = sorted({int(word[1:]) for text in TEXTS for word in text.split()})
    x = weights["model.embed_tokens.weight"][ids]
    x = torch.nn.functional.rms_norm(x, (48,), weights["model.layers.0.input_layernorm.weight"], 1e-6)
    expected = x.abs().max().item() / 448
    assert made["model.layers.0.self_attn.q_proj.input_scale"].item() == pytest.approx(expected, rel=1e-5)


def test_calibration_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    assert texts(tmp_path / "a.txt", 2) == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "n": 3, "solution": "s"}\n"plain"\n{\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3: not JSON"):
        texts(tmp_path / "a.jsonl", 9)
    assert texts(tmp_path / "a.jsonl", 2) == ["p\ns", "plain"]
    (tmp_path / "part-00000-of-00001.jsonl").write_text('{"id": "x1", "problem": "p", "generation": "g"}\n')
    (tmp_path / "drops-00000-of-00001.jsonl").write_text('{"unit": "u", "reason": "r"}\n')
    (tmp_path / "journal-00000-of-00001.jsonl").write_text('{"unit": "u"}\n')
    with pytest.raises(UserError, match="the folder of a stage that has not finished"):
        texts(tmp_path, 9)
    (tmp_path / "manifest.json").write_text("{}")
    assert texts(tmp_path, 9) == ["p\ng"]  # of a stage's folder its records, of a record its prose
    transcript = {"messages": [{"role": "user", "content": "p"}], "pieces": [{"author": "model", "text": "s"}]}
    record = json.dumps({"id": "generation-1", "transcript": transcript, "finish": "stop"})
    (tmp_path / "part-00000-of-00001.jsonl").write_text(record)
    assert texts(tmp_path, 9) == ["p\ns"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no \.jsonl, \.json, \.csv"):
        texts(tmp_path / "empty", 9)
    with pytest.raises(UserError, match="-3 calibration texts; use 1 or more"):
        texts(tmp_path / "a.txt", -3)
    (tmp_path / "b.csv").write_text("problem,level\nHow many?,3\n")
    assert texts(tmp_path / "b.csv", 9) == ["How many?"]
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(UserError, match=r"b\.csv: holds no text"):
        texts(tmp_path / "b.csv", 9)


def test_refusals(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r"fp8 needs to know the activations; give texts \(--calibration FILE\)"):
        quantize(source, tmp_path / "q", format="fp8")
    with pytest.raises(UserError, match="format 'int3'; use one of fp8, fp8_kv, int8, int4_awq"):
        quantize(source, tmp_path / "q", format="int3")  # type: ignore[arg-type]


def fake_quantized_logits(folder: Path, source: Path) -> torch.Tensor:
    """transformers with weights and inputs rounded here, from the tensors of the export alone."""
    held = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if f"{name}.input_scale" in held:
            w, s, x = (held[f"{name}.{t}"].float() for t in ("weight", "weight_scale", "input_scale"))
            module.weight.data = w * s
            module.register_forward_pre_hook(
                lambda _, a, x=x: ((a[0] / x).clamp(-448, 448).to(torch.float8_e4m3fn).float() * x,)
            )
    with torch.no_grad():
        return model(models.tokens()).logits


def test_fp8_is_the_fake_quantized_model(tmp_path: Path) -> None:
    source = word_model(tmp_path / "hf")
    made = quantize(source, tmp_path / "q", format="fp8", calibration=LONG)
    ours = run_quantized(quantized_model(made, source), made, models.tokens())
    torch.testing.assert_close(ours, fake_quantized_logits(made, source), rtol=0, atol=1e-5)


def test_fp8_cache_scales_are_of_keys_after_rope_and_of_values(tmp_path: Path) -> None:
    source = word_model(tmp_path / "hf")
    made = quantize(source, tmp_path / "q", format="fp8_kv", calibration=LONG)
    held = load_file(made / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    largest = torch.zeros(2, 2)
    for text in LONG:
        with torch.no_grad():
            cache = model(torch.tensor([[int(word[1:]) for word in text.split()]]), use_cache=True).past_key_values
        for n, layer in enumerate(cache.layers):
            largest[n] = largest[n].maximum(torch.stack([layer.keys.abs().max(), layer.values.abs().max()]))
    for n in range(2):
        for letter, peak in zip("kv", largest[n], strict=True):
            found = held[f"model.layers.{n}.self_attn.{letter}_proj.{letter}_scale"]
            assert found.item() == pytest.approx(peak.item() / 448, rel=1e-5)
    written = json.loads((made / QUANT_CONFIG).read_text())["quantization"]
    assert (written["quant_algo"], written["kv_cache_quant_algo"]) == ("FP8", "FP8")
    check = check_export(made, source, LONG)
    plain = check_export(quantize(source, tmp_path / "p", format="fp8", calibration=LONG), source, LONG)
    assert plain.error < check.error < 0.4  # the cache's rounding adds; a lost scale gives more than 1


def test_int4_by_hand() -> None:
    weight = torch.zeros(2, 128)
    weight[0, :4] = torch.tensor([7.0, -7.0, 3.4, -0.6])
    weight[1, :2] = torch.tensor([-1.4, 0.2])
    values, scale = awq.rounded(weight)
    assert scale.flatten().tolist() == pytest.approx([1.0, 0.2])
    assert values[:, :4].tolist() == [[7, -7, 3, -1], [-7, 1, 0, 0]]
    packed = _Int4(InMemory(weight), scale, rows_a_byte=2).full()
    # row 0 in the low half, two's complement: 7 | -7 << 4, -7 | 1 << 4, 3, -1
    assert packed[0, :4].tolist() == [0x7 | 0x9 << 4, 0x9 | 0x1 << 4, 0x3, 0xF]
    words = _Words(_Int4(InMemory(weight), scale), 4).full()
    assert words.dtype == torch.int32
    # 7 + 8, -7 + 8, 3 + 8, -1 + 8, then zeros + 8: lowest first
    assert words[0, 0].item() & 0xFFFFFFFF == 0x88887B1F


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
def test_awq_betters_plain_rounding(tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = word_model(tmp_path / "hf")
    made = quantize(source, tmp_path / "q", format="int4_awq", calibration=LONG, layout=layout)
    found = check_export(made, source, LONG)
    monkeypatch.setattr(awq, "search", lambda weight, mean, x: torch.ones_like(mean))
    plain = check_export(
        quantize(source, tmp_path / "p", format="int4_awq", calibration=LONG, layout=layout), source, LONG
    )
    assert found.error < 0.95 * plain.error
    with torch.no_grad():  # scaling alone, without rounding, does not change the function
        monkeypatch.undo()
        activations = calibrate(source, LONG, 64)
        scaled = awq.scaled(open_checkpoint(source).tensors, activations, stored_scales=False)
        weights = {name: tensor.full() for name, tensor in scaled.items()}
        torch.testing.assert_close(logits_of(weights, source), models.logits(source), rtol=0, atol=1e-4)


def test_calibration_runs_on_the_gpu_and_measures_the_same(tmp_path: Path) -> None:
    source = word_model(tmp_path / "hf")
    here = calibrate(source, LONG, 64, "cpu")
    with fake_cuda(memory_bytes=GIB), pytest.raises(UserError, match=r"the GPU's memory, and 1\.0 GiB are free"):
        calibrate(source, LONG, 64, "cuda")
    with fake_cuda() as cuda:
        there = calibrate(source, LONG, 64)
        assert cuda.devices_in_use == {0}
        assert not any(t.is_cuda for t in (*there.mean.values(), *there.rows.values()))
    assert (here.largest, here.cache) == (there.largest, there.cache)
    assert all(torch.equal(here.rows[group], there.rows[group]) for group in here.rows)


def test_int8_in_both_layouts_is_one_model(tmp_path: Path) -> None:
    source = word_model(tmp_path / "hf")
    a = dequantized(quantize(source, tmp_path / "a", format="int8"))
    made = quantize(source, tmp_path / "b", format="int8", layout="compressed-tensors")
    b = dequantized(made)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].full(), b[name].full()), name
    assert not (made / QUANT_CONFIG).exists()
    plain = write_dequantized(tmp_path / "a", tmp_path / "plain")
    assert models.same(models.load(plain), {name: tensor.full() for name, tensor in a.items()})
    with pytest.raises(UserError, match="is quantized already"):
        quantize(made, tmp_path / "c", format="int8")
