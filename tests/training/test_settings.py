"""Settings that mean nothing are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.training.config import Checkpoints, DataConfig, Guard, Profile, TrainingConfig


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TrainingConfig(lr=0.0), "training.lr = 0.0; choose it above 0"),
        (lambda: TrainingConfig(clip=-1.0), "training.clip = -1.0; choose it 0 or more"),
        (lambda: TrainingConfig(log_every=0), "training.log_every = 0; choose it 1 or more"),
        (lambda: TrainingConfig(lr=math.nan), "training.lr = nan; choose it above 0"),
        (lambda: TrainingConfig(beta2=1.0), "training.beta2 = 1.0; choose it from 0 to below 1"),
        (lambda: Guard(spike_factor=-1.0), "guard.spike_factor = -1.0; choose 0 (off)"),
        (lambda: Checkpoints(epochs=(0.75, -1.5)), "checkpoints.epochs holds -1.5; choose numbers above 0"),
        (lambda: Profile(steps=(0,)), "profile.steps holds 0; choose 1 or more"),
        (lambda: DataConfig(Path("packs"), validation_share=1.0), "validation_share = 1.0; choose it from 0"),
        (lambda: DataConfig(Path("a"), validation=Path("b"), validation_share=0.1), "are both given"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert says in str(caught.value)
