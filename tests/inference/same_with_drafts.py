"""Completions with guessed tokens against plain ones: ``python -m tests.inference.same_with_drafts --prompts 1000``.

A small random model completes prompts of all kinds (greedy and drawn, with stop strings, log-probabilities, streams)
without guesses, and then with each proposer and number of slots: random trees, trees that are right now and then,
n-grams and a random drafter, for which each prompt comes twice, so that they know the second answer. Text, tokens,
log-probabilities, ends and usage must be equal, bit for bit. Then the frequencies of ``--seeds`` draws of four tokens
with guesses against the product of transformers' probabilities.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from nemo_openmath.core.engine import Completion, Request, Sampling
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from tests.inference.exact import all_continuations, chi_square
from tests.inference.guessing import RandomTrees, guessing, requests, result, seeded
from tests.support.models import save_random


async def answers(engine: EmbeddedEngine, made: list[Request]) -> list[Completion]:
    """The completions, of which every fifth is streamed."""

    async def streamed(request: Request) -> Completion:
        last = [chunk async for chunk in engine.stream(request)][-1].completion
        assert last is not None
        return last

    tasks = [streamed(r) if i % 5 == 0 else engine.complete(r) for i, r in enumerate(made)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await engine.close()


async def compare(model: Path, drafter: Path, made: list[Request], slots: list[int]) -> bool:
    """Print a line for each engine; return whether all were equal to the plain one."""
    plain = await answers(EmbeddedEngine.load(model, threads=1, slots=16, drafter="none"), made)
    known = {r.prompt: a.token_ids for r, a in zip(made, plain, strict=True)}
    trees: dict[str, Callable[[int], EmbeddedEngine]] = {
        "random trees": lambda n: guessing(partial(RandomTrees, vocab=512), model, slots=n),
        "right trees": lambda n: guessing(partial(RandomTrees, vocab=512, known=known), model, slots=n),
        "right chains": lambda n: guessing(partial(RandomTrees, vocab=512, known=known, chains=True), model, slots=n),
        "n-grams twice": lambda n: EmbeddedEngine.load(model, threads=1, slots=n, drafter="ngram"),
        "drafter twice": lambda n: EmbeddedEngine.load(model, threads=1, slots=n, drafter=drafter),
    }
    good = True
    for name, load in trees.items():
        for n in slots:
            engine = load(n)
            times = 2 if name.endswith("twice") else 1
            got = await answers(engine, made * times)
            same = sum(result(a) == result(b) for a, b in zip(got, plain * times, strict=True))
            statistics = engine.statistics
            print(
                f"{name:13} {n:3} slots: {same} of {len(got)} equal; {statistics.generated_tokens:,} tokens in "
                f"{statistics.steps:,} passes, {statistics.drafted:,} guesses, {sum(statistics.accepted):,} right",
                flush=True,
            )
            good &= same == len(got)
    return good


async def distribution(model: Path, seeds: int) -> float:
    """The chi-square test's p of four tokens."""
    prompt, sampling = tuple(range(20, 50)), Sampling(max_tokens=4, temperature=1.3, top_k=3, top_p=0.98)
    expected = all_continuations(model, prompt, sampling)
    known = {prompt: max(expected, key=lambda ids: expected[ids])}
    engine = guessing(partial(RandomTrees, vocab=512, known=known), model, slots=16)
    drawn = Counter([c.token_ids for c in await seeded(engine, Request(prompt, sampling), range(seeds))])
    await engine.close()
    p = chi_square(drawn, expected)
    right = sum(engine.statistics.accepted)
    print(f"{seeds} draws of {len(expected)} continuations, {right} guesses right: chi-square p = {p:.3f}")
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--slots", default="1,4,16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model = save_random(Path(work) / "model")
        drafter = Path(work) / "drafter"
        drafter.mkdir()
        torch.manual_seed(1)
        ReDrafter(DrafterShape(64, 512, 1, 4)).save(drafter)
        slots = [int(n) for n in options.slots.split(",")]
        good = asyncio.run(compare(model, drafter, requests(options.prompts), slots))
        good &= asyncio.run(distribution(model, options.seeds)) > 1e-3
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
