"""A ReDrafter beside its model for TensorRT-LLM: an independent reader drafts from the rank files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from nemo_openmath.checkpoints.convert import hf_to_trtllm
from nemo_openmath.checkpoints.formats.trtllm import commands
from nemo_openmath.checkpoints.formats.trtllm_redrafter import TrtllmDrafter
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from tests.support import models


def write_drafter(folder: Path, **changed: Any) -> ReDrafter:
    config = models.WIDE
    shape: dict[str, Any] = {"hidden": config.hidden_size, "vocab": config.vocab_size, "recurrence": "linear"}
    torch.manual_seed(0)
    drafter = ReDrafter(DrafterShape(**shape | changed)).eval()
    folder.mkdir()
    drafter.save(folder)
    return drafter


def drafted(ranks: list[dict[str, Tensor]], config: dict[str, Any], hidden: Tensor, token: int) -> list[int]:
    """What tensorrt_llm/models/redrafter computes with one beam: ``rnn_embed`` without the previous state in the first
    step, no activation; every matrix is a ColumnLinear whose outputs are gathered."""

    def apply(x: Tensor, name: str) -> Tensor:
        y = torch.cat([rank[f"drafter.{name}.weight"] @ x for rank in ranks])
        bias = f"drafter.{name}.bias"
        return y + torch.cat([rank[bias] for rank in ranks]) if bias in ranks[0] else y

    previous, tokens = None, [token]
    for _ in range(config["redrafter_draft_len_per_beam"]):
        embedded = apply(ranks[0]["transformer.vocab_embedding.weight"][tokens[-1]], "rnn_w")
        previous = embedded if previous is None else embedded + apply(previous, "rnn_u")
        x = torch.cat([hidden, previous])
        for layer in range(config["redrafter_num_layers"]):
            x = x + silu(apply(x, f"layers.{layer}.linear"))
        tokens.append(int(apply(x, "lm_head")[: config["vocab_size"]].argmax()))
    return tokens


@pytest.mark.parametrize("tp", [1, 4])
def test_an_engine_drafts_what_the_drafter_does(tmp_path: Path, tp: int) -> None:
    source, drafter = models.make(tmp_path / "hf", models.WIDE), write_drafter(tmp_path / "drafter")
    made = hf_to_trtllm(source, tmp_path / "trt", tp=tp, drafter=tmp_path / "drafter", beams=4)
    plain = hf_to_trtllm(source, tmp_path / "plain", tp=tp)
    config = json.loads((made / "config.json").read_text())
    ranks = [load_file(made / f"rank{rank}.safetensors") for rank in range(tp)]
    table = ranks[0]["transformer.vocab_embedding.weight"]
    for seed in range(5):
        hidden = torch.randn(models.WIDE.hidden_size, generator=torch.Generator().manual_seed(seed))
        assert [drafted(ranks, config, hidden, seed)] == drafter.beams(hidden, seed, table, 3, 1)
    for rank, tensors in enumerate(ranks):
        without = load_file(plain / f"rank{rank}.safetensors")
        assert {name for name in tensors if not name.startswith("drafter.")} == set(without)
        assert all(torch.equal(tensors[name], without[name]) for name in without)
    assert config["architecture"] == "ReDrafterForQWenLM"
    assert config["base_model_architecture"] == "Qwen2ForCausalLM"
    assert config["redrafter_exit_dim"] == 2 * config["redrafter_hidden_size"] == 2 * models.WIDE.hidden_size
    assert (config["redrafter_num_beams"], config["redrafter_is_rnn"], config["redrafter_greedy_search"]) == (
        4,
        True,
        True,
    )
    quantized = TrtllmDrafter(drafter, torch.float32, 1).described(
        {"qwen_type": "qwen2", "architecture": "", "quantization": {"exclude_modules": ["lm_head"]}}
    )  # the convert script's list
    assert quantized["quantization"]["exclude_modules"] == [
        *("lm_head", "drafter", "drafter.layers", "drafter.lm_head", "drafter.rnn_u", "drafter.rnn_w"),
        *(f"drafter.layers.{layer}{part}" for part in ("", ".linear") for layer in range(2)),
    ]
    assert "--speculative_decoding_mode explicit_draft_tokens" in commands(made)[0]


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"recurrence": "silu"}, {}, r"would draft other tokens; train one by a stage .* with recurrence: linear"),
        ({"draft_vocab": 9}, {}, r"guesses 9 tokens; TensorRT-LLM's head has all .*with draft_vocab: 0"),
        ({"hidden": 32}, {}, r"is for a model of width 32 and .*; give the drafter of this model"),
        ({}, {"pp": 2}, r"a drafter goes with one pipeline stage; leave --pp out"),
    ],
)  # fmt: skip
def test_a_drafter_that_an_engine_would_misread_is_refused(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    source = models.make(tmp_path / "hf", models.WIDE)
    write_drafter(tmp_path / "drafter", **changed)
    with pytest.raises(UserError, match=message):
        hf_to_trtllm(source, tmp_path / "trt", drafter=tmp_path / "drafter", **options)
    assert not (tmp_path / "trt").exists()
