"""Texts of a model, kept beside its drafter: n-grams look into them before the model has written anything itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.models.tensor_files import save_tensors

TEXTS = "texts.safetensors"


def save_texts(folder: Path, texts: Sequence[NDArray[np.int32]]) -> None:
    """Write the token ids of ``texts`` into an existing folder; nothing where there are none."""
    if texts:
        ends = np.cumsum([len(text) for text in texts])
        tensors = {"ids": np.concatenate(texts).astype(np.int32), "ends": ends.astype(np.int64)}
        save_tensors({name: torch.from_numpy(array) for name, array in tensors.items()}, folder / TEXTS)


def load_texts(folder: Path, vocab: int) -> list[NDArray[np.int32]]:
    """Read the texts of a drafter's folder; none where it has no file of them. Raises DamagedFile for a file that is
    not one of a model with ``vocab`` tokens."""
    path = folder / TEXTS
    if not path.is_file():
        return []
    try:
        tensors = load_file(path)
        ids, ends = tensors["ids"], tensors["ends"]
        bounds = [0, *ends.tolist()]
        good = ids.dtype == np.int32 and ids.ndim == ends.ndim == 1 and bounds == sorted(bounds)
        if not good or bounds[-1] != len(ids) or ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab:
            raise ValueError(f"ids and ends are not texts of {vocab} tokens")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DamagedFile(path, str(error)) from error
    return np.split(ids, bounds[1:-1])
