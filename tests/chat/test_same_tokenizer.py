"""Two savings of one tokenizer are one; tokenizers that give other ids are not, and the difference is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat.same_tokenizer import tokenizer_difference
from tests.support.tokenizers import transformers_tokenizer


def saved(folder: Path) -> Path:
    transformers_tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> None:
    raw = json.loads((folder / name).read_text())
    change(raw)
    (folder / name).write_text(json.dumps(raw))


def as_lines(raw: dict[str, Any]) -> None:
    raw["model"]["merges"] = [" ".join(merge) for merge in raw["model"]["merges"]]


def test_two_savings_are_one_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first = saved(tmp_path / "a")
    again = AutoTokenizer.from_pretrained(first)
    again(["a", "a longer text"], padding=True, truncation=True, max_length=8)  # the state is saved along
    again.save_pretrained(tmp_path / "b")
    edit(tmp_path / "b", as_lines)
    edit(tmp_path / "b", lambda raw: raw.update(padding={"strategy": "BatchLongest"}, truncation={"max_length": 8}))
    edit(tmp_path / "b", lambda raw: raw.update(post_processor={"type": "ByteLevel", "trim_offsets": True}))
    edit(tmp_path / "b", lambda raw: raw["model"].update(continuing_subword_prefix="", byte_fallback=False))
    edit(tmp_path / "b", lambda raw: raw.update(chat_template="x", eos_token="<|endoftext|>"), "tokenizer_config.json")
    assert (tmp_path / "b/tokenizer.json").read_bytes() != (first / "tokenizer.json").read_bytes()
    assert tokenizer_difference(first, tmp_path / "b") is None
    raw = json.loads((first / "tokenizer.json").read_text())
    (tmp_path / "old").mkdir()  # the files of older folders
    (tmp_path / "old/vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in raw["model"]["merges"])]
    (tmp_path / "old/merges.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "old/tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {str(t["id"]): t for t in raw["added_tokens"]}})
    )
    assert tokenizer_difference(first, tmp_path / "old") is None
    (tmp_path / "none").mkdir()
    assert tokenizer_difference(first, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["model"]["vocab"].update({"x": r["model"]["vocab"]["y"], "y": r["model"]["vocab"]["x"]}),
         "the token 'x' has the id"),
        (lambda r: r["model"]["merges"].insert(0, r["model"]["merges"].pop()), "merge 1 is"),
        (lambda r: r["model"]["merges"].pop(), "merges, there"),
        (lambda r: r["added_tokens"][1].update(id=9), r"the added token '<\|im_start\|>' has the id 9, there 1"),
        (lambda r: r["added_tokens"][1].update(lstrip=True), "differs in lstrip"),
        (lambda r: r["added_tokens"][1].update(special=False), "differs in special"),
        (lambda r: r["added_tokens"].pop(), "the added token .* is missing"),
        (lambda r: r.update(normalizer={"type": "NFKC"}), "its normalizer is"),
        (lambda r: r["pre_tokenizer"].update(add_prefix_space=True), "its pre_tokenizer is"),
        (lambda r: r["pre_tokenizer"].update(use_regex=False), "its pre_tokenizer is"),
        (lambda r: r.update(decoder=None), "its decoder is null"),
        (lambda r: r["model"].update(ignore_merges=True), "its model is"),
        (lambda r: r["model"].update(unk_token="<unk>"), "its model is"),
    ],
)  # fmt: skip
def test_a_difference_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    first, other = saved(tmp_path / "a"), saved(tmp_path / "b")
    edit(other, change)
    found = tokenizer_difference(other, first)
    assert found is not None
    assert re.search(says, found), found
    assert tokenizer_difference(first, other) is not None
