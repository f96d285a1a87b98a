"""Files of tensors that others may read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_tensors"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions of any new file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    _share(path)


def _share(path: Path) -> None:
    """Give a file the permissions of any new one. What safetensors 0.8 writes is for its owner alone: colleagues on a
    cluster and the user of a container could not read it."""
    like = path.with_name(f"{path.name}.new")
    try:
        like.touch()
        path.chmod(like.stat().st_mode)
    finally:
        like.unlink(missing_ok=True)
