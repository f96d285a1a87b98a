"""What an engine is asked with, and what of its words is the answer: one rule for whoever asks a model something.

- An engine that takes token ids gets ids.
- A chat server gets the user's turn as it stands.
- A completions server that is asked in text gets the rendered prompt.

In text, a control token in a message would become a token of its own and could end the turn, so such a message is
refused. To a chat server the tags of our protocol are sent all the same: solutions that are shown to a model hold them,
and they end no turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nemo_openmath.core.engine import Engine, InvalidRequest, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message, Tokenizer

RETRY_TEMPERATURE = 0.7  # at least, of a question that is asked again

T = TypeVar("T")


async def ask(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    parse: Callable[[str], T | None],
    *,
    seed: int,
    max_tokens: int = 4096,
    temperature: float = 0.0,
    attempts: int = 3,
) -> tuple[T | None, str]:
    """Ask one question and return what ``parse`` made of the answer, and all that the model wrote.

    ``parse`` gets the text after the thinking. Where it returns None the question is asked again, with another seed and
    a temperature of at least 0.7. After ``attempts`` the value is None, and the caller counts it.
    """
    prompt = prompt_for(engine, tokenizer, messages)
    text = ""
    for attempt in range(attempts):
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature if attempt == 0 else max(temperature, RETRY_TEMPERATURE),
            seed=derive_seed(seed, attempt),
        )
        text = (await engine.complete(Request(prompt, sampling))).text
        if (value := parse(text_after_thinking(text, tokenizer, messages))) is not None:
            return value, text
    return None, text


def prompt_for(engine: Engine, tokenizer: Tokenizer, messages: tuple[Message, ...]) -> tuple[int, ...] | str:
    """Return the prompt of a request. Raises UserError and InvalidRequest for what this engine cannot be asked."""
    if engine.capabilities.token_ids:
        return tuple(tokenizer.prompt_ids(messages))
    if engine.capabilities.renders:
        if [m.role for m in messages] != ["user"]:
            raise UserError(
                f"{engine.model} takes one user turn only", remedy="leave the system turn out of the prompt file"
            )
        if (sign := tokenizer.control_in(messages[0].content)) is not None:
            raise InvalidRequest(
                f"a chat server would take {sign} in the message for a token; ids say it as text (api: completions)"
            )
        return messages[0].content
    prompt = tokenizer.prompt(messages)
    if (forged := next((text for text, literal in prompt.parts if literal), None)) is not None:
        raise InvalidRequest(f"a server that is asked in text would take {forged} in the message for a token")
    return tokenizer.without_first(prompt.text)


def text_after_thinking(text: str, tokenizer: Tokenizer, messages: tuple[Message, ...]) -> str:
    """Return what follows the thinking, without white space around it and without the end-of-text token that some
    servers write. Where the thinking did not end, nothing follows it."""
    _, ended, answer = text.rpartition(THINK_END)
    opening = tokenizer.prompt(messages).opening
    if THINK_START in answer or (not ended and opening and THINK_END not in opening):
        return ""
    return tokenizer.strip_end(answer)[0].strip()
