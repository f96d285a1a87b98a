"""What each rank of the certificate's proofs runs: a training's first step, right or with a fault put into it.

A case is {"job": file, "processes": N, "fault": name or None, "output": file}; the loss of the step is written to
``output``, or, with ``"train": true``, what the training said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from nemo_openmath.training.runtime import parallel_state_of, start_process

start_process(timeout_minutes=2)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402

from nemo_openmath.core.errors import OpenMathError  # noqa: E402
from nemo_openmath.data.packs.pack import Pack, pad_samples, samples_of  # noqa: E402
from nemo_openmath.models import packed  # noqa: E402
from nemo_openmath.models.build import PackedGPT, build_model, load_hf  # noqa: E402
from nemo_openmath.models.context_plan import zigzag  # noqa: E402
from nemo_openmath.models.packed import PackedBatch, pack_batch, rotary  # noqa: E402
from nemo_openmath.training.forward_backward import ForwardBackward, RankBatch, total_loss  # noqa: E402
from nemo_openmath.training.job import read_job  # noqa: E402
from nemo_openmath.training.optimizer import Optimizer  # noqa: E402
from nemo_openmath.training.trainer import train  # noqa: E402
from nemo_openmath.training.worker import open_job  # noqa: E402
from tests.support.ranks import run_cases  # noqa: E402

Sharding = Callable[[list[Pack]], list[Pack]]


@contextmanager
def packs_become(change: Sharding) -> Iterator[None]:
    """Within it, a batch's packs are changed before they are shared out."""
    shard = ForwardBackward.shard
    with mock.patch.object(ForwardBackward, "shard", lambda self, batch: shard(self, change(list(batch)))):
        yield


@contextmanager
def batches_become(change: Callable[..., PackedBatch]) -> Iterator[None]:
    """Within it, ``change(arrays..., config, cp=, cp_rank=)`` makes a rank's tensors of a pack."""

    @dataclass(frozen=True)
    class Changed:
        """Stands where a HostBatch would."""

        arrays: tuple[Any, ...]
        rest: dict[str, int]

        def to(self, device: Any, config: Any) -> PackedBatch:
            return change(*self.arrays, config, **self.rest, device=device)

    def on_host(self: ForwardBackward, pack: Pack) -> Changed:
        ranks = {"cp": self.parallel.cp, "cp_rank": parallel_state.get_context_parallel_rank()}
        return Changed((pack.tokens, pack.labels, pack.loss_mask, pack.cu_seqlens), ranks)

    with mock.patch.object(ForwardBackward, "_on_host", on_host):
        yield


@contextmanager
def losses_times(factor: Callable[[RankBatch, PackedBatch], float]) -> Iterator[None]:
    """Within it, the summed loss of a micro-batch is multiplied."""
    batches: list[RankBatch] = []
    run, postprocess = ForwardBackward.run, PackedGPT._postprocess

    def remembered(self: Any, batch: RankBatch, **rest: Any) -> Any:
        batches[:] = [batch]
        return run(self, batch, **rest)

    def multiplied(self: Any, *args: Any, **rest: Any) -> Any:
        output = postprocess(self, *args, **rest)
        return output * factor(batches[0], rest["packed_seq_params"]) if self.post_process else output

    with (
        mock.patch.object(ForwardBackward, "run", remembered),
        mock.patch.object(PackedGPT, "_postprocess", multiplied),
    ):
        yield


def each(change: Callable[[Pack], Pack]) -> Any:
    return packs_become(lambda packs: [change(pack) for pack in packs])


def last(pack: Pack) -> Any:
    positions = np.zeros(len(pack.tokens), np.bool_)
    positions[pack.cu_seqlens[1:] - 1] = True
    return positions


def prompt_trained(pack: Pack) -> Pack:
    return replace(pack, loss_mask=~last(pack))


def shifted_twice(pack: Pack) -> Pack:
    return replace(pack, labels=np.roll(pack.labels, -1), loss_mask=np.roll(pack.loss_mask, -1) & ~last(pack))


def boundary_targets(pack: Pack) -> Pack:
    mask = pack.loss_mask | last(pack)
    mask[-1] = False
    return replace(pack, labels=np.roll(pack.tokens, -1), loss_mask=mask)


def padding_trained(pack: Pack) -> Pack:
    marked = pad_samples(replace(pack, loss_mask=np.ones_like(pack.loss_mask)), 4)
    return replace(pad_samples(pack, 4), loss_mask=pad_samples(pack, 4).loss_mask | ~marked.loss_mask)


def without(choose: Callable[[list[Any]], list[int]]) -> Any:
    """Each sample without the targets that ``choose`` takes from its runs of targets (arrays of positions)."""

    def change(pack: Pack) -> Pack:
        mask = pack.loss_mask.copy()
        for start, stop in itertools.pairwise(pack.cu_seqlens.tolist()):
            targets = start + np.flatnonzero(mask[start:stop])
            runs = np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1)
            mask[choose(runs)] = False
        return replace(pack, loss_mask=mask)

    return each(change)


def between_trained(pack: Pack) -> Pack:
    behind_first, before_last = np.zeros_like(pack.loss_mask), np.zeros_like(pack.loss_mask)
    for a, b in itertools.pairwise(pack.cu_seqlens.tolist()):
        behind_first[a:b] = np.logical_or.accumulate(pack.loss_mask[a:b])
        before_last[a:b] = np.logical_or.accumulate(pack.loss_mask[a:b][::-1])[::-1]
    return replace(pack, loss_mask=behind_first & before_last)


def samples_cut(packs: list[Pack]) -> list[Pack]:
    cut = []
    for sample in (sample for pack in packs for sample in samples_of(pack)):
        size = min(64, len(sample.tokens))
        mask = sample.loss_mask[:size].copy()
        mask[-1] = False  # its label is cut off
        cut.append(Pack(sample.tokens[:size], sample.labels[:size], mask, np.array([0, size], np.int32), ("",)))
    return cut


def shifted_on_ranks(pack: Pack) -> Pack:
    pack = pad_samples(pack, 4)
    labels, mask, is_target = np.zeros_like(pack.labels), np.zeros_like(pack.loss_mask), np.roll(pack.loss_mask, 1)
    for rank in range(2):
        held = zigzag(pack.cu_seqlens.tolist(), 2, rank)
        labels[held] = np.append(pack.tokens[held][1:], 0)
        mask[held] = np.append(is_target[held][1:], False)
    return replace(pack, labels=labels, loss_mask=mask)


def mean_of_ranks(batch: RankBatch, micro_batch: PackedBatch) -> float:
    """Each rank's mean of a micro-batch counts alike; ranks without targets are 0."""
    micro_batches, ranks = len(batch.packs), parallel_state.get_context_parallel_world_size()
    return batch.stats.num_target_tokens / max(1, len(micro_batch.labels)) / (micro_batches * ranks)


def tokens_dropped(packs: list[Pack]) -> list[Pack]:
    result = []
    for sample in (sample for pack in packs for sample in samples_of(pack)):
        length = len(sample.tokens) // 4 * 4
        mask = sample.loss_mask[:length].copy()
        if length < len(sample.tokens):
            mask[-1:] = False
        cu = np.array([0, length], np.int32)
        result.append(Pack(sample.tokens[:length], sample.labels[:length], mask, cu, sample.sample_ids))
    return [sample for sample in result if len(sample.tokens)]


def with_positions(batch: PackedBatch, positions: Any, config: Any) -> PackedBatch:
    cos, sin = rotary(torch.from_numpy(positions), config)
    batch.cos, batch.sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return batch


def without_boundaries(tokens: Any, labels: Any, mask: Any, cu: Any, config: Any, **rest: Any) -> PackedBatch:
    return pack_batch(tokens, labels, mask, np.array([0, len(tokens)], np.int32), config, **rest)


def across(tokens: Any, labels: Any, mask: Any, cu: Any, config: Any, **rest: Any) -> PackedBatch:
    batch, right = without_boundaries(tokens, labels, mask, cu, config), pack_batch(tokens, labels, mask, cu, config)
    batch.cos, batch.sin = right.cos, right.sin
    return batch


def in_the_middle(*arrays: Any, **rest: Any) -> PackedBatch:
    edge = parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()
    return (pack_batch if edge else without_boundaries)(*arrays, **rest)


def running_on(tokens: Any, labels: Any, mask: Any, cu: Any, config: Any, **rest: Any) -> PackedBatch:
    return with_positions(pack_batch(tokens, labels, mask, cu, config, **rest), np.arange(len(tokens)), config)


def other_base(tokens: Any, labels: Any, mask: Any, cu: Any, config: Any, **rest: Any) -> PackedBatch:
    return pack_batch(tokens, labels, mask, cu, config.with_changes(rope_theta=10_000.0), **rest)


def of_the_rank(tokens: Any, labels: Any, mask: Any, cu: Any, config: Any, *, cp: int, **rest: Any) -> PackedBatch:
    positions = np.concatenate([np.arange((b - a) // cp) for a, b in itertools.pairwise(cu.tolist())])
    return with_positions(pack_batch(tokens, labels, mask, cu, config, cp=cp, **rest), positions, config)


def contiguous(boundaries: Any, cp: int, rank: int) -> Any:
    parts = [(a + rank * (b - a) // cp, a + (rank + 1) * (b - a) // cp) for a, b in itertools.pairwise(boundaries)]
    return np.concatenate([np.arange(*part) for part in parts])


def over_the_pack(boundaries: Any, cp: int, rank: int) -> Any:
    return zigzag((0, boundaries[-1]), cp, rank)


def mean_of_means(batch: RankBatch, micro_batch: PackedBatch) -> float:
    trained = sum(pack.num_target_tokens > 0 for pack in batch.packs)
    return batch.stats.num_target_tokens / max(1, len(micro_batch.labels) * trained)


def sample_means() -> Any:
    stack = ExitStack()
    stack.enter_context(packs_become(lambda packs: [sample for pack in packs for sample in samples_of(pack)]))
    stack.enter_context(losses_times(mean_of_means))
    return stack


@contextmanager
def random_weights() -> Iterator[None]:
    def zero(models: Any, *_: Any) -> None:
        for model in models:
            for parameter in model.parameters():
                torch.nn.init.zeros_(parameter)

    with mock.patch.dict(globals(), load_weights=zero):
        yield


@contextmanager
def no_biases() -> Iterator[None]:
    def load(models: Any, *rest: Any) -> None:
        load_hf(models, *rest)
        for model in models:
            for name, parameter in model.named_parameters():
                if name.endswith("linear_qkv.bias"):
                    torch.nn.init.zeros_(parameter)

    with mock.patch.dict(globals(), load_weights=load):
        yield


load_weights = load_hf

FAULTS: dict[str, Callable[[], Any]] = {
    "attention_across_samples": lambda: batches_become(across),
    "pack_as_one_sequence": lambda: batches_become(without_boundaries),
    "middle_stages_as_one_sequence": lambda: batches_become(in_the_middle),
    "positions_not_reset": lambda: batches_become(running_on),
    "rotary_base": lambda: batches_become(other_base),
    "mask_late": lambda: each(lambda pack: replace(pack, loss_mask=np.roll(pack.loss_mask, 1))),
    "mask_early": lambda: each(lambda pack: replace(pack, loss_mask=np.roll(pack.loss_mask, -1))),
    "prompt_trained": lambda: each(prompt_trained),
    "labels_not_shifted": lambda: each(lambda pack: replace(pack, labels=pack.tokens)),
    "labels_shifted_twice": lambda: each(shifted_twice),
    "boundary_targets": lambda: each(boundary_targets),
    "padding_trained": lambda: each(padding_trained),
    "tokens_dropped": lambda: packs_become(tokens_dropped),
    "end_not_trained": lambda: without(lambda runs: [runs[-1][-1]]),
    "first_target_masked": lambda: without(lambda runs: [run[0] for run in runs]),
    "between_trained": lambda: each(between_trained),
    "one_run_trained": lambda: without(lambda runs: [position for run in runs[:-1] for position in run]),
    "samples_cut": lambda: packs_become(samples_cut),
    "shifted_on_ranks": lambda: each(shifted_on_ranks),
    "context_rank_means": lambda: losses_times(mean_of_ranks),
    "biases_lost": no_biases,
    "micro_batch_means": lambda: losses_times(mean_of_means),
    "sample_means": sample_means,
    "loss_summed": lambda: losses_times(lambda batch, _: batch.stats.num_target_tokens),
    "divided_by_all_tokens": lambda: losses_times(lambda b, _: b.stats.num_target_tokens / b.stats.tokens),
    "scaled": lambda: losses_times(lambda *_: 2.0),
    "context_order": lambda: mock.patch.object(packed, "zigzag", contiguous),
    "context_order over the pack": lambda: mock.patch.object(packed, "zigzag", over_the_pack),
    "rank_positions": lambda: batches_become(of_the_rank),
    "weights_not_loaded": random_weights,
}


def first_loss(case: dict[str, Any]) -> str:
    job = read_job(case["job"], case["overrides"])
    base, source, _ = open_job(job)
    config = job.training
    with parallel_state_of(config.parallel, seed=0):
        models = build_model(base.config, config.parallel)
        load_weights(models, base.config, base.checkpoint.read)
        forward = ForwardBackward(models, Optimizer.build(models, config).chunks, base.config, config.parallel)
        with torch.no_grad():
            return repr(total_loss(forward.run(forward.shard(source.batch(0)), train=False))[0])


def training(case: dict[str, Any]) -> str:
    job = read_job(case["job"], case["overrides"])
    base, source, _ = open_job(job)
    try:
        train(base, source, job.training, job.output)
    except OpenMathError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def run(case: dict[str, Any]) -> None:
    with FAULTS[case["fault"]]() if case["fault"] else ExitStack():
        text = (training if case.get("train") else first_loss)(case)
    if dist.get_rank() == 0:
        Path(case["output"]).write_text(text)


if __name__ == "__main__":
    run_cases(run)
