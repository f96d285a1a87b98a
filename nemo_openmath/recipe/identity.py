"""Whose run an output folder holds: ``run.json`` says it from the beginning and is read before anything is written.

A folder belongs to one recipe. The recipe may move, and its settings may change: what depends on a change is made
again. Another recipe is refused, so that no report mixes two. A snapshot of the recipe is that recipe.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.records import write_json
from nemo_openmath.core.records.lineage import digest_file
from nemo_openmath.core.records.manifest import MANIFEST, PLAN
from nemo_openmath.recipe.file import Recipe

RUN = "run.json"
SCRIPTS = "sbatch/submit.sh"  # of openmath launch, before its first job has begun
_REMEDY = "give another --output, or add --replace to recipe run or generate, which puts this run in its place"


def read(output: Path) -> dict[str, Any] | None:
    """Return what ``run.json`` says; None where there is none."""
    path = output / RUN
    try:
        content = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except orjson.JSONDecodeError as error:
        raise DamagedFile(path, f"not JSON ({error})", "delete it and run the recipe again") from None
    return content if isinstance(content, dict) else {}


def refuse_foreign(output: Path, files: Sequence[Path]) -> None:
    """Raise UserError where the folder holds something and is not that of a run. ``files``, of the recipe, may lie
    there."""
    refuse_foreign_folder(output, "the folder of a run", (RUN, SCRIPTS, f"*/{PLAN}"), files)


def check(recipe: Recipe, output: Path) -> None:
    """Raise UserError where the folder holds the run of another recipe, or stages of one."""
    owner = read(output)
    if owner is not None and (other_recipe := _other(owner, recipe)):
        raise UserError(f"holds the run of {other_recipe}", file=output, remedy=_REMEDY)
    if owner is None and (strangers := _strangers(recipe, output)):
        names = ", ".join(path.name for path in strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise UserError(f"holds stages that this recipe has not: {names}", file=output, remedy=_REMEDY)


def take_over(recipe: Recipe, output: Path) -> list[str]:
    """Remove stages that another recipe left in the folder, and return their names."""
    owner = read(output)
    strangers = _strangers(recipe, output) if owner is None or _other(owner, recipe) else []
    for folder in strangers:
        shutil.rmtree(folder)
    return [folder.name for folder in strangers]


def write(recipe: Recipe, overrides: Sequence[str], output: Path) -> None:
    """Write down whose run the folder holds. ``overrides``: those that the recipe, or its snapshot, was read with."""
    output.mkdir(parents=True, exist_ok=True)
    owner = {
        "verb": recipe.verb,
        "name": recipe.name,
        "recipe": str(recipe.path.resolve()),
        "digest": recipe.digest(),
        "extends": [str(path.resolve()) for path in recipe.extends],
        "overrides": list(overrides),
        "folder": str(Path.cwd()),
        "command": sys.argv,
    }
    if recipe.snapshot is not None:
        owner["snapshot"] = os.path.relpath(recipe.snapshot.resolve(), output.resolve())
    write_json(output / RUN, owner)


def _other(owner: dict[str, Any], recipe: Recipe) -> str | None:
    """The recipe that a folder belongs to, in words; None where it is this one. This one has the same name and is the
    same file, or a file with the same content."""
    verb, name, path = owner.get("verb", "recipe"), owner.get("name"), Path(owner.get("recipe", ""))
    if (verb, name or recipe.name) != (recipe.verb, recipe.name):
        return f"{'recipe' if verb == 'recipe' else verb} {name!r} ({path})"
    same = path.resolve() == recipe.path.resolve() or recipe.digest() in (owner.get("digest"), _digest(path))
    if path.is_file() and not same:
        return f"another recipe {name or recipe.name!r} ({path})"
    return None


def _digest(path: Path) -> str | None:
    return digest_file(path) if path.is_file() else None


def _strangers(recipe: Recipe, output: Path) -> list[Path]:
    """The folders of stages that the recipe does not have."""
    if not output.is_dir():
        return []
    folders = (p for p in sorted(output.iterdir()) if p.is_dir() and not p.name.startswith("."))
    stages = (p for p in folders if (p / PLAN).is_file() or (p / MANIFEST).is_file())
    return [p for p in stages if p.name not in recipe.stages]
