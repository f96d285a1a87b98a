"""Models whose tokens are words, and texts long enough to calibrate a quantization with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.support import models

LONG = [" ".join(f"w{(17 * n + 31 * t * t + n * n) % 107}" for n in range(64)) for t in range(4)]
BIG = models.UNTIED.with_changes(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, head_dim=32
)  # widths that int4 takes


def with_tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(107)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def word_model(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model of ``BIG`` with some loud channels, as trained ones have: what AWQ is for."""
    tensors = load_file(models.make(folder, BIG, dtype=dtype) / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[::17] *= 8
        elif tensor.dim() == 2:
            tensor *= 0.4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return with_tokenizer(folder)
