"""Sections of gpu.py: the embedded engine, its attention, and drafters."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_inputs import random_model
from gpu_measure import wait

from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.devices import process_device, use_steady_attention

if TYPE_CHECKING:
    from gpu import Report


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
    """A drafter's loss falls, and ends where it does on the CPU."""
    from nemo_openmath.models.devices import DeviceChoice
    from nemo_openmath.speculative.frozen import load_base
    from nemo_openmath.speculative.redrafter import RedrafterTraining
    from nemo_openmath.speculative.settings import DrafterSettings
    from nemo_openmath.speculative.texts import Text
    from nemo_openmath.speculative.train import train as train_drafter

    settings = DrafterSettings(batch_tokens=512, epochs=3, lr=3e-3)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        served_model(folder, ModelConfig(1024, 128, 256, 3, 4, 2, 32, max_position_embeddings=512, eos_token_id=2))
        random = np.random.default_rng(0)
        drawn = [random.integers(3, 20, n) for n in random.integers(20, 90, 40)]  # of 17 tokens out of 1,024
        texts = [Text(ids.astype(np.int32), np.ones(len(ids), bool)) for ids in drawn]

        def losses(device: DeviceChoice) -> list[float]:
            made = list[float]()
            kind = RedrafterTraining(load_base(folder, settings, device))
            train_drafter(kind, texts, settings, lambda _step, _steps, value: made.append(value))
            return made

        here, there = losses("cpu"), losses("cpu" if report.dry else "cuda")
        report.below("last loss over the first", there[-1] / there[0], 0.995, first=there[0], steps=len(there))
        report.below("last loss, apart from the CPU's", abs(there[-1] / here[-1] - 1), 0.01, cpu=here[-1])
