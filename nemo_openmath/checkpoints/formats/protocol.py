"""What all formats of checkpoints have in common: how a folder is opened, and what is found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_openmath.checkpoints.lazy import LazyTensor


@dataclass(frozen=True)
class Contents:
    """The tensors of a folder under the format's own names."""

    folder: Path
    tensors: Mapping[str, LazyTensor]
    model_files: Path
    """The folder of config.json and tokenizer."""
    config: dict[str, Any]
    """config.json as it is."""
    layout: str
    """How the tensors are cut on disk, in words."""
    step: int | None = None
    notes: tuple[str, ...] = ()
    """Lines on what is not read, for whoever opens the folder."""


class Format(Protocol):
    """A module of this package that opens folders of one format."""

    def open_folder(self, folder: Path, model_files: Path | None, strict: bool) -> Contents | None:
        """Open ``folder``; return None where it is not of this format.

        ``model_files``: the folder of config.json, if not the format's own place. ``strict``: refuse what cannot be
        computed with. Raises UserError or DamagedFile naming the file and what is wrong with it.
        """
