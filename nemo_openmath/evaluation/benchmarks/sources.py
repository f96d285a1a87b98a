"""Where the rows of a benchmark are from: a file or folder of the user's, or the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records.readers import read_rows

MOST = 1_000_000
"""Rows of a benchmark, at most: a training set is none."""
_SAVED = ("dataset_info.json", "dataset_dict.json")


def file_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, or of the data files of a folder. Raises UserError naming the first broken row."""
    if not path.exists():
        raise UserError("no such file or folder", file=path, remedy="check the path, or write --from datasets")
    return _bounded((row for _, _, row in read_rows(path)), str(path))


def dataset_rows(name: str, split: str, config: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a dataset: of the Hub by its name, or in a folder (files, or what ``save_to_disk`` wrote).

    Raises MissingExtra without the `datasets` library, and UserError where there is no such dataset or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", "reading a dataset by name") from error
    folder = Path(name)
    try:
        if folder.is_dir() and any((folder / file).is_file() for file in _SAVED):
            loaded = datasets.load_from_disk(name)
            rows = loaded if isinstance(loaded, datasets.Dataset) else loaded[split]
        else:
            rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, ImportError) as error:
        words = " ".join(str(error).split())[:300]
        problem = f"cannot load split {split!r} ({type(error).__name__}: {words})"
        raise UserError(problem, file=name, remedy="check name, --split and --config, or give --from FILE") from error
    return _bounded((dict(row) for row in rows), name)


def _bounded(rows: Iterator[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    out = list(islice(rows, MOST + 1))
    if len(out) > MOST:
        raise UserError(f"more than {MOST:,} rows: no benchmark", file=name, remedy="name the benchmark's own file")
    if not out:
        raise UserError("there is no row in it", file=name, remedy="check the name and the split")
    return out
