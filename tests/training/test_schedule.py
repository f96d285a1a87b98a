"""The learning rate's corners, and which checkpoints last."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from nemo_openmath.training.config import Checkpoints, TrainingConfig
from nemo_openmath.training.schedule import learning_rate


def test_learning_rate() -> None:
    config = TrainingConfig(lr=3e-4, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(3e-5)
    assert max(rates) == rates[9] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(3e-7)  # a thousandth, at the last update
    assert all(b < a for a, b in pairwise(rates[9:]))
    middle = 3e-7 + (3e-4 - 3e-7) * 0.5 * (1 + math.cos(math.pi * 45 / 90))
    assert rates[54] == pytest.approx(middle)
    constant = TrainingConfig(lr=1e-5, schedule="constant", warmup=0.0)
    assert {learning_rate(step, 400, constant) for step in range(400)} == {1e-5}


def test_lasting_checkpoints() -> None:
    """The recipe: 4 equally spaced of 30000; figure 4: 0.75, 1.5, 3 and 6 epochs."""
    assert Checkpoints(average_k=4).lasting(30000, 5000.0) == (7500, 15000, 22500, 30000)
    assert Checkpoints(epochs=(0.75, 1.5, 3, 6)).lasting(30000, 5000.0) == (3750, 7500, 15000, 30000)
    assert Checkpoints(steps=(400, 900)).lasting(500, 1.0) == (400, 500)
