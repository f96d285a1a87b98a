"""Where a model runs outside of a training, with CUDA pretended."""

from __future__ import annotations

import logging

import pytest
import torch

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.devices import run_device, use_steady_attention
from tests.support.fake_cuda import GIB, fake_cuda


def test_a_task_takes_the_gpu_that_has_room_for_it(caplog: pytest.LogCaptureFixture) -> None:
    assert run_device("auto", 1, "a task") == "cpu"
    with pytest.raises(UserError, match="'cuda' cannot be used"):
        run_device("cuda", 1, "a task")
    with fake_cuda(memory_bytes=80 * GIB, used_bytes=60 * GIB), caplog.at_level(logging.WARNING):
        assert run_device("auto", 20 * GIB, "a task") == "cuda"
        assert run_device("cpu", 1, "a task") == "cpu"
        assert not caplog.messages
        said = "a task takes some 21.0 GiB of the GPU's memory, and 20.0 GiB are free"
        assert run_device("auto", 21 * GIB, "a task") == "cpu"
        assert caplog.messages == [f"{said}: it runs on the CPU"]
        with pytest.raises(UserError, match=f"{said}; use device: cpu"):
            run_device("cuda", 21 * GIB, "a task")


def test_attention_without_plans_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        use_steady_attention("cpu")
        assert torch.backends.cuda.cudnn_sdp_enabled() == was
        use_steady_attention("cuda:1")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
