"""The pretended CUDA behaves as CUDA does where code can tell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.fake_cuda import GIB, fake_cuda


def test_tensors_say_where_they_are() -> None:
    with fake_cuda(devices=2) as cuda:
        torch.cuda.set_device(1)
        host = torch.ones(4)
        moved = host.to("cuda:0")
        assert (moved.is_cuda, moved.device, host.is_cuda, host.device.type) == (
            True,
            torch.device("cuda", 0),
            False,
            "cpu",
        )
        moved.mul_(2)
        assert host.sum() == 4  # another memory
        product = torch.arange(4.0, device="cuda") @ host.cuda()
        assert product.device == torch.device("cuda", 1)
        assert product.item() == 6
        back = moved[1:].cpu()
        assert not back.is_cuda
        assert back.tolist() == [2, 2, 2]
        assert torch.nn.Linear(2, 2).cuda().weight.is_cuda
        assert torch.nn.Linear(2, 2, device="cuda:0").weight.device.index == 0
        assert moved.new_zeros(2).is_cuda
        assert torch.zeros_like(moved).is_cuda
        assert cuda.devices_in_use == {0, 1}
    assert not torch.cuda.is_available()
    assert not torch.ones(1).is_cuda


def test_devices_and_memory_refuse_as_cuda_does() -> None:
    with fake_cuda(devices=2, memory_bytes=GIB, used_bytes=GIB // 2) as cuda:
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.cuda.set_device(2)
        held = torch.empty(GIB // 4, dtype=torch.uint8, device="cuda")
        assert torch.cuda.mem_get_info() == (GIB // 4, GIB)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(GIB // 2, dtype=torch.uint8, device="cuda")
        del held
        assert (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()) == (0, GIB // 4)
        assert cuda.allocated("cuda:1") == 0


def test_a_new_thread_begins_with_device_0() -> None:
    with fake_cuda(devices=2) as cuda:
        torch.cuda.set_device(1)
        with ThreadPoolExecutor(1, "other") as pool:
            assert pool.submit(torch.cuda.current_device).result() == 0
            pool.submit(torch.cuda.synchronize).result()
        torch.cuda.current_stream().synchronize()
    assert [(call.name, call.device, call.thread.split("_")[0]) for call in cuda.calls[1:]] == [
        ("synchronize", 0, "other"),
        ("current_stream", 1, "MainThread"),
        ("stream.synchronize", 1, "MainThread"),
    ]
