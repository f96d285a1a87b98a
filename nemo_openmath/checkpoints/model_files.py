"""The files beside a model's weights: config.json, the tokenizer's files, generation_config.json."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints.lazy import LazyTensor
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.hf_config import rope_of
from nemo_openmath.models.stop_tokens import StopTokens

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_model_files(source: str | Path, target: str | Path) -> None:
    """Copy config.json and the tokenizer's files of a Hugging Face folder, byte for byte, as far as they exist.

    Raises UserError where ``source`` has no config.json.
    """
    source, target = Path(source), Path(target)
    if not (source / "config.json").is_file():
        raise UserError("no config.json", file=source, remedy="give a Hugging Face model folder")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_model_files(
    source: Path, target: Path, config: Mapping[str, Any], *, stops: StopTokens | None = None
) -> None:
    """Copy the model files of ``source`` into ``target``, with ``config`` as config.json.

    Where ``source`` has no generation_config.json, one is made of the configuration's special tokens. ``stops`` are
    the tokens that the files shall name as the end of a text. Without it the files stay as they are, sampling defaults
    included: the same model has the same files.
    """
    copy_model_files(source, target)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (target / "generation_config.json").is_file():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {key: config[key] for key in keys if config.get(key) is not None}
        (target / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    if stops is not None:
        stops.write(target)


def changed_config(
    raw: Mapping[str, Any],
    *,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Return ``raw`` with changes.

    The RoPE base is always written in both forms, ``rope_theta`` and ``rope_parameters``: readers that miss theirs fall
    back to base 10000 without a word. Raises UserError for values that no model has.
    """
    if rope_theta is not None and not (math.isfinite(rope_theta) and rope_theta > 1):
        raise UserError(f"a RoPE base of {rope_theta:g}", remedy="the recipe's is 500000")
    if max_positions is not None and max_positions < 1:
        raise UserError(f"{max_positions} positions", remedy="the recipe has 131072")
    config = dict(raw)
    rope = rope_of(config)
    theta = rope_theta if rope_theta is not None else rope.theta
    if theta is not None:
        config["rope_theta"] = float(theta)
        config["rope_parameters"] = {**rope.settings, "rope_type": rope.kind, "rope_theta": float(theta)}
        if config.get("rope_scaling"):  # the older name of the same; loaders that know both prefer it
            config["rope_scaling"] = None if rope.kind == "default" else {**rope.settings, "rope_type": rope.kind}
    if max_positions is not None:
        config["max_position_embeddings"] = max_positions
        if "max_window_layers" in config and not config.get("use_sliding_window"):
            config["sliding_window"] = None
    if dtype is not None:
        config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    return config


def main_dtype(tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """Return the dtype of most elements."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel
    if not sizes:
        raise UserError("the weights hold no tensor", remedy="give a model")
    return max(sizes, key=lambda dtype: sizes[dtype])
