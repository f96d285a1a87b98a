"""One reader of model folders: what transformers would compute is computed, or refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.convert import hf_to_megatron, hf_to_trtllm, megatron_to_hf
from nemo_openmath.checkpoints.formats.safetensors import INDEX, SINGLE
from nemo_openmath.checkpoints.inspect import inspect
from nemo_openmath.checkpoints.merge.combine import average
from nemo_openmath.checkpoints.quantize.calibration import load_model
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.core.errors import DamagedFile, OpenMathError, UserError
from nemo_openmath.inference.embedded.decoder import PrefillChunk
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import FIXED, NEUTRAL, TAKEN
from nemo_openmath.speculative.frozen import load_base
from nemo_openmath.speculative.settings import DrafterSettings
from tests.support import models

IDS = [(7 * i + 3) % 107 for i in range(40)]


@pytest.fixture(autouse=True)
def _says_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are said once in a process; here each test is one."""
    monkeypatch.setattr("nemo_openmath.models.hf_config._logged", set())


def theirs(folder: Path) -> Tensor:
    """transformers' logits [vocab] behind the last of IDS."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as quiet

    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]


def engines(folder: Path) -> Tensor:
    """The embedded engine's logits of the same."""
    with torch.inference_mode():
        return (
            TorchDecoder(load_weights(folder, max_context=64), 1)
            .prefill([PrefillChunk(0, 0, np.array(IDS))])[0]
            .clone()
        )


def trainings(folder: Path) -> Tensor:
    """Logits of the function that training computes, from the configuration and the tensors that it reads. (That
    Megatron's model of a ModelConfig is transformers' is shown in tests/training.)"""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape, opened = ModelConfig.from_hf(folder), open_checkpoint(folder)
    raw = shape.to_hf()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=torch.float32)
    state = {
        name: tensor
        for entry in hf_mapping.stored_tensors(shape)
        for name, tensor in zip(dict(entry.sources), hf_mapping.read_sources(entry, opened.read), strict=True)
    }
    found = model.eval().load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]


READERS = {"training": trainings, "engine": engines}
TOOLS: dict[str, Callable[[Path, Path], object]] = {
    "convert": hf_to_megatron,
    "average": lambda source, target: average([source, source], target),
    "export": hf_to_trtllm,
    "quantize": lambda source, target: quantize(source, target, format="int8"),
    "calibrate": lambda source, _: load_model(source),
    "drafter": lambda source, _: load_base(source, DrafterSettings()),
    "training": lambda source, _: trainings(source),
    "engine": lambda source, _: engines(source),
}


def refused(folder: Path, match: str, *tools: str) -> None:
    """By each of ``tools`` (all where none is named), with nothing left behind."""
    for tool in tools or TOOLS:
        with pytest.raises((UserError, DamagedFile), match=match):
            TOOLS[tool](folder, folder.parent / "target")
    assert not (folder.parent / "target").exists()


def change(folder: Path, **fields: Any) -> Path:
    raw = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def same_as_transformers(folder: Path) -> None:
    expected = theirs(folder)
    for read in READERS.values():
        torch.testing.assert_close(read(folder), expected, rtol=2e-4, atol=2e-4)


# -- which files -------------------------------------------------------------------------------------------------------


def test_a_stale_file_beside_the_model_is_named_and_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = models.make(tmp_path / "m")
    save_file(models.random_tensors(models.UNTIED, 1), folder / "model-old.safetensors")
    same_as_transformers(folder)
    for tool in ("convert", "average", "export"):
        TOOLS[tool](folder, tmp_path / tool)
    assert models.same(models.load(tmp_path / "average"), models.random_tensors(models.UNTIED))
    assert caplog.text.count("not read, because they are not the model's: model-old.safetensors") == 1


def test_the_index_decides_and_shards_of_another_save_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = models.make(tmp_path / "hf")
    folder = megatron_to_hf(hf_to_megatron(whole, tmp_path / "mg"), tmp_path / "m", shard_bytes=60_000)
    other = megatron_to_hf(
        hf_to_megatron(models.make(tmp_path / "o", seed=1), tmp_path / "mo"), tmp_path / "other", shard_bytes=30_000
    )
    for shard in sorted(other.glob("*.safetensors"))[-3:]:
        shutil.copy(shard, folder / shard.name)
    same_as_transformers(folder)
    TOOLS["average"](folder, tmp_path / "made")
    assert models.same(models.load(tmp_path / "made"), models.random_tensors(models.UNTIED))
    assert "not read, because they are not the model's: model-000" in caplog.text
    save_file(models.random_tensors(models.UNTIED, 1), folder / SINGLE)  # which transformers takes, and others do not
    refused(folder, r"holds model\.safetensors and model\.safetensors\.index\.json: two models")
    (folder / SINGLE).unlink()
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../hf/model.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, r"index\.json: names '\.\./hf/model\.safetensors', which is no file of this folder")


def test_folders_without_a_model_of_their_own(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "m")
    refused(change(folder, transformers_weights="other.safetensors"), "transformers_weights names 'other.safetensors'")
    change(folder, transformers_weights=None)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"holds an adapter \(adapter_config\.json\)")
    (folder / "adapter_config.json").unlink()
    (folder / SINGLE).rename(folder / "weights.safetensors")
    refused(folder, r"neither model\.safetensors nor .* say whether weights\.safetensors is the model")


# -- which tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name", "shape"),
    [
        (models.QWEN3, "model.layers.1.self_attn.q_proj.bias", (48,)),
        (models.UNTIED, "model.layers.0.self_attn.o_proj.bias", (48,)),
        (models.UNTIED, "model.layers.2.mlp.up_proj.lora_A.weight", (4, 48)),
        (models.UNTIED, "model.layers.4.mlp.up_proj.weight", (80, 48)),
        (models.UNTIED, "score.weight", (2, 48)),
    ],
)
def test_a_tensor_without_a_place_is_refused(
    tmp_path: Path, config: ModelConfig, name: str, shape: tuple[int, ...]
) -> None:
    folder = models.make(tmp_path / "m", config)
    save_file(models.load(folder) | {name: torch.ones(shape)}, folder / SINGLE)
    refused(folder, f"no place for {name}")


def test_a_missing_tensor_and_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "m")
    tensors = models.load(folder)
    save_file({k: v for k, v in tensors.items() if not k.endswith("3.self_attn.k_proj.bias")}, folder / SINGLE)
    refused(folder, r"hold no model\.layers\.3\.self_attn\.k_proj\.bias")
    save_file(tensors | {"model.norm.weight": torch.ones(47)}, folder / SINGLE)
    refused(folder, r"model\.norm\.weight has shape \(47,\), the configuration says \(48,\)")


def test_rope_tables_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = models.make(tmp_path / "m")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(models.load(folder) | table, folder / SINGLE)
    same_as_transformers(folder)
    assert "tables of RoPE (rotary_emb.inv_freq) are left out" in caplog.text


def test_a_tied_head_is_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = models.make(tmp_path / "m", models.TIED)
    tensors = models.load(folder)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, folder / SINGLE, metadata={"format": "pt"})
    same_as_transformers(folder)
    assert "lm_head.weight is left out: it is the embedding" in caplog.text
    TOOLS["average"](folder, tmp_path / "made")
    assert models.same(models.load(tmp_path / "made"), tensors)
    head[5, 7] += 1e-3
    save_file(tensors | {"lm_head.weight": head}, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, r"lm_head\.weight differs from the embedding, and config\.json ties the two")


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_a_quantized_export_is_no_plain_model(tmp_path: Path, format: Any) -> None:
    from tests.checkpoints.word_models import LONG, word_model

    made = quantize(word_model(tmp_path / "hf"), tmp_path / "q", format=format, calibration=LONG[:2])
    tools = [tool for tool in TOOLS if (tool, format) != ("export", "fp8")]
    refused(made, "is quantized", *tools)
    with pytest.raises(UserError, match="is quantized"):
        ModelConfig.from_hf(made)
    assert inspect(made).elements  # looking is allowed
    raw = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k != "quantization_config"}))
    refused(made, "is quantized", *tools)
    (made / "hf_quant_config.json").unlink()  # no marker is left
    refused(made, r"is (int8|float8_e4m3fn), and config\.json does not say what for")


# -- which fields ------------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PUBLISHED = {  # fields of published folders of the two families, beside those of transformers' classes
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "torch_dtype": "float32",
    "use_mrope": False,
    "head_dim": 8,
    "attention_bias": False,
    "auto_map": {},
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "is_causal": True,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "transformers_weights": None,
    "per_layer_config": None,
    "unsloth_version": "2025.1",
}
OTHERS: dict[str, list[Any]] = {  # values besides those that are made of the present one
    "architectures": [["Qwen2ForSequenceClassification"], ["Qwen2Model"], ["Qwen3MoeForCausalLM"], []],
    "model_type": ["qwen2_moe", "qwen2", "qwen3", "llama", "mistral", ["qwen2"]],
    "hidden_act": ["gelu", "relu", "swish"],
    "layer_types": [None, ["sliding_attention"] * 4, ["full_attention"] * 3, ["full_attention"] * 5],
    "rope_parameters": [
        YARN | {"rope_theta": 1e4},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_type": "default"},
        {"full_attention": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_type": "default", "factor": 3.0},
    ],
    "rope_scaling": [
        YARN,
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "default", "rope_theta": 300.0},
    ],
    "auto_map": [{"AutoModelForCausalLM": "modeling.Qwen2ForCausalLM"}, {"AutoTokenizer": ["t.T", None]}],
    "quantization_config": [{"quant_method": "fp8"}, {"quant_method": "bitsandbytes", "load_in_8bit": True}],
    "partial_rotary_factor": [0.5],
    "per_layer_config": [{"1": {"num_key_value_heads": 1}}],
    "transformers_weights": ["other.safetensors"],
    "tie_word_embeddings": ["true"],
    "sliding_window": [8],
    "head_dim": [None, 16],
    "eos_token_id": [2, [1, 2], None],
}


def values(field: str, value: Any) -> list[Any]:
    made: list[Any] = [None]
    if isinstance(value, bool):
        made.append(not value)
    elif isinstance(value, int):
        made += [value + 1, value * 2, -1]
    elif isinstance(value, float):
        made += [value * 2 or 0.1, value / 2, -1.0]
    elif isinstance(value, str):
        made.append("another")
    return [*made, *OTHERS.get(field, [])]


_THEIRS: dict[tuple[str, str], Tensor | Exception] = {}


def theirs_or_refusal(kind: str, config: str, folder: Path) -> Tensor | Exception:
    """:func:`theirs` of the weights that every folder of a kind holds; computed once for all readers."""
    if (kind, config) not in _THEIRS:
        try:
            _THEIRS[kind, config] = theirs(folder)
        except Exception as error:  # transformers' own refusals have no common type
            _THEIRS[kind, config] = error
    return _THEIRS[kind, config]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_every_field_is_used_as_transformers_uses_it_or_refused(tmp_path: Path, kind: str, reader: str) -> None:
    """Each field of a real config is changed, and removed: our logits stay transformers', or the field is refused, or
    it is one of NEUTRAL, which gives the reason why it changes nothing."""
    from transformers import Qwen2Config, Qwen3Config

    folder = models.make(tmp_path / "m", models.UNTIED if kind == "qwen2" else models.QWEN3)
    base = json.loads((folder / "config.json").read_text())
    base["rope_theta"] = base["rope_parameters"]["rope_theta"] = 1e4
    fields = {**(Qwen2Config if kind == "qwen2" else Qwen3Config)().to_dict(), **PUBLISHED, **base}
    fields["layer_types"] = ["full_attention"] * base["num_hidden_layers"]
    fields.pop("dtype")
    wrong = []
    taken = 0
    for field in sorted(fields):
        tried: list[dict[str, Any]] = [{**base, field: value} for value in values(field, fields[field])]
        tried.append({key: value for key, value in base.items() if key != field})
        if field == "rope_scaling":  # alone, too
            tried += [{k: v for k, v in raw.items() if k != "rope_parameters"} for raw in tried[:-1]]
        if field == "use_sliding_window":
            tried += [{**base, field: True, "sliding_window": 8, "max_window_layers": 2}]
        for raw in tried:
            (folder / "config.json").write_text(json.dumps(raw))
            try:
                ours = READERS[reader](folder)
            except OpenMathError:
                continue
            taken += 1
            expected = theirs_or_refusal(kind, json.dumps(raw), folder)
            if isinstance(expected, Exception):
                if field not in NEUTRAL:
                    wrong.append((field, raw.get(field, "removed"), f"transformers: {expected!r}"[:200]))
                continue
            if not torch.allclose(ours, expected, rtol=2e-4, atol=2e-4):
                wrong.append((field, raw.get(field, "removed"), float((ours - expected).abs().max())))
    assert not wrong, "\n".join(map(str, wrong))
    assert taken > 40
    assert fields.keys() <= TAKEN | FIXED.keys() | NEUTRAL.keys()


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "layer_types is"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"is_causal": False}, "is_causal is False"),
        ("qwen2", {"rope_theta": 77.0}, r"says rope_theta 77\.0, and 1000000\.0 in its other form"),
        ("qwen2", {"rope_scaling": YARN}, "rope_scaling says yarn .* rope_parameters says default"),
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "do not belong together"),
        ("qwen3", {"architectures": ["Qwen3MoeForCausalLM"]}, "do not belong together"),
        ("qwen3", {"text_config": {"rms_norm_eps": 0.01}}, "text_config is"),
        ("qwen2", {"attribute_map": {"rms_norm_eps": "eps"}}, "attribute_map is"),
        ("qwen3", {"attention_bias": True}, "(attention_bias is true|hold no .*bias)"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_what_nobody_computes_is_refused_everywhere(
    tmp_path: Path, kind: str, fields: dict[str, Any], match: str
) -> None:
    folder = models.make(tmp_path / "m", models.QWEN3 if kind == "qwen3" else models.UNTIED)
    refused(change(folder, **fields), match)


def test_what_transformers_refuses_is_wrong_input(tmp_path: Path) -> None:
    """Its errors have no common type."""
    folder = models.make(tmp_path / "m")
    whole = json.loads((folder / "config.json").read_text())
    change(folder, quantization_config={})
    refused(folder, "transformers cannot load this model", "calibrate", "drafter")
    raw = {key: value for key, value in whole.items() if key != "rope_parameters"}
    (folder / "config.json").write_text(json.dumps(raw | {"rope_scaling": YARN, "max_window_layers": None}))
    refused(folder, "RoPE scaling 'yarn' .*max_window_layers", "engine")


def test_a_qwen3_without_head_dim_has_128(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "m", models.QWEN3)
    raw = json.loads((folder / "config.json").read_text())
    del raw["head_dim"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert ModelConfig.from_hf(folder).head_dim == 128


def test_fields_that_nobody_knows_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = change(models.make(tmp_path / "m"), logit_scale=3.0, foo=None)
    with caplog.at_level(logging.WARNING):
        same_as_transformers(folder)
    assert "not used, here as in transformers' Qwen2ForCausalLM: foo, logit_scale" in caplog.text


def test_reading_takes_no_digest(tmp_path: Path) -> None:
    opened = open_checkpoint(models.make(tmp_path / "m"))
    assert torch.equal(opened.read("model.norm.weight"), load_file(tmp_path / "m" / SINGLE)["model.norm.weight"])
    assert all(tensor._done == 0 for tensor in opened.stored.values())
