"""The one protocol between the pipeline and whatever generates text.

An engine completes one prompt of token ids or, behind a chat server, a conversation. n samples of a prompt are n
requests with n seeds. Engines share the prefix by themselves (a prefix cache here, automatic prefix caching in vLLM and
SGLang), and a restart can redo one sample alone. Cancelling the awaiting task cancels the request on the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

from nemo_openmath.core.errors import ExitCode, Refused, RetryableError
from nemo_openmath.core.tags import THINK_END


class Finish(StrEnum):
    """Why a text ended. An engine says one of the first five of a completion; the others are said of whole solutions,
    which consist of several completions, and of the answers of a competition."""

    STOP = "stop"  # a stop string, or the end-of-turn token
    LENGTH = "length"  # max_tokens, or the context is full
    TIME = "time"  # the time limit; what was generated so far is returned
    CUT = "cut"  # the server ended it for a reason of its own (content filter, an unknown tool): unfinished
    CANCELLED = "cancelled"  # of completions alone

    BUDGET = "budget"  # it called code that it no longer had
    INVENTED = "invented"  # it began to write an output itself, with no code before it to run
    REPETITION = "repetition"  # LENGTH, and its tail repeated itself
    CONTEXT = "context"  # nothing was generated: the prompt is longer than the context
    REFUSED = "refused"  # nothing was generated: the engine refused the prompt

    AGREEMENT = "agreement"  # enough solutions of a problem agreed
    FINISHED = "finished"  # all solutions of a problem finished


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw the tokens of one request."""

    max_tokens: int = 1024
    """Tokens to generate at most."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.95
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    seed: int = 0
    """Fixes the draw of this request alone."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion."""
    keep_stop: bool = True
    """Whether the stop string that matched ends ``text``, and its tokens ``token_ids``."""
    logprobs: bool = False
    """Whether to return the log-probability of each generated token."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's call of a tool, in the protocol of chat servers."""

    id: str
    """What the tool's answer names it by."""
    name: str
    arguments: str
    """As the model wrote them: a JSON object where it did as it was told."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: str = ""
    """Of the assistant: its reasoning, where the server keeps that apart from the content."""
    calls: tuple[ToolCall, ...] = ()
    """Of the assistant: its calls. Of a tool: the one call that it answers."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt in turns, which a chat server renders. The assistant's turn follows; where the last turn is the
    assistant's, it goes on (``Capabilities.continues``)."""

    turns: tuple[Turn, ...]
    tools: bool = False
    """Whether the model may call the tool ``python``, whose one argument is ``code``."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make."""

    prompt: tuple[int, ...] | str | Conversation
    """Token ids; text is accepted where ``Capabilities.text_prompts``, a conversation where
    ``Capabilities.conversations``."""
    sampling: Sampling = field(default_factory=Sampling)
    conversation: str | None = None
    """Requests with the same key share a growing prefix. Routers keep them on one server."""
    time_limit: float | None = None
    """Seconds from submission; None: no limit."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a request took."""

    prompt_tokens: int = 0
    """All tokens of the prompt."""
    cached_tokens: int = 0
    """Those of the prompt that were not recomputed."""
    completion_tokens: int = 0
    """Tokens that were generated."""
    estimated: bool = False
    """Whether the server left something out, which was then counted from ids or from text."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine generated for a request."""

    text: str
    """The text without the end-of-turn token."""
    token_ids: tuple[int, ...]
    """The engine's own ids, never a re-encoding of ``text``, with the end-of-turn token where it was generated. Empty
    only where ``Capabilities.token_ids`` is false."""
    finish: Finish
    stop: str | None = None
    """The stop string that matched; None at the end-of-turn token."""
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[float, ...] | None = None
    """Of each generated token: natural logarithm, at temperature 1."""
    thinking: str = ""
    """What a reasoning parser of the server took out of the text. ``text`` has it where the model wrote it."""
    calls: tuple[ToolCall, ...] = ()
    """The calls of the tool, where the conversation offers it. They stand in no text."""

    @property
    def content(self) -> str:
        """The text without what a reasoning parser took out of it."""
        if not self.thinking:
            return self.text
        _, ended, content = self.text.rpartition(THINK_END)
        return content.lstrip("\n") if ended else ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a streamed completion."""

    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
    """The whole completion, in the last chunk."""
    logprobs: tuple[float, ...] = ()
    """Of this chunk's tokens, where they were asked for and the engine knows them by then."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A caller that needs one of these checks it at start; nothing is assumed."""

    token_ids: bool
    """Prompts may be token ids, and completions carry them. Solutions with code need this."""
    text_prompts: bool
    """Prompts may be text."""
    seeds: bool
    """A seed fixes the draw of a request."""
    logprobs: bool
    keep_stop: bool
    """The stop string that matched can be kept."""
    cached_tokens: bool
    """``Usage.cached_tokens`` is reported."""
    max_context: int | None = None
    """Tokens of prompt and completion together; None where it is not known."""
    conversations: bool = False
    """Prompts may be conversations, and a prompt in text is a lone turn of the user: the server puts the chat template
    around them."""
    continues: bool = False
    """The server can go on with the assistant's turn that a conversation ends in."""
    same_tokens: bool = False
    """A prompt in text is cut into tokens outside this process, and it was seen that they are those of the caller's
    tokenizer."""
    deterministic: bool = False
    """Equal requests have equal completions, whatever else the engine does meanwhile: a greedy batch is one solution,
    many times."""
    options: str = ""
    """What a chat server renders conversations with besides their turns (reasoning effort, options of its template), as
    JSON. It is a part of the identity of what is generated. Empty where there is nothing."""


@runtime_checkable
class Engine(Protocol):
    """Completes prompts. Safe to call from many tasks of one event loop at once."""

    @property
    def model(self) -> str:
        """The name of the model, for request ids and reports."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        ...

    async def complete(self, request: Request) -> Completion:
        """Return the finished completion. Raises EngineError when the engine could not make one."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield chunks as they are generated. Closing the iterator cancels the request."""
        ...

    async def close(self) -> None:
        """Release everything. Pending requests end as cancelled."""
        ...


class EngineError(RetryableError):
    """Raised where an engine could not make a completion."""


class WrongServer(EngineError):
    """Raised where the server is not the one that was meant: it lacks the model, refuses the key, or has moved. That is
    wrong input."""

    exit_code = ExitCode.USER_ERROR

    def __init__(self, message: str):
        super().__init__(message, retryable=False)


class InvalidRequest(EngineError, Refused):
    """Raised where the request itself is wrong (an option out of range, an empty prompt). Repeating it changes
    nothing."""

    def __init__(self, message: str):
        super().__init__(message, retryable=False)


class ContextOverflow(InvalidRequest):
    """Raised where the prompt leaves no room for a single token."""

    reason = "prompt longer than the context"

    def __init__(self, prompt_tokens: int, max_context: int):
        super().__init__(f"prompt of {prompt_tokens} tokens does not fit the context of {max_context}")
        self.room: int | None = 0
        """Tokens that the prompt leaves; None where the server does not say it."""

    @classmethod
    def in_words(cls, message: str, room: int | None) -> ContextOverflow:
        """Return the same error in a server's own words."""
        error = cls(0, 0)
        error.args, error.room = (message,), room
        return error
