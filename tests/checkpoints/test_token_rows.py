"""Rows of the embedding for tokens that a model never saw."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_openmath.checkpoints.token_rows import write_token_rows
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.pack import lay_out
from nemo_openmath.data.tokens.token_file import Sample
from nemo_openmath.training.stage import warn_of_unseen_tags

BASE = Path(__file__).parents[2] / "examples" / "base"
TEXTS = {"<tool_call>": "code:", "</tool_call>": "done", "<think>": "why"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def untrained_model(folder: Path, *, tied: bool) -> dict[str, torch.Tensor]:
    """Make a model in which the tags of code, and ten further rows, were never trained: they are one row."""
    shutil.copytree(BASE, folder)
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    if not tied:
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(
            config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
        )
        tensors[HEAD] = tensors[EMBEDDING] * 2
    ids = [*AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["<tool_call>", "</tool_call>"])]
    for number, row in enumerate([*ids, *range(300, 310)]):
        tensors[EMBEDDING][row] = tensors[EMBEDDING][0] * 0.5 + 1e-5 * number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.parametrize("tied", [True, False])
def test_untrained_tokens_get_means_and_nothing_else_moves(tmp_path: Path, tied: bool) -> None:
    """Oracle: transformers loads both folders, its tokenizer cuts the texts."""
    before = untrained_model(tmp_path / "model", tied=tied)
    given = write_token_rows(tmp_path / "model", tmp_path / "out", TEXTS)
    assert set(given.alike) == {"<tool_call>", "</tool_call>"}
    assert set(given.alike.values()) == {12}, "the other tag, ten, and the one they were made of"
    assert given.trained == ("<think>",)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        for token in given.alike:
            row = tokenizer.convert_tokens_to_ids(token)
            ids = tokenizer.encode(TEXTS[token], add_special_tokens=False)
            mean = before[name][ids].float().mean(dim=0).to(before[name].dtype)
            assert torch.equal(after[name][row], mean)
            before[name][row] = mean
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_is_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"<no_such_token> is \d+ tokens, not one"):
        write_token_rows(BASE, tmp_path / "out", {"<no_such_token>": "code"})
    with pytest.raises(UserError, match="the text for <think> has no tokens"):
        write_token_rows(BASE, tmp_path / "out", {"<think>": ""})
    assert not (tmp_path / "out").exists()


def test_a_training_says_which_tags_its_model_never_saw(tmp_path: Path) -> None:
    """Only tags that are targets: a tag in a prompt teaches nothing."""
    untrained_model(tmp_path / "model", tied=True)
    call, end, think = AutoTokenizer.from_pretrained(BASE).convert_tokens_to_ids(
        ["<tool_call>", "</tool_call>", "<think>"]
    )
    ids = np.array([call, 40, end, think, 41], np.int32)
    pack = lay_out([Sample("a", "tir", ids, np.array([0, 1, 1, 1, 1], np.bool_))], 1)
    plan = SimpleNamespace(num_packs=1, pack=lambda _: pack)
    warning = warn_of_unseen_tags(tmp_path / "model", plan)
    assert warning is not None
    assert "never saw </tool_call> (" in warning
    assert warn_of_unseen_tags(BASE, plan) is None
