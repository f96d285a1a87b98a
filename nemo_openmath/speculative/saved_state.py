"""The state of a training on disk, so that a killed one goes on and makes the same drafter."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.core.errors import no_space
from nemo_openmath.core.records.manifest import sync

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SavedState:
    """Where a training is."""

    identity: str  # of what is trained on what: a state of another training is not gone on with
    step: int = 0  # updates done
    drafter: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    targets: int = 0
    outside: int = 0
    measured: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it in one step: what was there before is whole until then."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            torch.save({name: getattr(self, name) for name in self.__slots__}, partial)
            sync(partial)
            os.replace(partial, path)
        except OSError as error:
            raise no_space(path, error.strerror or str(error), "the training goes on from the state before") from error

    @classmethod
    def read(cls, path: Path | None, identity: str) -> SavedState | None:
        """Return the state of this training; None where there is none, or none that can be read."""
        if path is None or not path.is_file():
            return None
        try:
            state = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises whatever its parts raise
            log.warning("%s cannot be read (%s): the training begins anew", path, error)
            return None
        return state if state.identity == identity else None
