"""Packing, opening and balancing at the size of the recipe: `python benchmarks/packing.py [--samples 5500000]`.

Peers, run beside ours on the same lengths: best-fit-decreasing with TRL's own tree where TRL is installed (`pip install
trl`), and Megatron-Bridge's own first-fit-decreasing where its file is given (`--megatron-bridge
.../megatron/bridge/data/datasets/packing_utils.py`). Always there are both algorithms as we would write them one sample
at a time, with flat segment trees: several times as fast as those of the libraries. Lengths are log-normal with median
6000, cut to 32768. Every packing of ours is checked: no pack over its capacity, no sample left out.

`--only fill` shows what padding costs a training: the recipe's layouts, packed for several pad multiples.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nemo_openmath.data.batches.balance import assign, assign_in_order, imbalance
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.section_file import SectionWriter
from nemo_openmath.data.tokens.token_file import INDEX, KIND, ShardWriter, write_manifest
from nemo_openmath.models.layout import Parallel

CAPACITY = 32768


def draw_lengths(count: int, sigma: float, seed: int = 0) -> np.ndarray:
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(6000), sigma, count))
    return np.clip(drawn, 16, CAPACITY).astype(np.int64)


def best_fit_by_sample(lengths: np.ndarray) -> int:
    """Packs of best-fit-decreasing; a max tree over rooms finds the fullest pack with room for a sample."""
    size = 1 << (CAPACITY + 1).bit_length()
    tree = [0] * (2 * size)  # over rooms: bit set where a pack with that room exists
    packs_with = [0] * size
    packs = 0

    def put(room: int) -> None:
        packs_with[room] += 1
        at = room + size
        while at and not tree[at]:
            tree[at] = 1
            at >>= 1

    def remove(room: int) -> None:
        packs_with[room] -= 1
        if not packs_with[room]:
            at = room + size
            tree[at] = 0
            at >>= 1
            while at and not (tree[2 * at] or tree[2 * at + 1]):
                tree[at] = 0
                at >>= 1

    for length in np.sort(lengths)[::-1].tolist():
        at = length + size  # the first room at or above the length
        if not tree[at]:
            while at > 1 and (at & 1 or not tree[at + 1]):
                at >>= 1
            if at > 1:
                at += 1
                while at < size:
                    at = 2 * at if tree[2 * at] else 2 * at + 1
        if at > 1:
            room = at - size
            remove(room)
            put(room - length)
        else:
            packs += 1
            put(CAPACITY - length)
    return packs


def trl_by_sample(lengths: np.ndarray, tree_of: Any) -> int:
    """The decisions of TRL's packer (``trl.data_utils._pack_bfd``) with its own tree; no tokens are moved."""
    tree = tree_of(CAPACITY)
    tree.add(CAPACITY)
    bins: dict[int, deque[list[int]]] = defaultdict(deque)
    packs = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        room = tree.search(length)
        if room < CAPACITY:
            members = bins[room].popleft()
            if not bins[room]:
                tree.remove(room)
        else:
            members = []
            packs += 1
        members.append(row)
        if room > length:
            bins[room - length].append(members)
            tree.add(room - length)
    return packs


def first_fit_by_sample(lengths: np.ndarray) -> int:
    """Packs of first-fit-decreasing; a max tree over packs finds the first with room for a sample."""
    size = 1 << (len(lengths) - 1).bit_length()
    tree = [CAPACITY] * (2 * size)
    packs = 0
    for length in np.sort(lengths)[::-1].tolist():
        at = 1
        while at < size:
            at = 2 * at if tree[2 * at] >= length else 2 * at + 1
        packs = max(packs, at - size + 1)
        tree[at] -= length
        at >>= 1
        while at:
            best = max(tree[2 * at], tree[2 * at + 1])
            if tree[at] == best:
                break
            tree[at] = best
            at >>= 1
    return packs


def megatron_bridge(path: Path) -> Callable[[np.ndarray], int]:
    """``first_fit_decreasing`` of that file, which is loaded by itself: the package wants a GPU."""
    for name in ("megatron", "megatron.bridge", "megatron.bridge.utils"):
        sys.modules.setdefault(name, ModuleType(name))
    pickles: Any = ModuleType("megatron.bridge.utils.safe_pickle")
    pickles.safe_load_npy = np.load  # imported by the file, not used here
    sys.modules.setdefault(pickles.__name__, pickles)
    spec = spec_from_file_location("packing_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda lengths: len(module.first_fit_decreasing(lengths.tolist(), CAPACITY))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def report(name: str, lengths: np.ndarray, packs: int, wall: float, cpu: float) -> None:
    bound = -(-int(lengths.sum()) // CAPACITY)
    fill = lengths.sum() / packs / CAPACITY
    print(
        f"{name:34} {len(lengths):9,} samples  {wall:6.2f} s ({cpu:5.2f} s CPU)  fill {fill:.4%}"
        f"  {packs - bound:6,} packs above the bound ({packs / bound - 1:.4%})",
        flush=True,
    )


def packing(samples: int, peer_samples: int, bridge: Path | None) -> None:
    for sigma in (0.6, 0.8, 1.0):
        print(f"sigma {sigma}")
        lengths = draw_lengths(samples, sigma)
        (index, count), wall, cpu = timed(lambda: pack(lengths, CAPACITY))  # noqa: B023
        check(lengths, index, count)
        report("ours", lengths, count, wall, cpu)
        if sigma == 0.8:
            against_peers(lengths[:peer_samples], bridge)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of all of it: {peak:.2f} GB")


def against_peers(lengths: np.ndarray, bridge: Path | None) -> None:
    """Each peer with ours before and after it, for the ratio."""
    peers = [
        ("best-fit as we would write it", best_fit_by_sample),
        ("first-fit as we would write it", first_fit_by_sample),
    ]
    if find_spec("trl"):
        from trl.data_utils import _SegmentTree  # takes seconds, which are not counted

        peers.append(("TRL's best-fit-decreasing", partial(trl_by_sample, tree_of=_SegmentTree)))
    if bridge is not None:
        peers.append(("Megatron-Bridge's first-fit", megatron_bridge(bridge)))

    def ours() -> float:
        (index, count), wall, cpu = timed(lambda: pack(lengths, CAPACITY))
        check(lengths, index, count)
        report("ours", lengths, count, wall, cpu)
        return cpu

    before = ours()
    for name, peer in peers:
        count, wall, cpu = timed(lambda: peer(lengths))  # noqa: B023
        report(name, lengths, count, wall, cpu)
        after = ours()
        print(f"{'':34} ours is {2 * cpu / (before + after):.0f} times as fast (CPU)")
        before = after


def check(lengths: np.ndarray, index: np.ndarray, count: int) -> None:
    """Every sample is in one pack, and no pack is empty or over its capacity."""
    loads = np.bincount(index, weights=lengths, minlength=count)
    assert len(index) == len(lengths)
    assert len(loads) == count
    assert loads.min() > 0
    assert loads.max() <= CAPACITY


def balancing(samples: int) -> None:
    lengths = draw_lengths(samples, 0.8)
    index, count = pack(lengths, CAPACITY)
    costs = np.bincount(index, weights=lengths.astype(np.float64) ** 2, minlength=count).astype(np.int64)
    per_pack = samples / count
    rng = np.random.default_rng(0)
    print(f"worst rank's attention cost over the mean ({per_pack:.2f} samples a pack)")
    for ranks, batch in ((8, 1024), (64, 1024), (64, 8192), (512, 8192), (512, 32768)):
        before, after = [], []
        for _ in range(20):
            step = costs[rng.choice(count, round(batch / per_pack), replace=False)]
            before.append(imbalance(step, assign_in_order(len(step), ranks)))
            after.append(imbalance(step, assign(step, ranks)))
        print(f"  DP {ranks:3}, batch of {batch:6,} samples: {np.mean(before):.3f} before, {np.mean(after):.3f} after")


def opening(samples: int) -> None:
    """Samples of 16 tokens: what is opened is the index, whose size does not depend on the tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name), 176
        per = -(-samples // shards)
        for shard in range(shards):
            _write_shard(folder / f"{shard:05d}.tokens", shard * per, per)
        write_manifest(folder, [f"{shard:05d}.tokens" for shard in range(shards)])
        plan, wall, cpu = timed(lambda: write_packs(folder, capacity=CAPACITY))
        print(f"packing stage over {len(plan.samples):,} samples, files included: {wall:.2f} s ({cpu:.2f} s CPU)")
        data, wall, cpu = timed(lambda: PackedData.open(folder, batch_samples=1024, epochs=6))
        print(f"opening {data.num_samples:,} packed samples in {shards} shards: {wall:.2f} s ({cpu:.2f} s CPU)")
        _, wall, cpu = timed(lambda: data.rows(data.num_steps // 2))
        print(f"order of an epoch of {data.plan.num_packs:,} packs, at its first step: {wall:.2f} s ({cpu:.2f} s CPU)")


def _write_shard(path: Path, first: int, count: int) -> None:
    """As ShardWriter writes it, in bulk."""
    tokens = np.random.default_rng(first).integers(0, 60_000, (count, 16)).astype("<u2")
    runs = np.tile(np.array([8, 8], "<u4"), (count, 1))
    ids = [f"row-{first + i:028x}".encode() for i in range(count)]
    index = np.zeros(count, INDEX)
    row = np.arange(1, count + 1)
    index["token_end"], index["run_end"], index["id_end"] = row * 16, row * 2, row * 32
    index["id_hash"] = [int.from_bytes(hashlib.blake2b(i, digest_size=8).digest(), "little") for i in ids]
    parts = zip(tokens, ids, strict=True)
    index["crc32"] = [zlib.crc32(i, zlib.crc32(runs[0].data, zlib.crc32(t.data))) for t, i in parts]
    with SectionWriter(path, KIND) as writer:
        writer.add("tokens", tokens)
        writer.add("runs", runs)
        writer.begin("ids", "|u1")
        writer.write(b"".join(ids))
        writer.add("index", index)
        counts = {"samples": count, "tokens": count * 16, "trained": count * 8}
        described = {
            "tokenizer": "benchmark",
            "vocab_size": 60_000,
            "source": "benchmark",
            "groups": ["cot"],
            "dropped": {},
        }
        writer.finish(described | counts)


def _write_tokens(folder: Path, lengths: np.ndarray, vocab_size: int = 60_000) -> None:
    """Token files of samples of these lengths; all their tokens are 0."""
    writer = ShardWriter(folder / "00000.tokens", tokenizer="benchmark", vocab_size=vocab_size, source="benchmark")
    for i, length in enumerate(lengths.tolist()):
        writer.add(f"row-{i:028x}", "cot", np.zeros(length, np.int32), np.arange(length) > 200)
    writer.finish({})
    write_manifest(folder, ["00000.tokens"])


def reading() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_tokens(folder, draw_lengths(2000, 0.8), vocab_size=150_000)
        write_packs(folder, capacity=CAPACITY, pad_multiple=64)
        data = PackedData.open(folder, batch_samples=36, epochs=8)
        steps = range(0, data.num_steps - 1, 9)
        packs = sum(len(data.batch(step)) for step in steps)
        _, wall, _ = timed(lambda: [data.batch(step) for step in steps])
        print(
            f"batches of {packs / len(steps):.1f} packs of {CAPACITY:,} tokens: {wall / len(steps) * 1e3:.1f} ms each"
        )


LAYOUTS = {  # of examples/, and one with pipeline stages, whose packs all have one length
    "14B (TP 8, CP 2)": Parallel(tp=8, cp=2, sequence_parallel=True),
    "32B (TP 8, CP 4)": Parallel(tp=8, cp=4, sequence_parallel=True),
    "32B (TP 8, CP 4, PP 2)": Parallel(tp=8, cp=4, pp=2, sequence_parallel=True),
}


def fill(samples: int) -> None:
    """What is lost to padding: in the plan of all samples, and in the 20 steps of a training on 8 data-parallel ranks.

    Of the tokens computed, and of the packs' capacity, the share that belongs to samples is printed.
    """
    lengths = draw_lengths(samples, 0.8)
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name)
        _write_tokens(tokens, draw_lengths(20 * 1024, 0.8, seed=1))
        print(f"{'samples padded to':44}packs planned     fill   packs a step  of computed  of capacity")
        for layout, parallel in LAYOUTS.items():
            two_cp = parallel.sample_multiple
            for rule, multiple in (("2 x CP", two_cp), ("2 x CP x TP", two_cp * parallel.tp)):
                _, count = pack(-(-lengths // multiple) * multiple, CAPACITY)
                planned = lengths.sum() / count / CAPACITY
                packs, of_computed, of_capacity = _trained(tokens, multiple, parallel)
                print(
                    f"{layout:24}{rule:>13} = {multiple:2}  {count:13,} {planned:8.4%} {packs:14.2f}"
                    f" {of_computed:12.4%} {of_capacity:12.4%}",
                    flush=True,
                )


def _trained(tokens: Path, pad_multiple: int, parallel: Parallel, ranks: int = 8) -> tuple[float, float, float]:
    """Return packs of a step, and the samples' share of the tokens computed and of the packs' capacity."""
    with tempfile.TemporaryDirectory() as name:
        write_packs(tokens, name, capacity=CAPACITY, pad_multiple=pad_multiple)
        data = PackedData.open(name, batch_samples=1024, epochs=1, pad_multiple=1)
        packs = computed = sample_tokens = 0
        for step in range(data.num_steps):
            batch = data.batch(step)
            sample_tokens += sum(len(pack.tokens) for pack in batch)
            packs += len(batch)
            computed += sum(len(pack.tokens) for share in shard_batch(batch, ranks, parallel) for pack in share)
        return packs / data.num_steps, sample_tokens / computed, sample_tokens / packs / CAPACITY


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5_500_000)
    parser.add_argument("--peers", type=int, default=1_000_000, help="samples that the peers are given")
    parser.add_argument("--megatron-bridge", type=Path, metavar="FILE", help="its packing_utils.py")
    parser.add_argument("--only", choices=["packing", "balancing", "reading", "opening", "fill"])
    options = parser.parse_args()
    parts = {
        "packing": lambda: packing(options.samples, options.peers, options.megatron_bridge),
        "balancing": lambda: balancing(min(options.samples, 500_000)),
        "reading": reading,
        "opening": lambda: opening(options.samples),
        "fill": lambda: fill(options.samples),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()
