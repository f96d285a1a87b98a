"""Settings and jobs that mean nothing are refused early; the learning rate's corners; which checkpoints last."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.models.configs import preset
from nemo_openmath.training.config import Checkpoints, DataConfig, Guard, Profile, TrainingConfig
from nemo_openmath.training.job import check_job, read_job
from nemo_openmath.training.schedule import learning_rate
from tests.support import models


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


def _packs_of_six(folder: Path) -> None:
    folder.mkdir()
    with ShardWriter(folder / "00000.tokens", tokenizer="t", vocab_size=300, source="s") as writer:
        for name in "abcdef":
            writer.add(name, "cot", np.arange(4), [False, True, True, True])
        writer.finish({})
    write_manifest(folder, ["00000.tokens"])
    write_packs(folder, capacity=32, pad_multiple=4, mixture=Mixture([["cot"]], {"cot": 1.0}))


def test_a_job_is_refused_before_ranks_start(tmp_path: Path) -> None:
    models.make(tmp_path / "hf", preset("tiny"))
    packs = "data: {folder: packs, steps: 4, batch_samples: 6}"
    (tmp_path / "job.yaml").write_text(f"{{model: hf, {packs}, output: out}}")
    with pytest.raises(UserError, match=r"packs\.plan: no such file"):
        check_job(read_job(tmp_path / "job.yaml"), 1)
    _packs_of_six(tmp_path / "packs")
    job = read_job(tmp_path / "job.yaml", ["parallel.tp=2", "lr=1e-5", "training.parallel.cp=2"])
    assert (job.training.parallel.tp, job.training.parallel.cp, job.training.lr) == (2, 2, 1e-5)
    check_job(job, 8)
    with pytest.raises(UserError, match="6 processes are not a multiple"):
        check_job(job, 6)
    with pytest.raises(UserError, match=r"packed with pad_multiple = 4, the layout .* 8 "):
        check_job(read_job(tmp_path / "job.yaml", ["parallel.cp=4"]), 8)
    with pytest.raises(UserError, match=r"batch_samples = 7 is more than the 6 samples there are.*choose 6 or fewer"):
        check_job(read_job(tmp_path / "job.yaml", ["data.batch_samples=7"]), 1)
    save_file({**models.random_tensors(preset("tiny")), "x": torch.ones(1)}, tmp_path / "hf/model.safetensors")
    with pytest.raises(UserError, match="no place for x"):
        check_job(job, 8)
    with pytest.raises(UserError, match=r"keep_last: -1 is out of range"):
        read_job(tmp_path / "job.yaml", ["checkpoints.keep_last=-1"])


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
