"""The recipe and the cluster file of a launched run, as they were when it was launched: what its jobs read.

The snapshot holds what the recipe extends and the overrides. Small files that settings of stages name, such as prompts,
are copied beside it. Models and data stay where they are: their size and time are noted, and a job says when they have
changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.build import Key
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import of_the_system
from nemo_openmath.core.records.ids import content_id
from nemo_openmath.core.records.lineage import digest_file
from nemo_openmath.core.snapshot import Snapshot, snapshot_text
from nemo_openmath.recipe.file import Recipe

FOLDER = "sbatch"
RECIPE, CLUSTER, FILES = "recipe.yaml", "cluster.yaml", "files"
_SMALL = 1 << 20  # bytes of a file that is copied: prompts have some thousand


def write_snapshots(
    recipe: Recipe, overrides: Sequence[str], cluster_file: Path, output: Path, more: dict[str, Any]
) -> tuple[Path, Path]:
    """Write ``output/sbatch/recipe.yaml`` and ``cluster.yaml``, and return their paths.

    ``more``: what is noted beside, as plain data. What already is such a snapshot of this run stays as it is.
    """
    folder = output.resolve() / FOLDER
    paths = folder / RECIPE, folder / CLUSTER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if recipe.snapshot is None or recipe.snapshot.resolve() != paths[0]:
            inputs = {str(path): signature for path, signature in _inputs(recipe).items()}
            _write(paths[0], _recipe_text(recipe, overrides, folder / FILES, {**more, "inputs": inputs}))
        if cluster_file.resolve() != paths[1]:
            _write(paths[1], _text(Source.read(cluster_file), (), {}))
    except OSError as error:
        raise of_the_system(error, folder) or error from error
    return paths


def changed_inputs(recipe: Recipe, names: Sequence[str]) -> list[Path]:
    """Return the files and folders that these stages read and that have changed since the snapshot was made; none for
    what is no snapshot."""
    if recipe.source is None or recipe.source.snapshot is None:
        return []
    noted = recipe.source.snapshot.more.get("inputs", {})
    paths = dict.fromkeys(path.resolve() for name in names for path in recipe.files(recipe.entry(name)))
    return [path for path in paths if str(path) in noted and noted[str(path)] != _signature(path)]


def _recipe_text(recipe: Recipe, overrides: Sequence[str], files: Path, more: dict[str, Any]) -> str:
    assert recipe.source is not None
    written = recipe.loop.written if recipe.loop is not None else lambda key: key
    values = (v for v in recipe.values if v.key[0] == "stages" and isinstance(v.value, Path))
    text_files = {written(v.key): v.value for v in values}
    shutil.rmtree(files, ignore_errors=True)
    for key, path in text_files.items():
        if path.is_file() and path.stat().st_size <= _SMALL:
            copy = files / ".".join(key[1:]) / path.name  # a file counts by its name and content
            copy.parent.mkdir(parents=True)
            shutil.copyfile(path, copy)
            _put(recipe.source.data, key, str(copy))
    return _text(recipe.source, overrides, more)


def _text(source: Source, overrides: Sequence[str], more: dict[str, Any]) -> str:
    before = source.snapshot
    if before is not None:  # the snapshot of another run
        snapshot = Snapshot(before.of, before.digest, before.extends, (*before.overrides, *overrides), Path.cwd(), more)
    else:
        digest = digest_file(source.path)
        snapshot = Snapshot(source.path, digest, source.files[1:], tuple(overrides), Path.cwd(), more)
    heading = f"# {source.path.resolve()} as it was when this run was launched. Edit that file, and launch again.\n"
    return heading + snapshot_text(source.data, source.origins, snapshot)


def _put(data: dict[str, Any], key: Key, value: str) -> None:
    at: Any = data
    for part in key[:-1]:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[int(key[-1]) if isinstance(at, list) else key[-1]] = value


def _inputs(recipe: Recipe) -> dict[Path, str]:
    paths = dict.fromkeys(path.resolve() for entry in recipe.stages.values() for path in recipe.files(entry))
    return {path: _signature(path) for path in paths}


def _signature(path: Path) -> str:
    """Names, sizes and times of what lies there: enough to see that somebody wrote to it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.exists() else []
    return content_id("files", [(str(p.relative_to(path)), (at := p.stat()).st_size, at.st_mtime_ns) for p in files])


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
