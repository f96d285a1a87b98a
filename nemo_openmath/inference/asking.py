"""What an engine is asked with, and what of its words is the answer: one rule for whoever asks a model something.

- An engine that takes token ids gets ids.
- A chat server gets the turns as they stand.
- A completions server that is asked in text gets the rendered prompt.

In text, a control token in a message would become a token of its own and could end the turn, so such a message is
refused. To a chat server the tags of our protocol are sent all the same: solutions that are shown to a model hold them,
and they end no turn.

To cut a prompt of 34,000 characters into tokens takes 10 ms, many times as long as all else that its requests need, and
all other requests would wait for it. So a long prompt is cut elsewhere:

- by the server, where its tokenizer was seen to be ours and the text becomes the same ids there. Whether a text fits
  into the context, the answer says, so none of its ids are needed here;
- in a thread otherwise: the tokenizer does not hold Python's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nemo_openmath.core.engine import Completion, Conversation, Engine, Finish, InvalidRequest, Request, Sampling, Turn
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message, Part, Prompt, Tokenizer

RETRY_TEMPERATURE = 0.7  # at least, of a question that is asked again
LONG = 4000  # characters; a shorter prompt is cut into tokens sooner than a thread begins
AS_TEXT = 1000  # characters; to see that a shorter prompt may be sent as text takes as long as to cut it

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rejected:
    """What stands in place of a value where a reply is not used."""

    reason: str
    """Why, in words that are counted: "the answer is a sentence"."""


UNFINISHED = Rejected("the reply did not come to its end")


async def ask(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    parse: Callable[[str], T | Rejected],
    *,
    seed: int,
    max_tokens: int = 4096,
    temperature: float = 0.0,
    attempts: int = 3,
) -> tuple[T | Rejected, str]:
    """Ask one question and return what ``parse`` made of the answer, and all that the model wrote.

    ``parse`` gets the text after the thinking. Where it rejects the text, the question is asked again, with another
    seed and a temperature of at least 0.7. After ``attempts`` the last rejection is returned, and the caller counts its
    reason. A reply that did not come to its end is rejected: what is missing could change what it says.
    """
    prompt = await PreparedPrompt.of(engine, tokenizer, messages)
    value: T | Rejected = Rejected("nothing was asked")
    text = ""
    for attempt in range(attempts):
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature if attempt == 0 else max(temperature, RETRY_TEMPERATURE),
            seed=derive_seed(seed, attempt),
        )
        completion = await prompt.complete(sampling)
        text = completion.text
        value = parse(prompt.answer(text)) if completion.finish is Finish.STOP else UNFINISHED
        if not isinstance(value, Rejected):
            break
    return value, text


class PreparedPrompt:
    """A prompt that is rendered, and where need be cut into tokens, once for any number of requests."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, prompt: Prompt, to_send: tuple[int, ...] | str | Conversation
    ):
        self._engine, self._tokenizer, self._prompt, self._to_send = engine, tokenizer, prompt, to_send

    @classmethod
    async def of(cls, engine: Engine, tokenizer: Tokenizer, messages: tuple[Message, ...]) -> PreparedPrompt:
        """Return the prompt of ``messages``. Raises UserError and InvalidRequest for what this engine cannot be
        asked."""
        prompt = tokenizer.prompt(messages)
        able = engine.capabilities
        if able.token_ids and able.text_prompts and able.same_tokens and _length(prompt.parts) > AS_TEXT:
            plain = not any(literal for _, literal in prompt.parts)
            if plain and (text := tokenizer.as_sent(prompt.text)) is not None:
                return cls(engine, tokenizer, prompt, text)
        return cls(engine, tokenizer, prompt, await prompt_for(engine, tokenizer, messages, prompt))

    async def complete(self, sampling: Sampling) -> Completion:
        """Return the engine's completion. Raises EngineError where it could not make one.

        What fits into the context is known of ids alone. So a text that the engine refuses, or that leaves less room
        than ``max_tokens``, is asked again in ids."""
        able = self._engine.capabilities
        if isinstance(self._to_send, str) and able.token_ids:
            try:
                completion = await self._engine.complete(Request(self._to_send, sampling))
                tokens = completion.usage.prompt_tokens + sampling.max_tokens
                if able.max_context is None or tokens <= able.max_context:
                    return completion
            except InvalidRequest:
                pass
            self._to_send = tuple(await token_ids(self._tokenizer, self._prompt.parts))
        return await self._engine.complete(Request(self._to_send, sampling))

    def answer(self, text: str) -> str:
        """Return what follows the thinking in what the model wrote; see :func:`text_after_thinking`."""
        return text_after_thinking(text, self._tokenizer, self._prompt.opening)


async def prompt_for(
    engine: Engine, tokenizer: Tokenizer, messages: tuple[Message, ...], prompt: Prompt
) -> tuple[int, ...] | str | Conversation:
    """Return what a request is made of, ids where the engine takes them. Raises UserError and InvalidRequest for what
    this engine cannot be asked. ``prompt``: of the ``messages``, by this tokenizer."""
    if engine.capabilities.token_ids:
        return tuple(await token_ids(tokenizer, prompt.parts))
    if engine.capabilities.conversations:
        return conversation_of(tokenizer, messages)
    if (forged := next((text for text, literal in prompt.parts if literal), None)) is not None:
        raise InvalidRequest(f"a server that is asked in text would take {forged} in the message for a token")
    return tokenizer.without_first(prompt.text)


def conversation_of(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> str | Conversation:
    """Return what a chat server is asked with: a conversation; of a lone turn of the user, its text. Raises UserError
    and InvalidRequest for what it cannot be asked."""
    turns = []
    for message in messages:
        if message.role not in ("system", "user", "assistant"):
            raise UserError(
                f"a chat server takes turns, and this prompt is {message.role}", remedy="use api: completions"
            )
        if (sign := tokenizer.control_in(message.content)) is not None:
            raise InvalidRequest(
                f"a chat server would take {sign} in the message for a token; ids say it as text (api: completions)"
            )
        turns.append(Turn(message.role, message.content))  # type: ignore[arg-type]  # one of the three
    return turns[0].content if [turn.role for turn in turns] == ["user"] else Conversation(tuple(turns))


async def token_ids(tokenizer: Tokenizer, parts: Sequence[Part]) -> list[int]:
    """Return the token ids of parts in a row. Long ones are cut in a thread, so that nothing waits for them."""
    if _length(parts) > LONG:
        return await asyncio.to_thread(tokenizer.encode_parts, parts)
    return tokenizer.encode_parts(parts)


def _length(parts: Sequence[Part]) -> int:
    return sum(len(text) for text, _ in parts)


def text_after_thinking(text: str, tokenizer: Tokenizer, opening: str) -> str:
    """Return what follows the thinking, without white space around it and without the end-of-text token that some
    servers write. Where the thinking did not end, nothing follows it. ``opening``: of the prompt."""
    _, ended, answer = text.rpartition(THINK_END)
    if THINK_START in answer or (not ended and opening and THINK_END not in opening):
        return ""
    return tokenizer.strip_end(answer)[0].strip()
