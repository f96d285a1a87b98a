"""CUDA as a CPU can pretend it: the code under test chooses devices, threads and memory as on a GPU, and computes here.

    with fake_cuda(devices=4, name="NVIDIA H100 80GB HBM3") as cuda:
        keys = torch.zeros(64, 128, device="cuda:1")     # lies in host memory; keys.is_cuda, keys.device say cuda:1
    assert cuda.devices_in_use == {1}

What is pretended

- ``torch.cuda``: how many devices there are, their names and memory, the current one (each thread has its own, and a
  new thread begins with 0, as in CUDA), streams, events, and what is there to wait for;
- tensors: factories and moves to ``cuda`` answer with tensors on the host that say they are on the device, and so do
  the results of what is computed from them. A device that is not there, or has not the memory, refuses as CUDA does.

What is not: kernels and their speed, NCCL, other processes, tensors in other threads than the one that entered (there
``torch.cuda`` is pretended, tensors are not), and gradients that autograd makes (they say ``cpu``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

GIB = 1 << 30
_CPU = torch.device("cpu")
_STAYS = -1


@dataclass
class Call:
    """A call of ``torch.cuda`` that was recorded."""

    name: str
    device: int
    """The device that it was about; the caller's current one where it named none."""
    thread: str


@dataclass
class FakeCuda:
    """The devices that are pretended, and what was done with them."""

    devices: int
    name: str
    memory_bytes: int
    """Of each device."""
    used_bytes: int
    """Of each device, by others."""
    calls: list[Call] = field(default_factory=list)
    _current: threading.local = field(default_factory=threading.local)
    _storages: dict[int, tuple[StorageWeakRef, int, int]] = field(default_factory=dict)
    _peaks: dict[int, int] = field(default_factory=dict)

    @property
    def devices_in_use(self) -> set[int]:
        """Return the devices that any thread has worked with: on each of them this process has memory."""
        return {call.device for call in self.calls if call.name != "set_device"}

    def names(self) -> list[str]:
        """Return the names of what was called, in order."""
        return [call.name for call in self.calls]

    def allocated(self, device: Any = None) -> int:
        """Return the bytes of the tensors that live on a device."""
        place = self.index(device)
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        return sum(size for _, index, size in self._storages.values() if index == place)

    def index(self, device: Any = None) -> int:
        """Return the number of a device, as CUDA understands what names it. Raises what CUDA raises where it is not
        there."""
        place = device if isinstance(device, int) else None if device is None else torch.device(device).index
        place = getattr(self._current, "device", 0) if place is None or place < 0 else place
        if place >= self.devices:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return place

    def record(self, name: str, device: Any = None) -> int:
        """Note a call and return the number of its device."""
        place = self.index(device)
        self.calls.append(Call(name, place, threading.current_thread().name))
        return place

    def place_of(self, tensor: torch.Tensor) -> int | None:
        """Return the device on which a tensor is said to be; None for the host's."""
        entry = self._storages.get(tensor.untyped_storage()._cdata)
        return None if entry is None or entry[0].expired() else entry[1]

    def put(self, tensor: torch.Tensor, device: int) -> None:
        """Say that a tensor is on a device. Raises torch's OutOfMemoryError where it has no room."""
        storage = tensor.untyped_storage()
        if self.place_of(tensor) is None:
            total = self.allocated(device) + storage.nbytes()
            if total > self.memory_bytes - self.used_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes() / GIB:.2f} GiB")
            self._peaks[device] = max(self._peaks.get(device, 0), total)
        self._storages[storage._cdata] = (StorageWeakRef(storage), device, storage.nbytes())

    def namespace(self) -> dict[str, Any]:
        """Return what stands in for the functions of ``torch.cuda``, by name."""

        def noted(name: str, answer: Callable[[int], Any] = lambda _: None) -> Callable[..., Any]:
            return lambda device=None, *_, **__: answer(self.record(name, device))

        def properties(device: Any = None) -> SimpleNamespace:
            uuid = f"GPU-{self.index(device)}"
            return SimpleNamespace(name=self.name, total_memory=self.memory_bytes, major=9, minor=0, uuid=uuid)

        return {
            "is_available": lambda: self.devices > 0,
            "device_count": lambda: self.devices,
            "is_initialized": lambda: True,
            "init": lambda: None,
            "is_bf16_supported": lambda *_, **__: True,
            "current_device": lambda: self.index(),
            "set_device": self._set_device,
            "device": self._device,
            "get_device_name": lambda device=None: properties(device).name,
            "get_device_capability": lambda device=None: (properties(device).major, properties(device).minor),
            "get_device_properties": properties,
            "mem_get_info": noted(
                "mem_get_info", lambda i: (self.memory_bytes - self.used_bytes - self.allocated(i), self.memory_bytes)
            ),
            "memory_allocated": lambda device=None: self.allocated(device),
            "max_memory_allocated": lambda device=None: self._peaks.get(self.index(device), 0),
            "reset_peak_memory_stats": lambda device=None: self._peaks.clear(),
            "empty_cache": noted("empty_cache"),
            "synchronize": noted("synchronize"),
            "Stream": lambda device=None, **_: FakeStream(self, self.record("Stream", device)),
            "Event": lambda **_: FakeStream(self, self.record("Event")),
            "current_stream": noted("current_stream", lambda i: FakeStream(self, i)),
            "default_stream": noted("default_stream", lambda i: FakeStream(self, i)),
            "stream": _within,
            "manual_seed": torch.manual_seed,
            "manual_seed_all": lambda _: None,  # torch.manual_seed calls it
            "get_rng_state": lambda *_, **__: torch.get_rng_state(),
            "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        }

    def _set_device(self, device: Any) -> None:
        self._current.device = self.record("set_device", device)

    @contextmanager
    def _device(self, device: Any) -> Iterator[None]:
        before, self._current.device = self.index(), self.index(device)
        try:
            yield
        finally:
            self._current.device = before


@dataclass
class FakeStream:
    """A stream or an event; all work is done already."""

    cuda: FakeCuda
    device_index: int

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.device_index)

    def synchronize(self) -> None:
        """Note the wait."""
        self.cuda.record("stream.synchronize", self.device_index)

    def query(self) -> bool:
        """Return True: nothing is left to do."""
        return True

    def elapsed_time(self, _event: FakeStream) -> float:
        """Return 1 ms, whatever was done."""
        return 1.0

    def record(self, _stream: object = None) -> None:
        """Do nothing, as does every order between streams."""

    record_event = wait_stream = wait_event = wait = record


@contextmanager
def _within(_stream: object) -> Iterator[None]:
    yield


class _Tensors(TorchFunctionMode):
    """Tensors on pretended devices, in the thread that entered."""

    def __init__(self, cuda: FakeCuda):
        super().__init__()
        self.cuda = cuda

    def __torch_function__(
        self, function: Callable[..., Any], _types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "__get__":
            return self._property(function, args[0])
        if function is torch.device or name == "_parse_to":  # what Module.to asks before it moves parameters
            return function(*args, **kwargs)
        places = [
            p for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor) and (p := self._place(t)) is not None
        ]
        target = self._target(name, args, kwargs)
        if name in ("cuda", "cpu", "pin_memory"):
            self.cuda.record(name, target)
            result = torch.Tensor.to(args[0], _CPU, copy=self._place(args[0]) != target and name != "pin_memory")
        else:
            if name == "to" and target != _STAYS and target != self._place(args[0]):
                kwargs["copy"] = True  # another memory
            kwargs = {key: _on_host(value) for key, value in kwargs.items()}
            if isinstance(kwargs.get("device"), int):
                kwargs["device"] = _CPU
            result = function(*tree_map(_on_host, args), **kwargs)
        place = target if target != _STAYS else places[0] if places else None
        if place is not None:
            for tensor in tree_iter(result):
                if isinstance(tensor, torch.Tensor):
                    if target != _STAYS:
                        self.cuda.record(name, place)
                    self.cuda.put(tensor, place)
        return result

    def _place(self, tensor: torch.Tensor) -> int | None:
        return self.cuda.place_of(tensor)

    def _target(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Return the device that a call asks for, None for the host; _STAYS where it asks for none."""
        if name in ("cpu", "pin_memory"):
            return None
        if name == "cuda":
            return self.cuda.index(kwargs.get("device", args[1] if len(args) > 1 else None))
        named = kwargs.get("device")
        if name == "to":
            named = next((a for a in args[1:] if isinstance(a, (str, torch.device, torch.Tensor))), named)
        if isinstance(named, torch.Tensor):
            return self._place(named)
        if named is None:
            return _STAYS
        if isinstance(named, int):
            return self.cuda.index(named)
        return self.cuda.index(named) if torch.device(named).type == "cuda" else None

    def _property(self, getter: Any, tensor: torch.Tensor) -> Any:
        place = self._place(tensor)
        which = getattr(getattr(getter, "__self__", None), "__name__", "")
        if place is not None and which in ("is_cuda", "device", "is_cpu"):
            return {"is_cuda": True, "is_cpu": False, "device": torch.device("cuda", place)}[which]
        return getter(tensor)


def _on_host(value: Any) -> Any:
    """Return the host's device in place of a pretended one."""
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] == "cuda")
    return _CPU if named and torch.device(value).type == "cuda" else value


@contextmanager
def fake_cuda(
    devices: int = 1,
    *,
    name: str = "NVIDIA H100 80GB HBM3",
    memory_bytes: int = 80 * GIB,
    used_bytes: int = 0,
) -> Iterator[FakeCuda]:
    """Pretend ``devices`` GPUs within: see the module's text."""
    cuda = FakeCuda(devices, name, memory_bytes, used_bytes)
    with ExitStack() as stack:
        for function, stand_in in cuda.namespace().items():
            stack.enter_context(patch.object(torch.cuda, function, stand_in))
        # models/cpu_compat.py may have replaced it in this process
        stack.enter_context(patch.object(torch.Tensor, "cuda", torch._C.TensorBase.cuda))
        stack.enter_context(_Tensors(cuda))
        yield cuda
