"""Embedded engine against transformers' padded ``generate``, same model, same requests, one run.

    OMP_NUM_THREADS=2 python benchmarks/engine.py [--size 1m|25m] [--lengths even|tailed] [--threads 2] [--requests 192]

64 requests at a time, prompts of 150-400 tokens, temperature 0.7, top-p 0.95. ``even``: outputs of 50-250 tokens, and
``generate`` gets batches of 64 sorted by output length, which nobody knows beforehand: its best case. ``tailed``:
outputs of 16-1500 tokens, log-normal with median 150, as reasoning has them, and batches in the order of arrival.
``generate`` runs each batch to its longest output. Only tokens that were asked for count. The ratio is also given in
CPU seconds, which a busy machine disturbs less than wall time. Then: the
share of prompt tokens recomputed when every request continues once after a tool's output, and the CPU cost of a request
in the HTTP client. ``--soak N`` instead: the memory of this process over N requests of client and engine.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch

from nemo_openmath.core.engine import Engine, Request, Sampling
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.http.client import HTTPEngine

SIZES = {
    "1m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4},
    "25m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
}
VOCAB, CONTEXT, BATCH = 1024, 2048, 64


def make_model(folder: Path, size: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = SIZES[size] | {"num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
    Qwen2ForCausalLM(Qwen2Config(**shape, initializer_range=0.1, eos_token_id=0)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|im_end|>", *alphabet, *(a + b for a in alphabet for b in alphabet)][:VOCAB]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)


def make_requests(n: int, lengths: str = "even") -> list[Request]:
    rng = np.random.default_rng(0)
    outputs = rng.integers(50, 251, n)
    if lengths == "tailed":
        outputs = np.clip(rng.lognormal(np.log(150), 1.0, n), 16, 1500)
    return [
        Request(
            tuple(rng.integers(1, VOCAB, rng.integers(150, 401)).tolist()),
            Sampling(max_tokens=int(outputs[i]), temperature=0.7, top_p=0.95, seed=i),
            conversation=f"c{i}",
        )
        for i in range(n)
    ]


class Clock:
    """Wall and CPU seconds of a block."""

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def run_generate(folder: Path, requests: list[Request], lengths: str) -> Clock:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    if lengths == "even":
        requests = sorted(requests, key=lambda r: r.sampling.max_tokens)
    with Clock() as clock, torch.inference_mode():
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            longest = max(len(r.prompt) for r in batch)
            ids = torch.tensor([[0] * (longest - len(r.prompt)) + list(r.prompt) for r in batch])
            mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in batch])
            new = max(r.sampling.max_tokens for r in batch)
            options = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0, "pad_token_id": 0}
            model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)
    return clock


async def run_embedded(folder: Path, requests: list[Request], threads: int) -> tuple[Clock, int, float]:
    engine = EmbeddedEngine.load(folder, slots=BATCH, threads=threads)
    await engine.complete(Request((1, 2, 3), Sampling(max_tokens=2)))
    gate = asyncio.Semaphore(BATCH)

    async def complete(request: Request):
        async with gate:
            return await engine.complete(request)

    with Clock() as clock:
        answers = await asyncio.gather(*(complete(r) for r in requests))
    generated = sum(len(a.token_ids) for a in answers)
    before = engine.statistics.prompt_tokens - engine.statistics.cached_tokens
    longer = [
        Request((*r.prompt, *a.token_ids, *range(20, 60)), Sampling(max_tokens=8, seed=r.sampling.seed), r.conversation)
        for r, a in zip(requests, answers, strict=True)
    ]
    await asyncio.gather(*(complete(r) for r in longer))
    computed = engine.statistics.prompt_tokens - engine.statistics.cached_tokens - before
    new = sum(
        len(r.prompt) - len(o.prompt) - len(a.token_ids) for r, o, a in zip(longer, requests, answers, strict=True)
    )
    recomputed = (computed - new) / sum(len(r.prompt) for r in longer)
    await engine.close()
    return clock, generated, recomputed


@asynccontextmanager
async def echo_client() -> AsyncIterator[HTTPEngine]:
    """A client of a server in another process that gives everybody the same answer."""
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    engine = HTTPEngine((await server.stdout.readline()).decode().strip(), "m", kind="vllm")
    try:
        yield engine
    finally:
        await engine.close()
        server.terminate()
        await server.wait()


async def client_overhead(n: int = 2000) -> float:
    """CPU milliseconds of a request in the client."""
    async with echo_client() as engine:
        request = Request(tuple(range(400)), Sampling(max_tokens=100))
        await asyncio.gather(*(engine.complete(request) for _ in range(64)))
        with Clock() as clock:
            for _ in range(n // 64):
                await asyncio.gather(*(engine.complete(request) for _ in range(64)))
        return 1e3 * clock.cpu / (n // 64 * 64)


async def soak(name: str, engine: Engine, n: int) -> None:
    """Memory of this process over n requests, each of a conversation of its own, 256 in flight."""
    numbers = iter(range(n))
    sizes: list[float] = []

    async def ask() -> None:
        for i in numbers:
            if i % (n // 10) == n // 10 - 1:
                sizes.append(resident_mib())
            request = Request((i % 1000 + 1, i // 1000 % 1000 + 1, 3), Sampling(max_tokens=4, seed=i), f"c{i}")
            assert (await engine.complete(request)).token_ids

    await asyncio.gather(*(ask() for _ in range(256)))
    print(f"{name}, {n} requests: resident MiB at each tenth: {' '.join(f'{s:.0f}' for s in sizes)}", flush=True)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def run_soak(folder: Path, n: int) -> None:
    async with echo_client() as engine:
        await soak("HTTP client", engine, n)
    embedded = EmbeddedEngine.load(folder, slots=BATCH, threads=1, prefix_cache_bytes=64 << 20)
    await soak("embedded engine", embedded, n)
    await embedded.close()


ECHO = """
import asyncio, json
from aiohttp import web
ids = list(range(100))
choice = {"index": 0, "text": "x" * 300, "token_ids": ids, "finish_reason": "length"}
usage = {"prompt_tokens": 400, "completion_tokens": 100}
body = json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()
async def answer(request):
    await request.read()
    return web.Response(body=body, content_type="application/json")
async def main():
    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1m")
    parser.add_argument("--lengths", choices=("even", "tailed"), default="even")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--soak", type=int, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    requests = make_requests(arguments.requests, arguments.lengths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, arguments.size)
        if arguments.soak:
            asyncio.run(run_soak(folder, arguments.soak))
            return
        ours, generated, recomputed = asyncio.run(run_embedded(folder, requests, arguments.threads))
        theirs = run_generate(folder, requests, arguments.lengths)
    asked = sum(r.sampling.max_tokens for r in requests)
    print(f"embedded {generated / ours.wall:7.0f} tokens/s wall, {generated / ours.cpu:7.0f} per CPU second")
    print(f"generate {asked / theirs.wall:7.0f} tokens/s wall, {asked / theirs.cpu:7.0f} per CPU second")
    ratio, cpu = generated / ours.wall / (asked / theirs.wall), generated / ours.cpu / (asked / theirs.cpu)
    print(
        f"ratio    {ratio:.2f} wall, {cpu:.2f} CPU ({arguments.size}, {arguments.lengths}, {arguments.threads} threads)"
    )
    print(f"prompt tokens computed again after a tool's output: {100 * recomputed:.2f}%")
    print(f"client overhead: {asyncio.run(client_overhead()):.2f} ms of CPU per request")


if __name__ == "__main__":
    main()
