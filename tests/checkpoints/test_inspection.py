from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.inspect import _in_order, compare, inspect
from nemo_openmath.core.errors import DamagedFile
from tests.support import models


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf", dtype=torch.bfloat16)
    megatron = hf_to_megatron(source, tmp_path / "m")
    classic = hf_to_megatron(source, tmp_path / "c", classic_folders=True, tp=2)
    weights = load_file(source / "model.safetensors")
    found = [inspect(folder) for folder in (source, megatron, classic)]
    assert [f.kind for f in found] == ["hf", "torch_dist", "classic"]
    for inspection in found:
        assert inspection.parameters == models.UNTIED.num_parameters
        assert inspection.elements == {"bfloat16": models.UNTIED.num_parameters}
        for row in inspection.tensors:
            assert row.norm == pytest.approx(weights[row.name].double().norm().item(), rel=1e-6)
            assert row.largest == weights[row.name].abs().max().item()
    assert found[1].lineage is not None
    assert found[1].lineage.inputs["source"]["digest"] == found[0].digest
    text = "\n".join(found[2].lines())
    assert "classic (tp 2 x pp 1), Qwen2ForCausalLM" in text
    assert "model.layers.3.mlp.up_proj.weight [80, 48]" in text


def test_inspect_counts_broken_numbers(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][2:4] = float("nan")
    save_file(tensors, source / "model.safetensors")
    inspection = inspect(source)
    assert {row.name: row.broken for row in inspection.tensors if row.broken} == {"model.norm.weight": 2}
    assert "BROKEN" in "\n".join(inspection.lines())


def test_compare_across_formats(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    megatron = hf_to_megatron(source, tmp_path / "m", rope_theta=5e5)
    found = compare(source, megatron)
    assert not found.different
    assert found.equal == len(load_file(source / "model.safetensors"))
    assert any("rope_theta is 1000000.0 in A, 500000.0 in B" in line for line in found.settings)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    del tensors["lm_head.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3)
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text((source / "config.json").read_text())
    found = compare(source, tmp_path / "other")
    assert found.only_a == ("lm_head.weight",)
    assert [row.name for row in found.different] == ["model.norm.weight"]
    assert found.different[0].largest == pytest.approx(0.5)
    assert found.shapes == ("model.layers.0.mlp.up_proj.weight: shape [80, 48] in A, [3] in B",)


def test_equal_means_bit_for_bit(tmp_path: Path) -> None:
    """Not within fp32, and a zero is not its negative."""
    source = models.make(tmp_path / "a", dtype=torch.float64)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = 0.0
    save_file(tensors, source / "model.safetensors")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text((source / "config.json").read_text())
    tensors["model.norm.weight"][0] = -0.0
    tensors["lm_head.weight"][1, 1] += 1e-12
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    found = compare(source, tmp_path / "b")
    assert [row.name for row in found.different] == ["lm_head.weight", "model.norm.weight"]
    assert found.different[0].largest == pytest.approx(1e-12, rel=1e-3)
    assert found.different[1].largest == 0.0


def test_a_bit_that_the_disk_changed_is_noticed(tmp_path: Path) -> None:
    megatron = hf_to_megatron(models.make(tmp_path / "hf"), tmp_path / "m")
    file = megatron / "state" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"__0_0\.distcp: its checksum differs"):
        inspect(megatron)


def test_layers_stand_in_their_order() -> None:
    """Numbers in names are numbers: 2 before 10."""
    names = [f"model.layers.{n}.x" for n in range(12)]
    assert [name for name, _ in _in_order((name, torch.empty(0)) for name in sorted(names))] == names
