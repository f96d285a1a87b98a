"""A process that is a world of one rank, in which megatron-core's model runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemo_openmath.core.listening import free_port

if TYPE_CHECKING:
    from nemo_openmath.models.devices import DeviceChoice


@contextlib.contextmanager
def world_of_one(device: DeviceChoice) -> Iterator[None]:
    """Make this process a process group of its own, on ``device``; enter it before megatron-core is imported.

    Raises what :func:`nemo_openmath.training.choose_device.choose_device` raises.
    """
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = str(free_port("127.0.0.1"))
    before = {name: os.environ.get(name) for name in world}
    os.environ.update(world)
    import torch.distributed as dist  # seconds

    from nemo_openmath.training.runtime import start_process

    try:
        start_process(device)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if dist.is_initialized():
            dist.destroy_process_group()
