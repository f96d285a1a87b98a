"""Sections of gpu.py: the speed of a training step, and of its loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from gpu_inputs import config, long_tailed, random_packs
from gpu_measure import relative, seconds, wait
from torch import Tensor

from nemo_openmath.models import loss as fused_loss
from nemo_openmath.models.build import build_model
from nemo_openmath.models.configs import ModelConfig, preset
from nemo_openmath.models.devices import process_device
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.device import peak_flops
from nemo_openmath.training.forward_backward import BatchStats, ForwardBackward, RankBatch, total_loss
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.profile import Phases
from nemo_openmath.training.runtime import parallel_state_of

if TYPE_CHECKING:
    from gpu import Report


@contextmanager
def trainer(shape: ModelConfig, chosen: TrainingConfig) -> Iterator[tuple[ForwardBackward, Optimizer]]:
    """Yield what computes and updates a model with random weights."""
    with parallel_state_of(chosen.parallel, 0):
        models = build_model(
            shape, chosen.parallel, dtype=torch.bfloat16, recompute=chosen.recompute, backend=chosen.backend
        )
        with torch.no_grad():
            for name, parameter in (entry for chunk in models for entry in chunk.named_parameters()):
                if "norm" in name:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0, 0.02)
        optimizer = Optimizer.build(models, chosen)
        yield ForwardBackward(models, optimizer.chunks, shape, chosen.parallel, None), optimizer


def step(forward_backward: ForwardBackward, optimizer: Optimizer, batch: RankBatch, phases: Phases) -> float:
    """Take a training step and return the loss."""
    with phases("forward_backward"):
        optimizer.zero_grad()
        part = forward_backward.run(batch)
    with phases("gradient"):
        norm, (loss, _) = optimizer.gradient_norm(), total_loss(part)
    with phases("optimizer"):
        optimizer.step(norm, 1e-5)
    return loss


def profiled(run: Callable[[], object], file: Path) -> dict[str, int]:
    """Run a step under the profiler, write its table, and return how often it asked CUDA for what makes it wait."""
    on_gpu, kinds = process_device().type == "cuda", [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        run()
        wait()
    averages = profile.key_averages()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    file.write_text(averages.table(sort_by=by, row_limit=60, max_name_column_width=90))
    watched = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaMalloc")
    return {event.key: event.count for event in averages if event.key in watched}


def speed(report: Report) -> None:
    """Training steps of 1.5B: MFU and memory by recomputation and by size of a block of logits."""
    shape, capacity = (preset("tiny"), 512) if report.dry else (preset("qwen2.5-1.5b"), 32768)
    device, default = process_device(), fused_loss.BLOCK_BYTES
    peak = 1e12 if report.dry else peak_flops("bf16", device)
    try:
        for recompute, block in (("none", default), ("none", 256 << 20), ("full", default)):
            fused_loss.BLOCK_BYTES = block
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            times: list[tuple[float, BatchStats, dict[str, float]]] = []
            with trainer(shape, config(precision="bf16", recompute=recompute, backend="local")) as (both, optimizer):
                for number in range(2 if report.dry else 3):
                    lengths = [long_tailed(capacity, 10 * number + i) for i in range(2)]
                    batch = both.shard(random_packs(shape.vocab_size, lengths, number, 0.97))
                    phases = Phases(lambda _: None, device)
                    wait()
                    start = time.perf_counter()
                    loss = step(both, optimizer, batch, phases)
                    wait()
                    times.append((time.perf_counter() - start, batch.stats, phases.seconds))
                took, stats, by_phase = min(times[1:], key=lambda entry: entry[0])
                mfu = shape.flops(stats.tokens, stats.sum_squared_lengths, stats.num_target_tokens) / took / peak
                report.at_least(
                    f"MFU, recompute {recompute}, blocks of {block >> 20} MiB",
                    mfu,
                    0.0 if report.dry else 0.2,
                    seconds=round(took, 4),
                    tokens_per_second=round(stats.tokens / took),
                    allocated_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else 0,
                    reserved_gib=round(torch.cuda.max_memory_reserved() / 2**30, 1) if device.type == "cuda" else 0,
                    phases={name: round(value, 4) for name, value in by_phase.items() if value},
                    loss=round(loss, 4),
                )
                if (recompute, block) == ("none", default):
                    phases = Phases(lambda _: None, device)
                    calls = profiled(partial(step, both, optimizer, batch, phases), report.output / "step.txt")
                    report.below("waits for the stream, a micro-batch", calls.get("cudaStreamSynchronize", 0) / 2, 12)
                    report.note("calls of a step of 2 micro-batches", **calls)
    finally:
        fused_loss.BLOCK_BYTES = default


def loss(report: Report) -> None:
    """The fused loss against fp32, and its time by size of a block of logits."""
    rows, width, vocabulary = (700, 64, 512) if report.dry else (16384, 1536, 151936)
    device, default = process_device(), fused_loss.BLOCK_BYTES
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=device, dtype=torch.bfloat16).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, width, device=device)).bfloat16().requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=device)
    try:
        for mib in (256, 2048) if report.dry else (256, 512, 1024, 2048, 4096):
            fused_loss.BLOCK_BYTES = mib << 20
            took = seconds(lambda: fused_loss.linear_cross_entropy(hidden, weight, labels).backward(), 3)
            report.note(f"blocks of {mib} MiB", milliseconds=round(1e3 * took, 2))
    finally:
        fused_loss.BLOCK_BYTES = default
    results = []
    for function in (fused_loss.linear_cross_entropy, _plain_loss):
        leaves = [hidden[:700].detach().requires_grad_(), weight.detach().requires_grad_()]
        total = function(leaves[0], leaves[1], labels[:700])
        results.append([total.detach(), *torch.autograd.grad(total, leaves)])
    for name, got, expected, bound in zip(
        ("loss", "dh", "dw"), results[0], results[1], (2e-3, 1e-2, 1e-2), strict=True
    ):
        report.below(f"{name} against fp32", relative(got, expected), bound)


def _plain_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden.float() @ weight.float().t(), labels, reduction="sum")
