"""Tensors held against the names and shapes that a configuration asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from nemo_openmath.core.errors import UserError


class HasShape(Protocol):
    """A tensor, in memory or not."""

    @property
    def shape(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=HasShape)


def checked(name: str, tensor: T | None, shape: tuple[int, ...], file: Path | None = None) -> T:
    """Return ``tensor``; raise UserError where it is None or has another shape than the configuration says."""
    remedy = "check config.json against the weights"
    if tensor is None:
        raise UserError(f"the weights hold no {name}", file=file, remedy=remedy)
    if tuple(tensor.shape) != shape:
        problem = f"{name} has shape {tuple(tensor.shape)}, the configuration says {shape}"
        raise UserError(problem, file=file, remedy=remedy)
    return tensor


def check_tensors(tensors: Mapping[str, HasShape], shapes: Mapping[str, tuple[int, ...]], file: Path | None) -> None:
    """Raise UserError naming a tensor that is missing, has another shape than ``shapes`` says, or is not in it."""
    for name, shape in shapes.items():
        checked(name, tensors.get(name), shape, file)
    if left := tensors.keys() - shapes.keys():
        raise no_place(left, file)


def no_place(names: Collection[str], file: Path | None = None) -> UserError:
    """Return the error about tensors that the architecture of config.json has no place for: they would be lost."""
    problem = f"config.json has no place for {min(names)} ({len(names)} such tensor{'s' * (len(names) > 1)})"
    return UserError(problem, file=file, remedy="check config.json against the weights")
