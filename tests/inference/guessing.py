"""Proposers for tests: trees whose guesses are right now and then, or never, and the engines that have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_openmath.core.engine import Completion, Request, Sampling
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.embedded.guesses import Trees
from nemo_openmath.inference.embedded.proposers import DraftSource
from nemo_openmath.inference.embedded.rows import RowTable


class RandomTrees:
    """Random trees of at most ``nodes`` guesses. Of the prompts in ``known`` it knows the whole text, and in one branch
    of each tree it tells the truth for a while; where that branch stands is random, too."""

    levels = 1

    def __init__(
        self,
        table: RowTable,
        vocab: int,
        known: Mapping[tuple[int, ...], Sequence[int]] | None = None,
        *,
        nodes: int = 9,
        chains: bool = False,
        seed: int = 0,
    ):
        self.expected = np.array([0.5])
        self._table, self._vocab, self._known, self._nodes = table, vocab, known or {}, nodes
        self._chains, self._draw = chains, np.random.default_rng(seed)

    def begin(self, row: int) -> None:
        pass

    def move(self, source: int, target: int) -> None:
        pass

    def propose(self, rows: np.ndarray, most: np.ndarray, level: int, into: Trees) -> None:
        for i, (row, n) in enumerate(zip(rows.tolist(), most.tolist(), strict=True)):
            into.put(i, *self._tree(row, n))

    def compiled(self, rows: int) -> None:
        return None

    def _tree(self, row: int, most: int) -> tuple[list[int], list[int], list[int]]:
        draw = self._draw
        if most < 1 or draw.random() < 0.2:
            return [], [], []
        ids = self._table.ids[row, : self._table.length[row]].tolist()
        prompt = tuple(ids[: self._table.prompt_length[row]])
        truth = [*prompt, *self._known.get(prompt, ())][len(ids) :]
        nodes = int(draw.integers(1, self._nodes + 1))
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        path = -1  # the last guess of the true branch
        for guess in range(nodes):
            parent = guess - 1 if self._chains or draw.random() < 0.2 else int(draw.integers(-1, guess))
            if not self._chains and draw.random() < 0.5:
                parent = path  # the true branch goes on, or begins
            depth = 0 if parent < 0 else depths[parent] + 1
            if depth >= most:
                break
            right = parent == path and depth < len(truth) and draw.random() < 0.8
            tokens.append(truth[depth] if right else int(draw.integers(self._vocab)))
            parents.append(parent)
            depths.append(depth)
            if right:
                path = guess
        return tokens, parents, [0] * len(tokens)


def guessing(
    make: Callable[[RowTable], Any], model: Path, *, paced: bool = False, hidden: int = 0, **options: Any
) -> EmbeddedEngine:
    """An engine whose guesses are those of ``make``; all of them are verified unless it is paced."""
    source = DraftSource("test", lambda table, room: make(table), hidden=hidden, paced=paced)
    return EmbeddedEngine.load(model, threads=options.pop("threads", 1), drafter=source, **options)


def result(completion: Completion) -> tuple[Any, ...]:
    """All of a completion that may not depend on what else the engine does: not where its prompt came from."""
    c = completion
    return c.text, c.token_ids, c.finish, c.stop, c.usage.prompt_tokens, c.usage.completion_tokens, c.logprobs


async def seeded(engine: EmbeddedEngine, request: Request, seeds: Iterable[int]) -> list[Completion]:
    """The completions of one request with each of the seeds."""
    made = [replace(request, sampling=replace(request.sampling, seed=seed)) for seed in seeds]
    return await asyncio.gather(*(engine.complete(r) for r in made))


def requests(n: int, seed: int = 0) -> list[Request]:
    """Requests of all kinds: greedy and not, with stop strings, log-probabilities, and few tokens."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(n):
        sampling = Sampling(
            max_tokens=int(draw.choice([1, 2, 7, 40, 90])),
            temperature=float(draw.choice([0.0, 0.7, 1.5])),
            top_p=float(draw.choice([0.9, 1.0])),
            top_k=int(draw.choice([0, 20])),
            min_p=float(draw.choice([0.0, 0.05])),
            seed=i,
            stop=("e", "st", "5")[: int(draw.integers(4))] if i % 3 == 0 else (),
            keep_stop=bool(draw.integers(2)),
            logprobs=i % 2 == 0,
        )
        prompt = tuple(draw.integers(3, 500, draw.integers(2, 70)).tolist())
        made.append(Request(prompt, sampling, conversation=f"c{i}" if i % 4 == 0 else None))
    return made
