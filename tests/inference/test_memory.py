"""Memory of the embedded engine: what is free, what is chosen, and requests that share too little of it."""

import asyncio
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_openmath.core.engine import Finish, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.embedded import engine as engine_module
from nemo_openmath.inference.embedded.cache import Cache, block_tokens
from nemo_openmath.inference.embedded.memory import RESERVE, MemoryPlan, Need, plan_memory
from nemo_openmath.inference.embedded.requests import EngineRequest
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from nemo_openmath.inference.free_memory import Free, free_memory
from tests.support.models import save_random

GIB = 1 << 30


def machine(root: Path, *, available: int = 20 * GIB, cgroup: str = "", **files: int | str) -> Path:
    """A made-up /proc and /sys; ``files``: path below /sys/fs/cgroup, ``__`` for ``/``, -> content."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available >> 10} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, value in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_free_is_the_least_that_anything_allows(tmp_path):
    assert free_memory(machine(tmp_path / "a")).available == 20 * GIB
    job = {"job__memoryDOTmax": 8 * GIB, "job__memoryDOTcurrent": 3 * GIB, "job__memoryDOTstat": f"inactive_file {GIB}"}
    step = {"job__step__memoryDOTmax": "max", "job__step__memoryDOTcurrent": GIB}
    free = free_memory(machine(tmp_path / "b", cgroup="0::/job/step\n", **job, **step))
    assert (free.available, free.where) == (6 * GIB, "of this job's or container's memory limit")
    old = {"memory__memoryDOTlimit_in_bytes": 4 * GIB, "memory__memoryDOTusage_in_bytes": GIB}
    in_container = "5:cpu:/x\n4:memory:/docker/of/the/host\n0::/\n"
    assert free_memory(machine(tmp_path / "c", cgroup=in_container, **old)).available == 3 * GIB
    unlimited = {"memory__memoryDOTlimit_in_bytes": 9223372036854771712, "memory__memoryDOTusage_in_bytes": GIB}
    assert free_memory(machine(tmp_path / "d", cgroup=in_container, **unlimited)).available == 20 * GIB


SMALL = Need("m", resident=2 * GIB, loading=4 * GIB, token=24 << 10, working=GIB // 4, limit=32768)


@pytest.mark.parametrize(
    ("free", "asked", "expected"),
    [
        (200, {}, (64, 32768, 64 * 32768)),
        (20, {}, (64, 32768, 644_437)),
        (20, {"slots": 4}, (4, 32768, 4 * 32768)),
        (20, {"cache_mib": 1024}, (64, 32768, 43_690)),
        (20, {"max_context": 2048, "slots": 2}, (2, 2048, 4096)),
        (5, {}, (64, 32768, 73_728)),
        (20, {"paged": False}, (19, 32768, 19 * 32768)),
        (6, {"paged": False}, (4, 25_804, 4 * 25_804)),
    ],
)
def test_memory_is_sized_to_the_machine(free, asked, expected):
    plan = plan_memory(SMALL, Free(free * GIB), **asked)
    assert (plan.slots, plan.max_context, plan.cache_tokens) == expected
    taken = SMALL.resident + SMALL.working + plan.cache_tokens * SMALL.token + plan.prefix_bytes
    assert taken <= 0.91 * free * GIB
    assert plan.summary.startswith(f"{plan.slots} slots x {plan.max_context:,} tokens; ")
    assert f"of {free:.1f} GiB free" in plan.summary


@pytest.mark.parametrize(
    ("free", "asked", "named"),
    [
        (3, {}, ("does not fit", "2.0 GiB (4.0 GiB while they are loaded)", "3.0 GiB of this machine's")),
        (5, {"max_context": 32768, "cache_mib": 700}, ("max_context 32768", "768 MiB", "cache_mib allows 700 MiB")),
        (5, {"cache_mib": 4096}, ("cache_mib 4096 (4.0 GiB) does not fit", "2.2 GiB is left", "5.0 GiB")),
        (6, {"slots": 64, "max_context": 9999, "paged": False}, ("slots 64 x max_context 9999", "14.6 GiB", "3.2 GiB")),
        (6, {"slots": 1000, "paged": False}, ("slots 1000 x max_context 1024", "23.4 GiB")),
        (20, {"max_context": 40000}, ("exceeds the model's 32768 positions",)),
        (20, {"slots": 0}, ("slots is 0",)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(free, asked, named):
    with pytest.raises(UserError) as caught:
        plan_memory(SMALL, Free(free * GIB), **asked)
    assert all(words in str(caught.value) for words in named), str(caught.value)


def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(model_dir, monkeypatch):
    monkeypatch.setattr(engine_module, "free_memory", lambda: Free(100 << 20))
    with pytest.raises(UserError, match=r"does not fit: the weights take .* and 100 MiB"):
        EmbeddedEngine.load(model_dir)


def on_a_gpu(monkeypatch, folder: Path, free: int, **asked) -> MemoryPlan:
    """The plan for a GPU with ``free`` bytes, in bfloat16."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    given = {"slots": None, "max_context": None, "cache_mib": None} | asked
    return engine_module._plan(folder, "bfloat16", "cuda", prefix_bytes=64 << 20, drafter_bytes=0, **given)


@pytest.mark.parametrize(("free", "slots"), [(300 << 20, 37), (600 << 20, 64)])
def test_a_gpu_gets_what_fits_its_memory(tmp_path, monkeypatch, free, slots):
    """All buffers are taken at once there: their sizes, on a device that stores nothing, are within the plan."""
    folder = save_random(tmp_path / "m", max_position_embeddings=2048)
    plan = on_a_gpu(monkeypatch, folder, free)
    assert (plan.slots, plan.max_context) == (slots, 2048)
    weights = load_weights(folder, max_context=plan.max_context, dtype=torch.bfloat16, device="meta")
    decoder = TorchDecoder(weights, plan.slots)
    assert decoder.rows == plan.slots, "a GPU's rows are not rounded up"
    buffers = [b for b in vars(decoder).values() if isinstance(b, torch.Tensor)]
    tensors = [getattr(layer, f.name) for layer in weights.layers for f in fields(layer)]
    tensors += [weights.embedding, weights.head, weights.norm, *buffers]
    distinct = {id(t): t.nbytes for t in tensors if t is not None}
    assert sum(distinct.values()) + plan.prefix_bytes <= free - RESERVE
    with pytest.raises(UserError, match=r"slots 900 x max_context 2048 does not fit: it needs .* use fewer slots"):
        on_a_gpu(monkeypatch, folder, free, slots=900, max_context=2048)
    with pytest.raises(
        UserError, match=r"does not fit: the weights take .* of the GPU's memory is free; use a smaller"
    ):
        on_a_gpu(monkeypatch, folder, 200 << 20)


def test_memory_is_taken_with_use_and_given_back():
    block = block_tokens(32, 64 * 4)
    cache = Cache(2, 3, 2, 64 * block, 64, torch.float32, block=block, tight=True)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    whole = cache.keys.nbytes + cache.values.nbytes
    before = resident()
    keys, values = (t.view(2, 3, 2, -1) for t in (cache.keys, cache.values))
    keys[:, 1], values[:, 1] = 1.0, 2.0
    cache.wrote(1, cache.capacity)
    taken = resident() - before
    assert whole // 3 <= taken < whole // 2
    cache.release(1, block + 1)  # two blocks stay
    assert resident() - before < whole // 10
    assert cache.memory_tokens.tolist() == [0, 2 * block, 0]
    per_head = 2 * block * 64
    assert bool((keys[:, 1, :, :per_head] == 1).all() and (keys[:, 1, :, per_head:] == 0).all())
    assert bool((values[:, 1, :, :per_head] == 2).all())


@pytest.mark.parametrize("compiler", [True, False])
async def test_requests_that_share_too_little_memory_come_to_the_same(model_dir, monkeypatch, compiler):
    """Paused and resumed requests have the tokens and log-probabilities of others, within the budget."""
    if not compiler:
        monkeypatch.setattr(engine_module, "compile_decoder", lambda *_: None)
    token = 3 * 2 * 2 * 16 * 4  # layers, K and V, heads, head_dim, bytes
    tight = EmbeddedEngine.load(model_dir, slots=8, threads=1, cache_mib=1, prefix_cache_bytes=1 << 20)
    budget = (1 << 20) // token
    wide = EmbeddedEngine.load(model_dir, slots=8, threads=1)
    assert f"{budget:,} tokens of all requests together, 2 of full length; others wait" in tight.memory
    shared = tuple(range(20, 60))
    requests = [
        Request(
            (*shared[: 10 * (i % 3)], i + 3, 7 + i), Sampling(max_tokens=400, temperature=1.0, seed=i, logprobs=True)
        )
        for i in range(12)
    ]
    most = []
    batch = tight._scheduler._batch
    fits = batch.budget.fits
    monkeypatch.setattr(
        batch.budget, "fits", lambda *a, **k: (fits(*a, **k), most.append(batch.decoder.memory_tokens().sum()))[0]
    )
    together = await asyncio.gather(*(tight.complete(r) for r in requests))
    apart = await asyncio.gather(*(wide.complete(r) for r in requests))
    assert tight.statistics.pauses > 0
    assert [c.token_ids for c in together] == [c.token_ids for c in apart]
    assert [c.logprobs for c in together] == [c.logprobs for c in apart] or not compiler
    assert [c.usage.completion_tokens for c in together] == [c.usage.completion_tokens for c in apart]
    assert max(most) <= max(budget, batch.budget.tokens)
    await tight.close()
    await wide.close()


async def test_a_paused_request_that_ends_gives_what_it_has(model_dir):
    engine = EmbeddedEngine.load(model_dir, slots=2, threads=1)
    answers = []
    request = EngineRequest(np.array([5, 6], np.int32), Sampling(logprobs=True), answers.append)
    request.paused_ids, request.paused_logprobs = np.array([5, 6, 40, 41], np.int32), np.array([-1.0, -2.0], np.float32)
    engine._scheduler._batch.answer_waiting(request, Finish.TIME)
    (answer,) = answers
    assert (answer.token_ids, answer.logprobs, answer.finish) == ((40, 41), (-1.0, -2.0), Finish.TIME)
    assert answer.text == engine.tokenizer.decode([40, 41])
    await engine.close()
