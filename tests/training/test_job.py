"""A job that cannot be done is refused before its ranks start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.models.configs import preset
from nemo_openmath.training.job import check_job, read_job
from tests.support import models


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
