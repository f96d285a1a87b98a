"""megatron-core on a machine without CUDA, over gloo. The one file that knows megatron-core's CUDA assumptions.

:func:`install` does nothing when CUDA is available, so the GPU path is untouched. Without CUDA it

* gives the ``torch.cuda`` calls that megatron-core makes unconditionally a CPU meaning (they raise otherwise);
* hands the few modules that write ``device="cuda"`` literally a view of ``torch`` whose factories answer with CPU
  tensors (those modules alone: the rest of the process keeps the real ``torch``);
* lets the CUDA random-state tracker keep the CPU generator's state.

:func:`cuda_type_names` is for building the optimizer, which tells parameters apart by ``tensor.type()`` strings.

:data:`SERIES` has a table for each series of megatron-core that is known, of everything that is named here; a test
fails when one of them moves upstream. Call :func:`install` before anything else imports megatron-core: a rank then
starts in half the time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from nemo_openmath.core.errors import UserError


@dataclass(frozen=True)
class MegatronSeries:
    """The releases of megatron-core that share their first two numbers, and what this file relies on in them."""

    run: tuple[str, ...]
    """The releases that the tests were run with, the newest last."""
    relied_on: Mapping[str, tuple[str, ...]]
    """Module -> names in it, or fragments of its source."""


_RELIED_ON: dict[str, tuple[str, ...]] = {
    "megatron.core.pipeline_parallel.schedules": ('torch.zeros([], dtype=torch.int, device="cuda")',),
    "megatron.core.optimizer.optimizer": ("device='cuda'", "param.type() == 'torch.cuda.FloatTensor'"),
    "megatron.core.optimizer.distrib_optimizer": ("model_param.type() == 'torch.cuda.FloatTensor'",),
    "megatron.core.optimizer.clip_grads": ("torch.zeros(1, dtype=torch.int, device='cuda')",),
    "megatron.core.optimizer.grad_scaler": ("device='cuda'",),
    "megatron.core.distributed.param_and_grad_buffer": ("device=torch.cuda.current_device()",),
    "megatron.core.utils": ('torch.tensor([float(l2_reduced)], dtype=torch.float, device="cuda")',),
    "megatron.core.dist_checkpointing.exchange_utils": ('torch.empty_like(tensor, device="cuda")',),
    "megatron.core.tensor_parallel.random": ("def _get_cuda_rng_state(", "def _set_cuda_rng_state("),
}
SERIES: dict[str, MegatronSeries] = {
    "0.16": MegatronSeries(("0.16.1",), _RELIED_ON),  # the newest for Python 3.11
    "0.17": MegatronSeries(("0.17.1",), _RELIED_ON),
    "0.18": MegatronSeries(("0.18.2",), _RELIED_ON),
    "0.19": MegatronSeries(
        ("0.19.2",),
        {
            **_RELIED_ON,
            "megatron.core.distributed.param_and_grad_buffer": (
                "device=torch.cuda.current_device()",
                "current_stream = torch.cuda.current_stream()",
            ),
        },
    ),
}
_LITERAL_CUDA = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.utils",
    "megatron.core.dist_checkpointing.exchange_utils",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like")
_CPU = torch.device("cpu")


class _CpuTorch(ModuleType):
    """``torch`` with factories that answer ``device="cuda"`` with CPU tensors."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        setattr(self, name, value)  # the next look-up is direct
        return value


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return create


_installed = False


def install() -> bool:
    """Make megatron-core usable here; True where the CPU compatibility is active. Safe to call again."""
    global _installed
    with _no_compiler():
        import megatron.core

    series_of(megatron.core.__version__)
    if torch.cuda.is_available():
        return False
    if _installed:
        return True
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment,return-value]
    torch.cuda.manual_seed = torch.manual_seed  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    from megatron.core.tensor_parallel import random as tracker

    tracker._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    tracker._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    cpu_torch = _CpuTorch()
    for name in _LITERAL_CUDA:
        importlib.import_module(name).torch = cpu_torch  # type: ignore[attr-defined]
    _installed = True
    return True


def series_of(version: str) -> MegatronSeries:
    """Return what is known of the series of a release of megatron-core. Raises UserError where nothing is."""
    series = SERIES.get(".".join(version.split(".")[:2]))
    if series is None:
        known = ", ".join(release for entry in SERIES.values() for release in entry.run)
        newest = SERIES["0.16" if sys.version_info < (3, 12) else next(reversed(SERIES))].run[-1]
        raise UserError(
            f"megatron-core {version} is installed; the trainer knows {known}, and later patches of these",
            remedy=f"pip install megatron-core=={newest}",
        )
    return series


@contextlib.contextmanager
def _no_compiler() -> Iterator[None]:
    """Within it, without CUDA, ``torch.compile`` leaves functions as they are. megatron-core decorates its fused GPU
    kernels at import, which loads the whole compiler (3 of 8 seconds of a rank's start) for functions CPU never
    calls."""
    if torch.cuda.is_available():
        yield
        return
    original = torch.compile
    torch.compile = lambda model=None, **_: model if model is not None else (lambda f: f)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original


@contextlib.contextmanager
def cuda_type_names() -> Iterator[None]:
    """Within it, ``tensor.type()`` of a CPU tensor reads ``torch.cuda.FloatTensor`` and so on (without CUDA)."""
    if torch.cuda.is_available():
        yield
        return
    original = torch.Tensor.type

    def named(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.type = named  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]
