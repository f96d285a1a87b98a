"""Where a step's time goes: the phases in metrics.jsonl, and torch.profiler traces of chosen steps.

A step in ``metrics.jsonl``: ``seconds`` = ``read_seconds`` (waiting for the batch, which a thread reads ahead) +
``compute_seconds`` + ``validation_seconds`` + ``save_seconds``. Of ``compute_seconds``: ``forward_backward_seconds``,
``gradient_seconds`` (what is left of their exchange, their norm, the loss of all ranks) and ``optimizer_seconds``; what
remains is Python between them. On a GPU each ends when the device has done its work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, record_function

from nemo_openmath.training.config import Profile


@dataclass
class Phases:
    """Seconds of the parts of a step's computing."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done within, the device's work included; a trace shows it under ``name``."""
        start = time.perf_counter()
        with record_function(name):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def profiled(step: int, config: Profile, output: Path) -> nullcontext[None] | _Traced:
    """Around a step (counted from 1, as in metrics.jsonl): writes this rank's trace of it where ``config`` says so."""
    rank = dist.get_rank()
    if step not in config.steps or (config.ranks and rank not in config.ranks):
        return nullcontext()
    return _Traced((config.folder or output / "profile") / f"step-{step:08d}-rank-{rank}")


class _Traced:
    """PATH.json.gz: the trace, for Perfetto or chrome://tracing. PATH.txt: operations by their own time."""

    def __init__(self, path: Path):
        self.path = path
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
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
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=80)
        self.path.with_name(f"{self.path.name}.txt").write_text(table)
