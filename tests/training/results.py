"""What a training left in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders


def records(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def final_weights(output: Path) -> dict[str, Tensor]:
    """HF weights of the last step's checkpoint."""
    return weights_after(output, records(output)[-1]["step"])


def weights_after(output: Path, step: int) -> dict[str, Tensor]:
    """HF weights of a step's checkpoint."""
    folder = step_folders.step_folder(output / "checkpoints", step)
    step_folders.verify(folder)
    opened = open_checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor is within ``tolerance`` of the expected one, relative to its norm; 0.0 means bit for bit."""
    assert set(got) == set(expected)
    for name, weight in expected.items():
        error = float((got[name] - weight).norm() / weight.norm())
        assert error <= tolerance, (name, error)
