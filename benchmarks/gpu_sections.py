"""The sections of gpu.py, which says what each one proves. Import it in a process that is a world of one rank."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_inputs import RandomSource, config, long_tailed, random_model, random_packs
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.data.packs.pack import Pack, samples_of
from nemo_openmath.models import context_exchange, hf_mapping, segment_attention
from nemo_openmath.models import loss as fused_loss
from nemo_openmath.models.build import build_model, choose_backend, load_hf, parameters_by_stored_name
from nemo_openmath.models.configs import ModelConfig, preset
from nemo_openmath.models.context_plan import GatherPlan, RingPlan, Segments, zigzag
from nemo_openmath.models.devices import process_device, use_steady_attention
from nemo_openmath.training.base_model import BaseModel
from nemo_openmath.training.certificate.certify import CertifiedData, make_certificate
from nemo_openmath.training.certificate.faults.batch import Layouts
from nemo_openmath.training.certificate.files import TOLERANCES
from nemo_openmath.training.certificate.first_step import CERTIFICATE
from nemo_openmath.training.certificate.report import NotCertified
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.device import peak_flops
from nemo_openmath.training.forward_backward import BatchStats, ForwardBackward, RankBatch, total_loss
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.profile import Phases
from nemo_openmath.training.runtime import parallel_state_of
from nemo_openmath.training.trainer import train

if TYPE_CHECKING:
    from gpu import Report

KERNEL_BOUND = 1.5e-2  # relative error in bf16; rounding alone makes 2e-3 to 6e-3 (a CPU's)
SHAPES = ((12, 2, 128), (5, 1, 128), (8, 8, 64), (4, 2, 32))  # heads, groups, head_dim
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of ``expected``."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def wait() -> None:
    """Wait for the GPU, where there is one."""
    if process_device().type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """Return the mean time of ``work`` after a first call."""
    work()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


# -- attention -------------------------------------------------------------------------------------------------------


def on_device(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """Return a plan's indices as tensors on the device."""
    return {name: torch.from_numpy(array).to(process_device()) for name, array in arrays.items()}


def passes(attention: Attention, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return output and gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def gathered(query: Tensor, key: Tensor, value: Tensor, *, boundaries: Sequence[int], cp: int, scale: float) -> Tensor:
    """Return attention as the all-gather computes it: each context rank's chunks, put back into the pack's order."""
    device = query.device
    orders = [torch.from_numpy(zigzag(boundaries, cp, rank)).to(device) for rank in range(cp)]
    all_keys, all_values = (x.index_select(0, torch.cat(orders)) for x in (key, value))
    outputs = []
    for rank, order in enumerate(orders):
        arrays = GatherPlan.arrays(boundaries, cp, rank)
        plan, mine = GatherPlan.of(arrays, on_device(arrays)), query.index_select(0, order)
        parts = [
            segment_attention.attend(mine[queries], all_keys[keys], all_values[keys], segments, scale)
            for queries, keys, segments in plan.passes
        ]
        outputs.append(torch.cat(parts).index_select(0, plan.back))
    return torch.cat(outputs).index_select(0, torch.cat(orders).argsort())


class LocalGroup:
    """A rank of a context group whose ranks are threads of this process."""

    def __init__(self, rank: int, boxes: list[Queue[Tensor]]):
        self._rank, self.boxes = rank, boxes

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return len(self.boxes)


class LocalPassing:
    """What the exchange's ``_Passing`` does, through memory. Messages arrive in the order in which they are sent, and
    every rank sends and waits in the same order."""

    def __init__(self, sent: Tensor, group: LocalGroup):
        self.box = group.boxes[group.rank()]
        group.boxes[(group.rank() + 1) % group.size()].put(sent)

    def wait(self) -> Tensor:
        return self.box.get(timeout=60)


def in_ring(
    inputs: Sequence[Tensor], grad: Tensor, *, boundaries: Sequence[int], cp: int, scale: float
) -> list[Tensor]:
    """Return output and gradients as the ring computes them, each context rank in a thread, in the pack's order.

    Its two passes are called by themselves: autograd has one thread for a GPU, in which ranks cannot wait for each
    other.
    """
    device = grad.device
    orders = [torch.from_numpy(zigzag(boundaries, cp, rank)).to(device) for rank in range(cp)]
    boxes: list[Queue[Tensor]] = [Queue() for _ in range(cp)]

    def of_rank(rank: int) -> list[Tensor]:
        arrays = RingPlan.arrays(boundaries, cp, rank)
        plan, context = RingPlan.of(arrays, on_device(arrays)), SimpleNamespace()
        context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
        query, key, value, mine = (x.detach().index_select(0, orders[rank]) for x in (*inputs, grad))
        group: Any = LocalGroup(rank, boxes)
        with torch.no_grad():
            out = context_exchange._Ring.forward(context, query, key, value, plan, group, scale)
            return [out, *context_exchange._Ring.backward(context, mine)[:3]]

    before = context_exchange._Passing
    context_exchange._Passing = LocalPassing  # type: ignore[assignment,misc]
    try:
        with ThreadPoolExecutor(cp) as pool:
            of_ranks = list(pool.map(of_rank, range(cp)))
    finally:
        context_exchange._Passing = before  # type: ignore[misc]
    back = torch.cat(orders).argsort()
    return [torch.cat(parts).index_select(0, back) for parts in zip(*of_ranks, strict=True)]


class AttentionCase:
    """Random queries, keys and values of a pack in bf16, and what attention and its gradients are in fp32."""

    def __init__(self, heads: int, groups: int, size: int, lengths: Sequence[int]):
        torch.manual_seed(0)
        device = process_device()
        self.name, self.scale = f"{heads}/{groups}x{size}", size**-0.5
        self.boundaries = tuple(int(end) for end in np.cumsum([0, *lengths]))
        sizes = ((heads, size), (groups, size), (groups, size))
        tokens = self.boundaries[-1]
        self.inputs = [torch.randn(tokens, *each, device=device, dtype=torch.bfloat16) for each in sizes]
        self.grad = torch.randn(tokens, heads, size, device=device, dtype=torch.bfloat16)
        ends = torch.tensor(self.boundaries, dtype=torch.int32, device=device)
        self.whole = Segments(self.boundaries, self.boundaries, (ends, ends))
        in_fp32 = [x.float() for x in self.inputs]
        self.expected = passes(self.attend, in_fp32, self.grad)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return segment_attention.attend(query, key, value, self.whole, self.scale)

    def gathered(self, cp: int) -> list[Tensor]:
        attention = partial(gathered, boundaries=self.boundaries, cp=cp, scale=self.scale)
        return passes(attention, self.inputs, self.grad)

    def errors(self, got: Sequence[Tensor]) -> dict[str, float]:
        """Return the relative errors of output and gradients."""
        names = ("out", "dq", "dk", "dv")
        return {n: round(relative(a, b), 6) for n, a, b in zip(names, got, self.expected, strict=True)}


def cases(dry: bool) -> Iterator[AttentionCase]:
    """Yield an attention for each of SHAPES. Lengths are multiples of 8: twice the largest CP."""
    for heads, groups, size in SHAPES:
        yield AttentionCase(heads, groups, size, (8, 16, 40, 72) if dry else (8, 16, 136, 1000, 4096, 24))


def kernel(report: Report) -> None:
    """Attention of packs, and of a rank's chunks over gathered keys, against fp32."""
    for case in cases(report.dry):
        for name, got in (
            ("pack", passes(case.attend, case.inputs, case.grad)),
            ("gathered, CP 2", case.gathered(2)),
            ("gathered, CP 4", case.gathered(4)),
        ):
            errors = case.errors(got)
            report.below(f"{name}, {case.name}", max(errors.values()), KERNEL_BOUND, **errors)


def ring(report: Report) -> None:
    """The ring's passes against those of the all-gather, and against fp32."""
    for case in cases(report.dry):
        for cp in (2, 4):
            got = in_ring(case.inputs, case.grad, boundaries=case.boundaries, cp=cp, scale=case.scale)
            errors = case.errors(got)
            report.below(f"against fp32, CP {cp}, {case.name}", max(errors.values()), KERNEL_BOUND, **errors)
            gaps = [relative(a, b) for a, b in zip(got, case.gathered(cp), strict=True)]
            report.below(f"against the all-gather, CP {cp}, {case.name}", max(gaps), KERNEL_BOUND)


# -- model -----------------------------------------------------------------------------------------------------------


def theirs(model: torch.nn.Module, packs: Sequence[Pack]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and its gradients by transformers' model, each sample alone."""
    device = process_device()
    model = model.to(device).eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for sample in (sample for pack in packs for sample in samples_of(pack)):
        logits = model(input_ids=torch.from_numpy(sample.tokens).long()[None].to(device)).logits[0]
        is_target, labels = (torch.from_numpy(x).to(device) for x in (sample.loss_mask, sample.labels))
        total = total + F.cross_entropy(logits[is_target], labels[is_target].long(), reduction="sum").double()
    loss = total / sum(pack.num_target_tokens for pack in packs)
    loss.backward()
    return float(loss.detach()), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def ours(
    shape: ModelConfig, folder: Path, packs: Sequence[Pack], settings: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and its gradients, by the names of transformers, as our training computes them."""
    chosen = config(**settings)
    with parallel_state_of(chosen.parallel, 0):
        dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
        models = build_model(shape, chosen.parallel, dtype=dtype, recompute=chosen.recompute, backend=chosen.backend)
        load_hf(models, shape, open_checkpoint(folder).read)
        optimizer = Optimizer.build(models, chosen)
        optimizer.zero_grad()
        forward_backward = ForwardBackward(models, optimizer.chunks, shape, chosen.parallel, None)
        part = forward_backward.run(forward_backward.shard(packs))
        optimizer.gradient_norm()
        gradients: dict[str, Tensor] = {}
        for entry, parameter in parameters_by_stored_name(models, shape).values():
            whole = hf_mapping.split(entry, parameter.main_grad.float().cpu())
            gradients |= dict(zip(dict(entry.sources), whole, strict=True))
        return total_loss(part)[0], gradients


def model(report: Report) -> None:
    """Loss and every gradient against transformers."""
    base = preset("tiny") if report.dry else ModelConfig(4096, 1024, 2816, 6, 8, 2, 128, max_position_embeddings=8192)
    lengths = [[37, 23, 5], [60, 9]] if report.dry else [[2000, 1300, 701, 95], [3900, 190]]
    # bounds of the loss, of all gradients together, of the worst tensor
    runs: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
        "fp32": ({"backend": "local"}, (1e-5, 2e-4, 2e-3))
    }
    for recompute in ("none", "selective", "full"):
        settings = {"precision": "bf16", "backend": "local", "recompute": recompute}
        runs[f"bf16, recompute {recompute}"] = settings, (3e-3, 3e-2, 0.15)
    if choose_backend("auto", torch.bfloat16, process_device()) == "transformer_engine":
        settings = {"precision": "bf16", "backend": "transformer_engine"}
        runs["bf16, TransformerEngine"] = settings, (3e-3, 3e-2, 0.15)
    qwen3 = base.with_changes(model_type="qwen3", tie_word_embeddings=True)
    for kind, shape in (("qwen2", base.with_changes(tie_word_embeddings=False)), ("qwen3, tied", qwen3)):
        with tempfile.TemporaryDirectory() as place:
            folder, packs = Path(place), random_packs(shape.vocab_size, lengths, 0)
            expected, expected_gradients = theirs(random_model(folder, shape), packs)
            for name, (settings, bounds) in runs.items():
                loss, gradients = ours(shape, folder, packs, settings)
                gap = abs(loss - expected) / expected
                report.below(f"{kind}, {name}: loss", gap, bounds[0], ours=loss, transformers=expected)
                flat = [
                    torch.cat([g[n].flatten() for n in expected_gradients]) for g in (gradients, expected_gradients)
                ]
                report.below(f"{kind}, {name}: all gradients", relative(flat[0], flat[1]), bounds[1])
                # a bias of keys shifts all scores of a query alike: its gradient is zero but for rounding
                errors = {n: relative(gradients[n], g) for n, g in expected_gradients.items() if "k_proj.bias" not in n}
                worst = max(errors, key=lambda n: errors[n])
                report.below(f"{kind}, {name}: worst gradient", errors[worst], bounds[2], tensor=worst)


# -- speed -----------------------------------------------------------------------------------------------------------


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


# -- trainings -------------------------------------------------------------------------------------------------------

TINY = preset("tiny").with_changes(head_dim=16, tie_word_embeddings=False)  # of attention's kernels: at least 16


def losses_of(output: Path) -> list[float]:
    """Return the losses that a training wrote, step by step."""
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def save(report: Report) -> None:
    """A training whose last steps are lost goes on to the same losses."""
    with tempfile.TemporaryDirectory() as place:
        root, source = Path(place), RandomSource(TINY.vocab_size, 8)
        random_model(root / "model", TINY)
        base = BaseModel.open(root / "model", quiet=True)
        for sharded in (False, True):
            name = "distributed optimizer" if sharded else "whole optimizer"
            checkpoints = {"every": 2, "keep_last": 0, "asynchronous": True}
            chosen = config(
                precision="bf16", backend="local", lr=1e-3, distributed_optimizer=sharded, checkpoints=checkpoints
            )
            whole, resumed = root / f"whole {sharded}", root / f"resumed {sharded}"
            train(base, source, chosen, whole)
            train(base, source, chosen, resumed)
            for late in (6, 8):  # as if it had been killed after step 4
                shutil.rmtree(step_folders.step_folder(resumed / "checkpoints", late))
            train(base, source, chosen, resumed)
            newest, skipped = step_folders.newest_valid(step_folders.list_checkpoints(resumed / "checkpoints"))
            is_last = newest is not None and newest.name == step_folders.step_folder(root, 8).name
            report.at_least(f"{name}: the last checkpoint is whole", is_last and not skipped, 1)
            pairs = list(zip(losses_of(whole), losses_of(resumed), strict=True))
            report.at_least(f"{name}: steps in metrics.jsonl", len(pairs), 8)
            report.below(f"{name}: largest gap of a loss", max(abs(a - b) for a, b in pairs), 2e-3)
            report.below(f"{name}: the last loss over the first", pairs[-1][1] / pairs[0][1], 1.0)


def deterministic(report: Report) -> None:
    """Two trainings compute the same bits."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        shape = TINY if report.dry else ModelConfig(4096, 1024, 2816, 6, 8, 2, 128, max_position_embeddings=8192)
        lengths = ((37, 23, 5), (60, 9)) if report.dry else ((2000, 1300, 701, 95), (3900, 190))
        source = RandomSource(shape.vocab_size, 3 if report.dry else 6, lengths)
        random_model(root / "model", shape)
        base = BaseModel.open(root / "model", quiet=True)
        chosen = config(precision="bf16", backend="local", lr=1e-3, deterministic=True)
        for name in ("first", "second"):
            train(base, source, chosen, root / name)
        losses = [losses_of(root / name) for name in ("first", "second")]
        differing = sum(a != b for a, b in zip(*losses, strict=True))
        report.below("losses that differ", differing, 1, steps=len(losses[0]))
        first, second = (
            open_checkpoint(step_folders.step_folder(root / name / "checkpoints", source.num_steps))
            for name in ("first", "second")
        )
        unequal = [name for name in first.tensors if not torch.equal(first.read(name), second.read(name))]
        report.below("tensors that differ", len(unequal), 1, tensors=len(first.tensors), differing=unequal[:3])


def certify(report: Report) -> None:
    """The first step against its certificate, and a training with late masks, which must be refused."""
    with tempfile.TemporaryDirectory() as place:
        root, source = Path(place), RandomSource(TINY.vocab_size, 1, trained=0.5)
        random_model(root / "model", TINY, std=0.3)  # losses of tokens that differ: a late mask shows
        base = BaseModel.open(root / "model", quiet=True)
        data = CertifiedData([source.batch(0)], {"digest": source.fingerprint}, capacity=0, pad_multiple=1)
        certificate = make_certificate(base, data, Layouts(cp=(), dp=()), "bf16")
        chosen = config(precision="bf16", backend="local", certify=True)
        late = RandomSource(TINY.vocab_size, 1, trained=0.5, late=1)
        for name, batches in (("right", source), ("late", late)):
            (root / name).mkdir()
            certificate.write(root / name / CERTIFICATE)
            message = ""
            try:
                train(base, batches, chosen, root / name)
            except NotCertified as error:
                message = str(error)
            if name == "right":
                report.at_least("a right first step passes", not message, 1, message=message)
                if not message:
                    gap = abs(losses_of(root / name)[0] / certificate.steps[0].loss - 1)
                    report.below("loss of the first step", gap, TOLERANCES["bf16"])
            else:
                report.at_least("masks a token late are refused", bool(message), 1, message=message)


# -- inference -------------------------------------------------------------------------------------------------------


def served_model(folder: Path, shape: ModelConfig, std: float = 0.15) -> torch.nn.Module:
    """Write a random model with a tokenizer, which the engine asks for."""
    from nemo_openmath.demo.tokenizer import train_tokenizer

    model = random_model(folder, shape, std)
    train_tokenizer(["1 + 1 = 2. The answer is 2."], folder, vocabulary=1024)
    return model


def engine(report: Report) -> None:
    """Greedy tokens against transformers', and the time of a step."""
    from transformers import AutoModelForCausalLM

    from nemo_openmath.inference.embedded import EmbeddedEngine

    device, random = process_device(), np.random.default_rng(0)
    small = ModelConfig(1024, 128, 256, 3, 4, 2, 32, max_position_embeddings=512, eos_token_id=2)
    prompts = [random.integers(3, 500, int(n)).tolist() for n in random.integers(3, 120, 6 if report.dry else 24)]
    with tempfile.TemporaryDirectory() as place:
        for kind in ("qwen2", "qwen3"):
            folder = Path(place) / kind
            served_model(folder, small.with_changes(model_type=kind))
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
            theirs.generation_config.eos_token_id = None
            for dtype in ("float32", "bfloat16"):
                served = EmbeddedEngine.load(folder, slots=8, max_context=256, device=device.type, dtype=dtype)
                texts = asyncio.run(_ask(served, prompts, 32, 0.0))
                asyncio.run(served.close())
                if dtype == "float32":
                    same = sum(_greedy(theirs, p, len(t)) == t for p, t in zip(prompts, texts, strict=True))
                    report.at_least(f"{kind}, {dtype}: texts as transformers'", same, len(prompts), of=len(prompts))
                regrets = [_regret(theirs, p, t) for p, t in zip(prompts, texts, strict=True)]
                bound = 1e-3 if dtype == "float32" else 0.3
                report.below(f"{kind}, {dtype}: largest regret of a token", max(regrets), bound)
        _engine_speed(report, Path(place) / "large")


def _greedy(theirs: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return transformers' own greedy tokens, at least one."""
    asked = torch.tensor([prompt], device=theirs.device)
    whole = theirs.generate(asked, max_new_tokens=max(1, tokens), do_sample=False, pad_token_id=0)
    return whole[0, len(prompt) :].tolist()


@torch.no_grad()
def _regret(theirs: Any, prompt: list[int], text: list[int]) -> float:
    """Return by how much the logit of a token of ``text`` is below the highest at its place, at most, in standard
    deviations of that place's logits: rounding picks another token only where two are nearly as likely."""
    if not text:
        return float("inf")
    logits = theirs(torch.tensor([prompt + text], device=theirs.device)).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(text, device=logits.device).unsqueeze(1)).squeeze(1)
    return float(((logits.amax(1) - chosen) / logits.std(1)).max())


def _engine_speed(report: Report, folder: Path) -> None:
    from nemo_openmath.inference.embedded import EmbeddedEngine

    large = ModelConfig(4096, 1536, 8960, 28, 12, 2, 128, max_position_embeddings=32768, eos_token_id=2)
    shape = ModelConfig(1024, 128, 256, 3, 4, 2, 32, eos_token_id=2) if report.dry else large
    counts, length, tokens = ((1, 4), 20, 8) if report.dry else ((1, 8, 64), 500, 128)
    served_model(folder, shape, std=0.02)
    served = EmbeddedEngine.load(
        folder, slots=max(counts), max_context=8 * (length + tokens), device=process_device().type, dtype="bfloat16"
    )
    random = np.random.default_rng(1)
    for count in counts:
        prompts = [random.integers(3, 1000, length).tolist() for _ in range(2 * count)]
        asyncio.run(_ask(served, prompts[:count], 4, 0.7))
        steps, start = served.statistics.steps, time.perf_counter()
        texts = asyncio.run(_ask(served, prompts[count:], tokens, 0.7))
        took, steps = time.perf_counter() - start, served.statistics.steps - steps
        report.note(
            f"{count} requests at once",
            tokens_per_second=round(sum(map(len, texts)) / took),
            milliseconds_a_step=round(1e3 * took / max(1, steps), 2),
        )
    asyncio.run(served.close())


async def _ask(served: Any, prompts: Sequence[list[int]], tokens: int, temperature: float) -> list[list[int]]:
    from nemo_openmath.core.engine import Request, Sampling

    requests = [
        Request(tuple(prompt), Sampling(max_tokens=tokens, temperature=temperature, seed=seed))
        for seed, prompt in enumerate(prompts)
    ]
    completions = await asyncio.gather(*(served.complete(request) for request in requests))
    return [list(completion.token_ids) for completion in completions]


def sdpa(report: Report) -> None:
    """The first attention to each of ten new lengths, with the kernels that the engine sets."""
    device = process_device()
    tokens = 256 if report.dry else 8192
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for steady in (False, True):
            torch.backends.cuda.enable_cudnn_sdp(True)
            if steady:
                use_steady_attention(device.type)
            times = []
            for length in range(201, 241, 4):
                query = torch.randn(1, 12, length, 128, device=device, dtype=torch.bfloat16)
                keys = torch.randn(1, 2, tokens, 128, device=device, dtype=torch.bfloat16)[:, :, :length]
                wait()
                start = time.perf_counter()
                F.scaled_dot_product_attention(query, keys, keys, is_causal=True, scale=1.0, enable_gqa=True)
                wait()
                times.append(1e3 * (time.perf_counter() - start))
            if steady:
                bound = 1e4 if report.dry else 1.0
                report.below("milliseconds of a new length, the engine's kernels", statistics.median(times), bound)
            else:
                report.note("milliseconds of a new length, torch's choice", times=[round(t, 2) for t in times])
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def drafter(report: Report) -> None:
    """A drafter's loss falls."""
    from nemo_openmath.speculative.texts import Text
    from nemo_openmath.speculative.train import DrafterSettings, load_base
    from nemo_openmath.speculative.train import train as train_drafter

    settings = DrafterSettings(batch_tokens=512, epochs=3, lr=3e-3)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        served_model(folder, ModelConfig(1024, 128, 256, 3, 4, 2, 32, max_position_embeddings=512, eos_token_id=2))
        base = load_base(folder, settings, "cpu" if report.dry else "cuda")
        random, losses = np.random.default_rng(0), list[float]()
        drawn = [random.integers(3, 20, n) for n in random.integers(20, 90, 40)]  # of 17 tokens out of 1,024
        texts = [Text(ids.astype(np.int32), np.ones(len(ids), bool)) for ids in drawn]
        train_drafter(base, texts, settings, lambda _step, _steps, value: losses.append(value))
        report.below("last loss over the first", losses[-1] / losses[0], 0.9, first=losses[0], steps=len(losses))
