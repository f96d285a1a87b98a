"""Model folders of any architecture: what is there of them, and how large they and the models of stages are."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.costs.storage import model_bytes
from nemo_openmath.recipe.file import Recipe

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelSize:
    """What is known of a model without its tensors; None where nothing says it."""

    max_positions: int | None
    """Longest sequence in tokens."""
    heads: int | None
    """Attention heads."""
    weight_bytes: int | None
    """Bytes of its weights."""
    cache_bytes: int | None
    """Bytes of keys and values of a token, in bf16."""
    splits_cache: bool = True
    """Whether tensor parallelism divides keys and values: not those of multi-head latent attention."""


def model_size(recipe: Recipe, name: str | Path) -> ModelSize | None:
    """Return what is known of a model of any architecture, a folder or what a stage makes; None where nothing is."""
    if isinstance(name, str) and name in recipe.stages:
        shape = model_of(recipe, name).config
        if shape is None:
            return None
        cache = 4 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
        return ModelSize(shape.max_position_embeddings, shape.num_attention_heads, model_bytes(shape), cache)
    folder = recipe.relative(name) if isinstance(name, str) else name
    if (config := read_config(folder)) is None:
        return None
    size = stored_bytes(folder)
    if size is None:
        with contextlib.suppress(UserError, OSError):
            size = model_bytes(ModelConfig.from_hf(config_folder(folder), quantized=True))
    latent = isinstance(config.get("kv_lora_rank"), int)
    return ModelSize(
        max_positions=_positions(config),
        heads=_number(config, "num_attention_heads"),
        weight_bytes=size,
        cache_bytes=_cache_bytes(config, latent),
        splits_cache=not latent,
    )


def _number(config: dict[str, Any], name: str) -> int | None:
    number = config.get(name)
    return number if isinstance(number, int) and number > 0 else None


def _positions(config: dict[str, Any]) -> int | None:
    """The longest sequence: with YaRN and the like, that of the scaled embedding."""
    positions = _number(config, "max_position_embeddings")
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or positions is None:
        return positions
    factor, original = scaling.get("factor"), _number(scaling, "original_max_position_embeddings")
    if not isinstance(factor, int | float) or original is None:
        return positions
    return max(positions, int(original * factor))


def _cache_bytes(config: dict[str, Any], latent: bool) -> int | None:
    """Bytes of keys and values of a token; None where the configuration does not say."""
    layers, heads = _number(config, "num_hidden_layers"), _number(config, "num_attention_heads")
    if layers is None or heads is None:
        return None
    if latent:  # DeepSeek-V2, arXiv 2405.04434, section 2.1: one compressed vector, and rotated keys
        return 2 * layers * (config["kv_lora_rank"] + (_number(config, "qk_rope_head_dim") or 0))
    width = _number(config, "head_dim") or (_number(config, "hidden_size") or 0) // heads
    return 4 * layers * (_number(config, "num_key_value_heads") or heads) * width


def config_folder(folder: Path) -> Path:
    """Return the folder that holds ``config.json``: of a checkpoint, the one within."""
    inside = folder / "model"
    return inside if (inside / "config.json").is_file() else folder


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return ``config.json`` of a model folder; None where there is none that can be read."""
    try:
        config = json.loads((config_folder(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def weight_files(folder: Path) -> list[Path] | None:
    """Return the files of the weights: those that the index names, else all safetensors; None where an index cannot be
    read."""
    folder = config_folder(folder)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except FileNotFoundError:
        return sorted(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stored_bytes(folder: Path) -> int | None:
    """Return the bytes of the weights in a model folder: what the index says, else those of the files."""
    folder = config_folder(folder)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]["total_size"])
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None
    return None
