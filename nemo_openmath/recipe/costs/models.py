"""Which model a stage of a recipe trains or asks, and its sizes: of its folder, or by its name where none is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.training.planning.models import known_model, model_folder
from nemo_openmath.training.stage import Sft

_MODEL_PORTS = ("model", "models", "training", "quantized", "base")


@dataclass(frozen=True)
class RecipeModel:
    """A model of a recipe: the folder from which it or its training started, and its sizes."""

    name: str
    """Name of the folder."""
    config: ModelConfig | None
    """Its sizes; None of one that is neither there nor known."""


def model_of(recipe: Recipe, name: str | Path) -> RecipeModel:
    """Return the model that an engine, or the input ``model``, names: a stage, ``teacher``, or a folder.

    Of a stage it is that of the training behind it, with the positions and the RoPE base that the training set.
    """
    if name == "teacher":
        teacher = recipe.teacher
        word = teacher.model or "teacher"
        folder = teacher.tokenizer and model_folder(recipe.relative(teacher.tokenizer))
        return RecipeModel(word, known_model(word) or _read(folder or None))
    if isinstance(name, str) and name in recipe.stages:
        entry = recipe.stages[name]
        above = next((entry.inputs[port][0] for port in _MODEL_PORTS if port in entry.inputs), None)
        if above is None:
            return RecipeModel(name, None)
        model = model_of(recipe, above)
        if isinstance(entry.stage, Sft) and model.config is not None:
            return RecipeModel(model.name, _changed(model.config, entry.stage))
        return model
    path = name if isinstance(name, Path) else recipe.relative(name)
    folder = model_folder(path)
    return RecipeModel(path.name, _read(folder) if folder is not None else known_model(path.name))


def _changed(config: ModelConfig, stage: Sft) -> ModelConfig:
    names = ("rope_theta", "max_position_embeddings")
    return config.with_changes(**{n: v for n in names if (v := getattr(stage.config, n)) is not None})


def _read(folder: Path | None) -> ModelConfig | None:
    try:
        return None if folder is None else ModelConfig.from_hf(folder)
    except UserError:  # another kind of model than we train: its sizes are not computed here
        return None
