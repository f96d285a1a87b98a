"""How long an evaluation will take, said before it begins: a short measurement of the model's speed, and what that
means for the tokens that are asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_openmath.chat.prompts import load_template
from nemo_openmath.core.engine import Engine, Request, Sampling
from nemo_openmath.core.records import read_manifest
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.evaluation.reports.formats import seconds_text
from nemo_openmath.inference.asking import prompt_for
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.services import RecipeServices

log = logging.getLogger(__name__)

PROBE_TOKENS = 32
"""Tokens of each answer of the measurement."""
PROBE_REQUESTS = 16
"""Answers at once. More at once are faster; so the time that is said is rather too long."""
_TYPICAL = 1000
_QUESTION = "What is the sum of all whole numbers from 1 to 100?"


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be generated."""

    solutions: int
    max_tokens: int
    engine: str = ""

    def lines(self, tokens_per_second: float, at_once: int) -> list[str]:
        """Return what is said before it begins."""
        most = self.solutions * self.max_tokens / tokens_per_second
        each = min(_TYPICAL, self.max_tokens)
        told = seconds_text(self.solutions * each / tokens_per_second)
        return [
            f"{self.solutions:,} solutions of at most {self.max_tokens:,} tokens; measured: {tokens_per_second:,.0f} "
            f"tokens/s with {at_once} at once",
            f"that is about {told} where a solution has {each:,} tokens, and {seconds_text(most)} where all are as "
            "long as they may be; a server or a GPU with more at once is faster",
            "to make it smaller: fewer --samples (wider intervals), --limit N (fewer problems), fewer --tokens; what "
            "is made is kept, and larger numbers later add to it (not --tokens)",
        ]


async def say_time(run: Run, stages: Sequence[str]) -> None:
    """Say how long those of the stages take that generate solutions. What they read must be there. Nothing is said
    where none generates."""
    if not (work := _work(run, stages)).solutions:
        return
    services = RecipeServices(run.recipe, run.output)
    try:
        engine, tokenizer = await services.engine(work.engine)
        speed = await measured_speed(engine, tokenizer)
    finally:
        await services.close()
    for line in work.lines(speed, PROBE_REQUESTS):
        log.info("%s", line)


def _work(run: Run, stages: Sequence[str]) -> Work:
    solutions, tokens, engine = 0, 1, ""
    for name in stages:
        entry = run.recipe.stages[name]
        if not isinstance(entry.stage, Generate):
            continue
        config = entry.stage.config
        (read,) = entry.inputs["problems"]
        problems = read_manifest(run.folder(read) if isinstance(read, str) else read)
        number = 0 if problems is None else problems.counts["records"]
        solutions += (min(number, config.limit) if config.limit else number) * config.samples
        tokens, engine = max(tokens, config.max_tokens), config.engine
    return Work(solutions, tokens, engine)


async def measured_speed(engine: Engine, tokenizer: Tokenizer) -> float:
    """Return tokens per second of an engine that answers ``PROBE_REQUESTS`` at once, the first answer left out."""
    messages = load_template("cot").messages(problem=_QUESTION)
    prompt = await prompt_for(engine, tokenizer, messages, tokenizer.prompt(messages))
    sampling = Sampling(max_tokens=PROBE_TOKENS, temperature=0.6, top_p=0.95, seed=0)
    await engine.complete(Request(prompt, replace(sampling, max_tokens=1)))
    begun = time.monotonic()
    requests = (engine.complete(Request(prompt, replace(sampling, seed=n))) for n in range(PROBE_REQUESTS))
    completions = await asyncio.gather(*requests)
    tokens = sum(len(c.token_ids) or c.usage.completion_tokens for c in completions)
    return max(tokens, 1) / max(time.monotonic() - begun, 1e-6)
