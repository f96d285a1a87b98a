"""The peak of the tensors that a computation holds at once, counted and not measured: the same on every machine."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, ``peak`` is the most bytes of storages that were made in it and live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._sizes: dict[int, int] = {}  # of live storages, by address

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self._live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self._live)
        return results

    def _freed(self, address: int) -> None:
        self._live -= self._sizes.pop(address)
