"""A recipe that a command writes into its output folder and runs: what was done stands there, and can be run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection


def write_recipe(content: dict[str, Any], output: Path, name: str) -> Recipe:
    """Write a recipe as ``name`` into a run's folder, whole or not at all, and load it.

    Raises UserError where the folder holds something else, and where the recipe is wrong.
    """
    path = output / name
    identity.refuse_foreign(output, [path])
    owner = identity.read(output)
    if owner is not None and Path(str(owner.get("recipe", ""))).resolve() != path.resolve():
        raise UserError("holds another run", file=output, remedy="give another --output")
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    temporary = path.with_name(f".{name}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise of_the_system(error, output) or error from error
    return load_recipe(path)


async def run_written(content: dict[str, Any], output: Path, name: str, *, replace: bool = False) -> Run:
    """Write a recipe into a run's folder and run it: what of it is done stays."""
    run = Run(write_recipe(content, output, name), output)
    await run.execute(StageSelection(replace=replace))
    return run
