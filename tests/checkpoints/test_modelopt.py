"""Our exports against nvidia-modelopt's own, of one model calibrated on the same tokens. Runs where it is installed:

pip install nvidia-modelopt==0.47.0 requests; pytest tests/checkpoints/test_modelopt.py
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_openmath.checkpoints.convert import hf_to_trtllm
from nemo_openmath.checkpoints.quantize import awq
from nemo_openmath.checkpoints.quantize.dequantize import check_export, dequantized, quantized_model, run_quantized
from nemo_openmath.checkpoints.quantize.export import QUANT_CONFIG, quantize
from tests.checkpoints.word_models import word_model
from tests.support import models

pytest.importorskip("modelopt", reason="compares with nvidia-modelopt, where it is installed")
TEXTS = [" ".join(f"w{(17 * n + 31 * t * t + n * n) % 107}" for n in range(64)) for t in range(4)]
FORMATS = ("fp8", "fp8_kv", "int8", "int4_awq")


def theirs(source: Path, folder: Path, format: str) -> Tensor:
    """ModelOpt's export in ``folder``; returns its fake-quantized model's logits."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    configs: dict[str, Any] = {"int8": mtq.INT8_WEIGHT_ONLY_CFG, "int4_awq": mtq.INT4_AWQ_CFG}
    config = copy.deepcopy(configs.get(format, mtq.FP8_DEFAULT_CFG))
    if format == "fp8_kv":
        config["quant_cfg"] = [*config["quant_cfg"], *mtq.FP8_KV_CFG["quant_cfg"]]

    def loop(model: Any) -> None:
        for text in TEXTS:
            model(torch.tensor([[int(word[1:]) for word in text.split()]]))

    model = mtq.quantize(model, config, loop)
    with torch.inference_mode():
        logits = model(models.tokens()).logits
        export_hf_checkpoint(model, export_dir=str(folder))
    return logits


@pytest.mark.parametrize("format", FORMATS)
def test_export_equals_modelopts(tmp_path: Path, format: Any) -> None:
    source = word_model(tmp_path / "hf")
    fake = theirs(source, tmp_path / "theirs", format)
    ours = quantize(source, tmp_path / "ours", format=format, calibration=TEXTS)
    a, b = load_file(ours / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in a.items()} == {name: (t.dtype, t.shape) for name, t in b.items()}
    assert config_of(ours) == config_of(tmp_path / "theirs")
    for name, tensor in b.items():
        fused = any(f"{x}_proj." in name for x in ("q", "k", "v", "gate", "up"))
        if format == "int8" or (format != "int4_awq" and not fused):
            assert torch.equal(a[name].float(), tensor.float()), name
        elif name.endswith(("input_scale", "k_scale", "v_scale")):
            torch.testing.assert_close(a[name], tensor, rtol=1e-5, atol=0.0)
        elif name.endswith("weight_scale") and format != "int4_awq":
            assert a[name] >= tensor  # ours is shared by what engines fuse
    # their export, read by our dequantizer and run with our rounding, is their fake-quantized model
    read = run_quantized(quantized_model(tmp_path / "theirs", source), tmp_path / "theirs", models.tokens())
    if format != "int4_awq":
        torch.testing.assert_close(read, fake, rtol=0, atol=1e-4)
    else:  # they give q, k, v one scale at export, after the fake model; the weights themselves then
        norms, original = dequantized(tmp_path / "theirs"), load_file(source / "model.safetensors")
        for name, tensor in original.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                assert (norms[name].full() - tensor).norm() < 0.15 * tensor.norm(), name
                if "o_proj" in name:  # whose factors they may put into v's rows
                    continue
                # the search found the same exponent, and with it our rounding and packing give their bytes
                scale = b[name.removesuffix("weight") + "pre_quant_scale"]
                torch.testing.assert_close(a[name.removesuffix("weight") + "pre_quant_scale"], scale, rtol=1e-4, atol=0)
                values, scales = awq.rounded(tensor / scale.float())
                torch.testing.assert_close(scales, b[f"{name}_scale"], rtol=1e-6, atol=0)
                theirs_values = unpacked(b[name])
                assert (values != theirs_values).float().mean() < 1e-3, name  # ties that fp32 rounding turns
                assert (unpacked(a[name]) != theirs_values).float().mean() < 1e-2, name
    ours_check, theirs_check = (check_export(f, source, TEXTS) for f in (ours, tmp_path / "theirs"))
    assert ours_check.error < 1.1 * theirs_check.error
    assert dequantized(ours).keys() == dequantized(tmp_path / "theirs").keys()


def unpacked(payload: Tensor) -> Tensor:
    """uint8 [out/2, in] -> int8 [out, in], two rows a byte, the first in the low half."""
    signed = payload.view(torch.int8)
    return torch.stack([(signed << 4) >> 4, signed >> 4], 1).flatten(0, 1)


def config_of(folder: Path) -> tuple[Any, Any]:
    a = json.loads((folder / QUANT_CONFIG).read_text())["quantization"]
    b = json.loads((folder / "config.json").read_text())["quantization_config"]
    return a, {key: value for key, value in b.items() if key not in ("producer", "group_size")}


def test_rank_files_equal_modelopts(tmp_path: Path) -> None:
    """ModelOpt's own TensorRT-LLM checkpoint (deprecated there) of the same FP8 model: the same names, shapes, dtypes,
    and but for the scales that we share among fused layers the same bytes."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from transformers import AutoModelForCausalLM

    source = word_model(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()

    def loop(model: Any) -> None:
        for text in TEXTS:
            model(torch.tensor([[int(word[1:]) for word in text.split()]]))

    model = mtq.quantize(model, copy.deepcopy(mtq.FP8_DEFAULT_CFG), loop)
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(model, "qwen", torch.float16, tmp_path / "theirs", 1, 1)
    made = hf_to_trtllm(
        quantize(source, tmp_path / "q", format="fp8", calibration=TEXTS), tmp_path / "ours", dtype=torch.float16
    )
    a, b = (load_file(folder / "rank0.safetensors") for folder in (made, tmp_path / "theirs"))
    assert {n: (t.dtype, t.numel()) for n, t in a.items()} == {n: (t.dtype, t.numel()) for n, t in b.items()}
    for name, tensor in b.items():
        if name.startswith("transformer.layers") and name.endswith("scaling_factor"):
            assert a[name].item() == pytest.approx(tensor.item(), rel=1e-6) or "mlp.fc" in name or "mlp.gate" in name
        elif tensor.dtype == torch.float8_e4m3fn and "mlp.fc" not in name and "mlp.gate" not in name:
            assert (a[name].view(torch.uint8) != tensor.view(torch.uint8)).float().mean() < 1e-3, name
        elif tensor.dtype != torch.float8_e4m3fn:
            assert torch.equal(a[name], tensor), name
