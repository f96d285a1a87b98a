"""A recipe that a command writes into its output folder: what was done stands there, and can be run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_openmath.core.build import Key
from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, load_recipe

Options = Mapping[str, str]
"""Setting -> option. A setting of a stage stands below its kind, as ``rollout.generate.top_p``: it is that of every
stage of the kind. Others are named as in the file."""


def write_recipe(content: dict[str, Any], output: Path, name: str, options: Options) -> Recipe:
    """Write a recipe as ``name`` into a run's folder, whole or not at all, and load it. ``options``: what its settings
    are called by whom an error tells of them, who has not written this file.

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
    return load_recipe(path, options={(): "the command line", **options_of(content, options)})


def options_of(content: dict[str, Any], options: Options) -> dict[Key, str]:
    """Return the option of each key of a recipe's content."""
    return dict(_keys(content, options))


def _keys(content: dict[str, Any], options: Options) -> Iterator[tuple[Key, str]]:
    for setting, option in options.items():
        yield tuple(setting.split(".")), option
        for name, stage in content["stages"].items():
            if setting.startswith(f"{stage['run']}."):
                yield ("stages", name, *setting.removeprefix(f"{stage['run']}.").split(".")), option
