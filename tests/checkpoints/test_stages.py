"""The stages, run as the pipeline runs them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nemo_openmath.checkpoints import stages
from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.formats import step_folders
from tests.support import models
from tests.support.services import stage_context

CONFIG = models.TIED.with_changes(num_hidden_layers=2)


def test_average_then_merge(tmp_path: Path) -> None:
    training = tmp_path / "training"
    (training / "checkpoints").mkdir(parents=True)
    for step in range(4):
        source = models.make(tmp_path / f"hf{step}", CONFIG, step)
        hf_to_megatron(source, step_folders.step_folder(training / "checkpoints", 5 * (step + 1)))
    average = stages.Average(stages.AverageConfig(count=4))
    assert average.makes == "model"
    made = tmp_path / "average"
    asyncio.run(average.run(stage_context({"training": [training]}, made)))
    tensors = [models.load(tmp_path / f"hf{step}") for step in range(4)]
    for name, tensor in models.load(made).items():
        assert (tensor - sum(t[name] for t in tensors) / 4).abs().max() < 1e-6
    files = {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "lineage.json"}
    assert {p.name for p in made.iterdir()} == files
    lineage = json.loads((made / "lineage.json").read_text())
    assert [Path(entry["path"]).name for entry in lineage["inputs"].values()] == [
        f"step-{n:08d}" for n in (5, 10, 15, 20)
    ]
    merge = stages.Merge(stages.MergeConfig(weights=(0.3, 0.7)))
    merged = tmp_path / "merged"
    asyncio.run(merge.run(stage_context({"models": [made, tmp_path / "hf0"], "base": []}, merged)))
    a, b = models.load(made), models.load(tmp_path / "hf0")
    for name, tensor in models.load(merged).items():
        assert (tensor - (0.3 * a[name] + 0.7 * b[name])).abs().max() < 1e-6
    asyncio.run(merge.run(stage_context({"models": [made, made], "base": []}, merged)))
    assert models.same(models.load(merged), a)  # a killed stage runs again into its own folder


def test_average_wants_count_or_steps() -> None:
    with pytest.raises(ValueError, match="either count or steps"):
        stages.AverageConfig()
