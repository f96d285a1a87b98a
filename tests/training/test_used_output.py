"""A used output folder goes on with the same model alone; another is refused before anything is written."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.records.lineage import digest_tree
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.training.base_model import BaseModel, refuse_used_output
from nemo_openmath.training.stage import Sft, SftConfig
from tests.support import models
from tests.support.services import stage_context

BASE = Path(__file__).parents[2] / "examples" / "base"


@pytest.fixture
def used(tmp_path: Path) -> tuple[Path, Path]:
    """(model, output with a checkpoint of a training that started from it)."""
    model, output = models.make(tmp_path / "model"), tmp_path / "out"
    models.make_step(output / "checkpoints", 3, model, fingerprint="x", **BaseModel.open(model).identity)
    return model, output


def test_the_same_model_goes_on_wherever_it_lies(used: tuple[Path, Path], tmp_path: Path) -> None:
    model, output = used
    refuse_used_output(output, model, {})
    model.rename(tmp_path / "moved")
    refuse_used_output(output, tmp_path / "moved", {})
    refuse_used_output(tmp_path / "new", tmp_path / "moved", {"rope_theta": 5e5})


@pytest.mark.parametrize("name", [field.name for field in fields(ModelConfig)])
def test_any_other_field_of_the_model_is_named(used: tuple[Path, Path], name: str) -> None:
    model, output = used
    value = getattr(ModelConfig.from_hf(model), name)
    other: Any = {"num_key_value_heads": 6, "model_type": "qwen3", "tie_word_embeddings": True}.get(
        name, value * 2 if value else 9
    )
    with pytest.raises(UserError, match=rf"step-00000003: this training's model has {name} .*, the job says "):
        refuse_used_output(output, model, {name: other})


def test_other_weights_are_refused(used: tuple[Path, Path], tmp_path: Path) -> None:
    _, output = used
    with pytest.raises(UserError, match="started from other weights than those of the job's model"):
        refuse_used_output(output, models.make(tmp_path / "other", seed=1), {})


async def test_the_job_file_stays_as_it_was(used: tuple[Path, Path], tmp_path: Path) -> None:
    model, output = used
    inputs = {"model": [model], "packs": [tmp_path / "packs"], "validation": []}
    await Sft(SftConfig(steps=5)).prepare_launch(stage_context(inputs, output, seed=0))
    before = (output / "job.yaml").read_text()
    assert json.loads(before)["data"]["steps"] == 5
    with pytest.raises(UserError, match=r"has rope_theta 1000000\.0, the job says 7000\.0"):
        await Sft(SftConfig(steps=5, rope_theta=7000.0)).prepare_launch(stage_context(inputs, output, seed=0))
    inputs["model"] = [models.make(tmp_path / "other", seed=1)]
    with pytest.raises(UserError, match="other weights"):
        await Sft(SftConfig(steps=5)).prepare_launch(stage_context(inputs, output, seed=0))
    assert (output / "job.yaml").read_text() == before


def test_a_finished_training_is_not_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where its result is; with another learning rate it is refused by name, and its files stay."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    with ShardWriter(
        tokens / "00000.tokens", tokenizer=ChatTokenizer.load(BASE).fingerprint, vocab_size=681, source="s"
    ) as writer:
        for name in "abcd":
            writer.add(name, "cot", np.arange(1, 20), [False] + [True] * 18)
        writer.finish({})
    write_manifest(tokens, ["00000.tokens"])
    write_packs(tokens, tmp_path / "packs", capacity=64)
    job = tmp_path / "job.yaml"
    data = {"folder": "packs", "batch_samples": 4, "steps": 1}
    job.write_text(json.dumps({"model": str(BASE), "output": "out", "data": data}))
    last = tmp_path / "out" / "checkpoints" / "step-00000001"
    assert run(["sft", str(job), "training.lr=1e-3"]) is ExitCode.OK
    assert f"trained: {last}\nnext: openmath convert megatron-to-hf {last} " in capsys.readouterr().out
    before = digest_tree(tmp_path / "out" / "checkpoints")
    assert run(["sft", str(job), "training.lr=2e-3"]) is ExitCode.USER_ERROR
    assert "this training has finished, with other settings: lr was 0.001, is 0.002" in capsys.readouterr().err
    assert digest_tree(tmp_path / "out" / "checkpoints") == before


def test_the_digest_sees_every_tensor_and_no_layout(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "m")
    first = open_checkpoint(folder).sampled_digest()
    assert open_checkpoint(hf_to_megatron(folder, tmp_path / "mg")).sampled_digest() == first
    for name in models.load(folder):
        tensors = models.random_tensors(models.UNTIED)
        tensors[name].view(-1)[-1] += 1
        save_file(tensors, folder / "model.safetensors")
        assert open_checkpoint(folder).sampled_digest() != first, name
