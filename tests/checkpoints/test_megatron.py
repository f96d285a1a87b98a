"""megatron-core itself, in real processes, loads what we write at any layout, and we read what it saves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemo_openmath.models.configs import ModelConfig

from . import models


def run_ranks(count: int, *arguments: str | Path | int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("megatron_ranks.py")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), errors[0][-3000:]


EVEN = {"vocab_size": 108}  # megatron-core pads no vocabulary on its own: it must divide by TP here


@pytest.mark.parametrize(
    ("processes", "layouts"),
    [
        pytest.param(2, [(models.TIED.with_changes(**EVEN), 2, 1), (models.TIED, 1, 2)], marks=pytest.mark.slow),
        pytest.param(4, [(models.UNTIED.with_changes(**EVEN), 2, 2), (models.UNTIED, 1, 2)], marks=pytest.mark.manual),
    ],
)
def test_megatron_core_loads_and_saves_bitwise(
    tmp_path: Path, processes: int, layouts: list[tuple[ModelConfig, int, int]]
) -> None:
    jobs: list[str | Path | int] = []
    for number, (config, tp, pp) in enumerate(layouts):
        source = models.make(tmp_path / f"hf{number}", config)
        ours = hf_to_megatron(source, tmp_path / f"ours{number}")
        jobs += [source, ours / "state", tmp_path / f"theirs{number}", tp, pp]
    run_ranks(processes, *jobs)
    for number in range(len(layouts)):
        source = tmp_path / f"hf{number}"
        back = megatron_to_hf(tmp_path / f"theirs{number}", tmp_path / f"back{number}", model_files=source)
        assert models.same(models.load(back), models.load(source))
