"""Ask a model one question and read its answer strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nemo_openmath.chat import ChatTokenizer, Message
from nemo_openmath.core.engine import Engine, Request, Sampling
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.inference.http.asking import prompt_for, text_after_thinking

T = TypeVar("T")


async def ask(
    engine: Engine,
    tokenizer: ChatTokenizer,
    messages: tuple[Message, ...],
    parse: Callable[[str], T | None],
    *,
    seed: int,
    max_tokens: int = 4096,
    temperature: float = 0.0,
    attempts: int = 3,
) -> tuple[T | None, str]:
    """(what ``parse`` made of the answer, which is what follows the thinking; all that the model wrote).

    Answers that do not parse are asked for again, with another seed and at least temperature 0.7; after ``attempts``
    the value is None and the caller counts it."""
    prompt = prompt_for(engine, tokenizer, messages)
    text = ""
    for attempt in range(attempts):
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature if attempt == 0 else max(temperature, 0.7),
            seed=derive_seed(seed, attempt),
        )
        text = (await engine.complete(Request(prompt, sampling))).text
        if (value := parse(text_after_thinking(text, tokenizer, messages))) is not None:
            return value, text
    return None, text
