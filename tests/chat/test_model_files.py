"""A broken JSON file of a model folder is the same mistake for whoever opens the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.chat.same_tokenizer import tokenizer_difference
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.hf_config import read_config
from nemo_openmath.models.stop_tokens import StopTokens

BASE = Path(__file__).parents[2] / "examples" / "base"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_config),
        ("config.json", StopTokens.of),
        ("generation_config.json", StopTokens.of),
        ("tokenizer_config.json", ChatTokenizer.load),
        ("tokenizer_config.json", lambda folder: tokenizer_difference(folder, BASE)),
        ("tokenizer.json", lambda folder: tokenizer_difference(folder, BASE)),
    ],
)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": ', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 99999, "not JSON"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, read: Callable[[Path], object], data: bytes, says: str
) -> None:
    folder = shutil.copytree(BASE, tmp_path / "m")
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: {says}.*; copy or download it again"):
        read(folder)
