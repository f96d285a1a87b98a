"""What a cluster launcher must know of a recipe's stages."""

from __future__ import annotations

from pathlib import Path

from nemo_openmath.core.stage import UnitStage
from nemo_openmath.launch import StageInfo
from nemo_openmath.recipe.file import Recipe, StageEntry
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import Selection
from nemo_openmath.recipe.status import State
from nemo_openmath.training.stage import Sft


def stage_infos(recipe: Recipe, output: Path, until: str | None = None) -> list[StageInfo]:
    """The recipe's stages in order, up to and including ``until``. ``output``: the run's folder."""
    return [_info(recipe.stages[name], recipe, output) for name in Selection(until=until).names(recipe)]


def finished_stages(recipe: Recipe, output: Path) -> frozenset[str]:
    """Stages that `recipe run` would leave alone."""
    return frozenset(s.name for s in Run(recipe, output).status() if s.state is State.FINISHED)


def _info(entry: StageEntry, recipe: Recipe, output: Path) -> StageInfo:
    engines = entry.stage.engines()
    read = [name for names in entry.inputs.values() for name in names if isinstance(name, str)]
    made = [name for name in engines if name in recipe.stages]
    return StageInfo(
        name=entry.name,
        kind=entry.stage.kind,
        after=tuple(dict.fromkeys([*read, *made])),
        splits=isinstance(entry.stage, UnitStage),
        trains=isinstance(entry.stage, Sft),
        # the very text that RecipeServices asks its engine for: servers know models by name
        models=tuple(name if name == "teacher" else _folder(name, recipe, output) for name in engines),
    )


def _folder(name: str, recipe: Recipe, output: Path) -> str:
    return str(output / name if name in recipe.stages else recipe.relative(name).resolve())
