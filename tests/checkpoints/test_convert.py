"""Hugging Face -> Megatron -> Hugging Face, without processes."""

from __future__ import annotations

import enum
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from nemo_openmath.checkpoints.convert import hf_to_megatron, hf_to_trtllm, megatron_to_hf
from nemo_openmath.checkpoints.formats import classic, step_folders
from nemo_openmath.checkpoints.formats.safetensors import SINGLE
from nemo_openmath.checkpoints.merge.combine import average, merge
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.core.errors import UserError
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.configs import ModelConfig
from tests.support import models


@pytest.mark.parametrize("config", [models.TIED, models.UNTIED, models.QWEN3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_dist_round_trip_is_bitwise(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    source = models.make(tmp_path / "hf", config, dtype=dtype)
    megatron = hf_to_megatron(source, tmp_path / "megatron")
    step_folders.verify(megatron)  # the trainer's own check of sizes and checksums
    back = megatron_to_hf(megatron, tmp_path / "back", shard_bytes=20_000)
    assert models.same(models.load(back), models.load(source))
    assert len(list(back.glob("*.safetensors"))) > 1
    assert (back / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == 1


class _OfPython3110(pickle.Pickler):
    """Pickles a member of an enum as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


def test_torch_dist_that_an_older_python_wrote(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    state = hf_to_megatron(source, tmp_path / "megatron") / "state"
    metadata = pickle.loads((state / ".metadata").read_bytes())
    with (state / ".metadata").open("wb") as file:
        _OfPython3110(file).dump(metadata)
    assert b"getattr" in (state / ".metadata").read_bytes()
    back = megatron_to_hf(state, tmp_path / "back", model_files=source)
    assert models.same(models.load(back), models.load(source))


@pytest.mark.parametrize(
    ("config", "tp", "pp"),
    [(models.TIED, 1, 1), (models.TIED, 2, 1), (models.TIED, 2, 2), (models.UNTIED, 1, 2), (models.WIDE, 4, 2)],
)
@pytest.mark.parametrize("fused", [True, False])
def test_classic_round_trip_is_bitwise(
    tmp_path: Path, config: ModelConfig, tp: int, pp: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = models.make(tmp_path / "hf", config)
    if not fused:
        local_name = hf_mapping.StoredTensor.local_name
        monkeypatch.setattr(hf_mapping.StoredTensor, "local_name", lambda self, at=0, **_: local_name(self, at))
    megatron = hf_to_megatron(source, tmp_path / "megatron", classic_folders=True, tp=tp, pp=pp)
    assert len(list(megatron.glob("iter_*/mp_rank_*/" + classic.FILE))) == tp * pp
    back = megatron_to_hf(megatron, tmp_path / "back")
    assert models.same(models.load(back), models.load(source))


def test_classic_ranks_hold_what_megatron_holds(tmp_path: Path) -> None:
    """torch.load of each rank file against slices made by the pure functions from whole tensors."""
    config, tp, pp = models.WIDE, 4, 2
    source = models.make(tmp_path / "hf", config)
    folder = hf_to_megatron(source, tmp_path / "m", classic_folders=True, tp=tp, pp=pp) / "iter_0000000"
    weights = models.load(source)
    stored = {
        entry.name: (entry, hf_mapping.join(entry, hf_mapping.read_sources(entry, weights.__getitem__)))
        for entry in hf_mapping.stored_tensors(config)
    }
    for stage in range(pp):
        for rank in range(tp):
            held = torch.load(folder / f"mp_rank_{rank:02d}_{stage:03d}" / classic.FILE, weights_only=True)["model"]
            for name in stored:
                entry, tensor = stored[name]
                layer = hf_mapping.layer_of(name)
                if (layer if layer is not None else -1 if "embedding" in name else 9) // 2 not in (
                    stage,
                    *((-1,) if stage == 0 else (4,)),
                ):
                    continue
                if "embedding" in name or "output_layer" in name:
                    tensor = torch.cat([tensor, torch.zeros(512 - 107, 64)])
                local = entry.local_name(stage * 2, fused_norms=True)
                assert torch.equal(held.pop(local), hf_mapping.tp_slice(entry, tensor, tp, rank)), local
            assert not held


def test_rope_is_written_in_both_forms(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    del config["rope_parameters"]  # what transformers 4 wrote
    (source / "config.json").write_text(json.dumps(config))
    megatron = hf_to_megatron(source, tmp_path / "megatron", rope_theta=500_000, max_positions=131_072)
    back = megatron_to_hf(megatron, tmp_path / "back")
    written = json.loads((back / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500_000.0
    assert written["max_position_embeddings"] == 131_072
    assert not torch.allclose(models.logits(back), models.logits(source), atol=1e-3)
    scaling = {"rope_type": "default", "rope_theta": 1e4}  # a third form, which transformers 5 prefers to the others
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 1e4, "rope_scaling": scaling}))
    moved = hf_to_megatron(source, tmp_path / "moved", rope_theta=500_000)
    config = AutoConfig.from_pretrained(moved / "model")
    assert config.rope_parameters["rope_theta"] == 500_000.0
    for wrong in (0.0, -5.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="a RoPE base of"):
            hf_to_megatron(source, tmp_path / "x", rope_theta=wrong)
    with pytest.raises(UserError, match="0 positions"):
        hf_to_megatron(source, tmp_path / "x", max_positions=0)
    assert ModelConfig.from_hf(back).rope_theta == 500_000.0


def test_lineage_names_the_inputs(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    sharded = tmp_path / "sharded"
    a = json.loads((hf_to_megatron(source, tmp_path / "a") / "lineage.json").read_text())
    megatron_to_hf(tmp_path / "a", sharded, shard_bytes=10_000)
    b = json.loads((hf_to_megatron(sharded, tmp_path / "b") / "lineage.json").read_text())
    other = models.make(tmp_path / "other", seed=1)
    c = json.loads((hf_to_megatron(other, tmp_path / "c") / "lineage.json").read_text())
    digest_a, digest_b, digest_c = (x["inputs"]["source"]["digest"] for x in (a, b, c))
    assert digest_a == digest_b != digest_c
    assert a["inputs"]["source"]["path"] == str(source)


def test_mismatch_of_config_and_weights_is_named(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 81}))
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \(80, 48\), the configuration says \(81, 48\)"):
        hf_to_megatron(source, tmp_path / "megatron")
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"hold no model\.layers\.4"):
        hf_to_megatron(source, tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()


def test_a_tensor_without_a_place_is_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config.json of fewer layers, left-over scales, strange names: refused by name in every direction."""
    source = models.make(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    folders = {
        "torch_dist": hf_to_megatron(source, tmp_path / "m"),
        "classic": hf_to_megatron(source, tmp_path / "c", classic_folders=True, tp=2, pp=2),
    }
    for folder in folders.values():
        changed = json.loads((folder / "model" / "config.json").read_text()) | {"num_hidden_layers": 3}
        (tmp_path / "fewer").mkdir(exist_ok=True)
        (tmp_path / "fewer" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"no place for decoder\.layers\.3\."):
            megatron_to_hf(folder, tmp_path / "x", model_files=tmp_path / "fewer")
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    for attempt in (hf_to_megatron, hf_to_trtllm):
        with pytest.raises(UserError, match=r"no place for model\.layers\.3\..* \(12 such tensors\)"):
            attempt(source, tmp_path / "x")
    (source / "config.json").write_text(json.dumps(config))
    save_file(models.load(source) | {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, source / SINGLE)
    with pytest.raises(UserError, match=r"no place for model\.layers\.0\.mlp\.up_proj\.weight_scale"):
        hf_to_megatron(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    tied = models.make(tmp_path / "tied", models.TIED)
    tensors = models.load(tied)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tied / SINGLE)
    hf_to_megatron(tied, tmp_path / "y")
    assert "lm_head.weight is left out" in caplog.text


def test_quantized_weights_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    made = quantize(models.make(tmp_path / "hf"), tmp_path / "q", format="int8")
    attempts = (
        hf_to_megatron,
        hf_to_trtllm,
        lambda src, dst: average([src, src], dst),
        lambda src, dst: merge("linear", [src, src], dst),
    )
    for attempt in attempts:
        with pytest.raises(UserError, match=r"q: is quantized \(W8A16\)"):
            attempt(made, tmp_path / "x")


def test_stages_of_unequal_size(tmp_path: Path) -> None:
    """Megatron-LM may give the first stage fewer layers: each holds what it holds."""
    source = models.make(tmp_path / "hf", models.UNTIED)
    folder = hf_to_megatron(source, tmp_path / "m", classic_folders=True, pp=2) / "iter_0000000"
    files = [folder / f"mp_rank_00_{stage:03d}" / classic.FILE for stage in range(2)]
    first, second = (torch.load(file, weights_only=True) for file in files)
    moved = {name for name in first["model"] if name.startswith("decoder.layers.1.")}
    later = {
        name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1."): value
        for name, value in second["model"].items()
    }
    later |= {name.replace("layers.1.", "layers.0."): first["model"].pop(name) for name in moved}
    torch.save(first, files[0])
    torch.save(second | {"model": later}, files[1])
    assert models.same(models.load(megatron_to_hf(tmp_path / "m", tmp_path / "back")), models.load(source))


def test_an_output_layer_is_not_lost_to_a_config_that_ties_it(tmp_path: Path) -> None:
    """Of a classic folder's last stage it is the embedding's copy: only then it may go."""
    source, tied = models.make(tmp_path / "hf"), models.make(tmp_path / "tied", models.TIED)
    for number, options in enumerate(({}, {"classic_folders": True, "tp": 2, "pp": 2})):
        folder = hf_to_megatron(source, tmp_path / f"m{number}", **options)
        with pytest.raises(UserError, match=r"output_layer\.weight differs from the embedding"):
            megatron_to_hf(folder, tmp_path / "x", model_files=tied)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64])
def test_codes_are_not_taken_for_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    source = models.make(tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(models.load(source) | {name: torch.ones(80, 48).to(dtype)}, source / SINGLE)
    attempts = (
        hf_to_megatron,
        hf_to_trtllm,
        lambda src, dst: average([src, src], dst),
        lambda src, dst: quantize(src, dst, format="int8"),
    )
    for attempt in attempts:
        with pytest.raises(UserError, match=rf"{name} is \w+, and config\.json does not say what for"):
            attempt(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "107"},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"hidden_size": 48.0},
        {"rope_theta": "1e4"},
        {"rope_parameters": "x"},
        {"rope_scaling": [1]},
    ],
)
def test_a_config_with_wrong_values_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    source = models.make(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    for attempt in (hf_to_megatron, hf_to_trtllm, lambda src, dst: average([src, src], dst)):
        with pytest.raises(UserError, match=rf"config\.json: {next(iter(change))} is "):
            attempt(source, tmp_path / "x")
