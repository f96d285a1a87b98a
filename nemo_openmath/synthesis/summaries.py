"""Ask for several short versions of a text and take the longest valid one (paper sections 4.1 and 4.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt
from nemo_openmath.core.engine import Finish, Sampling
from nemo_openmath.core.stage import RUNTIME
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.inference.asking import PreparedPrompt

_FOREIGN = (CODE_START, CODE_END, "```output\n")  # in a summary they would be code that nobody ran


@dataclass(frozen=True)
class SummariesConfig:
    """How summaries are written and chosen."""

    engine: str = "teacher"
    """The model that writes: ``teacher``, the name of a stage that made a model, or a model folder."""
    candidates: PositiveInt = 4
    """Summaries written of each text; the longest valid one is taken. Paper section 4.1."""
    max_tokens: PositiveInt = 2048
    """Longest summary, in tokens. A summary that is cut off there is not used. Paper sections 4.1 and 4.3."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature; 0 is greedy, and then all candidates of a text are the same."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Texts in flight at once. It changes the speed alone."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary that is taken, or why there is none: ``example`` then is what the model wrote."""

    text: str | None
    unfinished: bool = False
    """No summary was finished within its limit."""
    example: str = ""
    tokens: int = 0
    """Tokens that the model wrote for the summary that is taken."""


async def longest_valid(
    prompt: PreparedPrompt, config: SummariesConfig, seeds: Sequence[int], is_valid: Callable[[str], Awaitable[bool]]
) -> Summary:
    """Ask for one summary a seed and return the longest that ``is_valid``; of equally long ones the last in order.

    What stands behind the thinking is the summary. One that was cut off at its limit would teach to end in the middle
    of a sentence, and one with tags of code or output would teach code that nobody ran: neither is valid. Raises
    EngineError.
    """
    completions = await asyncio.gather(
        *(
            prompt.complete(Sampling(max_tokens=config.max_tokens, temperature=config.temperature, seed=seed))
            for seed in seeds
        )
    )
    written = [  # some servers do not keep the limit, and write beyond it
        (prompt.answer(c.text), c.usage.completion_tokens)
        for c in completions
        if c.finish is Finish.STOP and c.usage.completion_tokens <= config.max_tokens
    ]
    if not written:
        return Summary(None, unfinished=True, example=completions[0].text[-200:])
    valid = [
        (text, tokens)
        for text, tokens in written
        if text and not any(tag in text for tag in _FOREIGN) and await is_valid(text)
    ]
    if not valid:
        return Summary(None, example=written[0][0])
    text, tokens = max(valid, key=lambda pair: (len(pair[0]), pair[0]))
    return Summary(text, tokens=tokens)
