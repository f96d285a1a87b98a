"""Where a step's time goes: its phases in metrics.jsonl, and torch.profiler traces of chosen steps.

In ``metrics.jsonl`` a step's ``seconds`` are the sum of

- ``read_seconds``: waiting for the batch, which a thread reads ahead,
- ``compute_seconds``,
- ``validation_seconds``,
- ``save_seconds``.

Of ``compute_seconds`` are ``forward_backward_seconds``, ``gradient_seconds`` (what is left of the gradients' exchange,
their norm, the loss of all ranks) and ``optimizer_seconds``; what remains is Python between them. On a GPU each phase
ends when the device has done its work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, record_function

from nemo_openmath.training.config import Profile

STEP = ("read", "compute", "validation", "save")
COMPUTE = ("forward_backward", "gradient", "optimizer")


class Phases:
    """Seconds of a step by phase: ``with phases("read"): ...``. ``enter`` is told of each that begins."""

    def __init__(self, enter: Callable[[str], object], device: torch.device) -> None:
        self._enter, self._on_gpu = enter, device.type == "cuda"
        self.seconds = dict.fromkeys((*STEP, *COMPUTE), 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done within, the device's work included. A trace shows it under ``name``."""
        self._enter(name)
        start = time.perf_counter()
        with record_function(name):
            yield
            if self._on_gpu:
                torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start

    @property
    def step_seconds(self) -> float:
        """Return the seconds of the optimizer step itself: reading and computing."""
        return self.seconds["read"] + self.seconds["compute"]

    def record(self) -> dict[str, float]:
        """Return the fields of the step's line in metrics.jsonl."""
        total = sum(self.seconds[name] for name in STEP)
        return {"seconds": round(total, 4)} | {f"{name}_seconds": round(s, 4) for name, s in self.seconds.items()}


def profiled(step: int, config: Profile, output: Path, device: torch.device) -> nullcontext[None] | _Traced:
    """Surround a step (counted from 1, as in metrics.jsonl): this rank's trace of it is written where ``config`` says
    so."""
    rank = dist.get_rank()
    if step not in config.steps or (config.ranks and rank not in config.ranks):
        return nullcontext()
    return _Traced((config.folder or output / "profile") / f"step-{step:08d}-rank-{rank}", device)


class _Traced:
    """Writes PATH.json.gz, the trace for Perfetto or chrome://tracing, and PATH.txt, operations by their own time."""

    def __init__(self, path: Path, device: torch.device):
        self.path, self._on_gpu = path, device.type == "cuda"
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)

    def __enter__(self) -> None:
        self._profiler.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._profiler.__exit__(kind, *rest)
        if kind is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.json.gz")  # torch compresses by the name's end
        self._profiler.export_chrome_trace(str(partial))
        partial.rename(self.path.with_name(f"{self.path.name}.json.gz"))
        by = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=80)
        self.path.with_name(f"{self.path.name}.txt").write_text(table)
