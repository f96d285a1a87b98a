"""The one protocol between the pipeline and whatever generates text.

An engine completes one prompt of token ids. n samples of a prompt are n requests with n seeds: engines share
the prefix by themselves (a prefix cache here, automatic prefix caching in vLLM and SGLang), and a restart can
redo one sample alone. Cancelling the awaiting task cancels the request on the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from nemo_openmath.core.errors import ExitCode, Refused, RetryableError


class Finish(StrEnum):
    """Why a text ended. An engine says one of the first five of a completion; the others are said of whole solutions,
    which consist of several completions, and of the answers of a competition."""

    STOP = "stop"  # a stop string, or the end-of-turn token
    LENGTH = "length"  # max_tokens, or the context is full
    TIME = "time"  # the time limit; what was generated so far is returned
    CUT = "cut"  # the server ended it for a reason of its own (content filter, tool call): it is not finished
    CANCELLED = "cancelled"  # of completions alone

    BUDGET = "budget"  # it called code that it no longer had
    REPETITION = "repetition"  # LENGTH, and its tail repeated itself
    CONTEXT = "context"  # nothing was generated: the prompt is longer than the context
    REFUSED = "refused"  # nothing was generated: the engine refused the prompt

    AGREEMENT = "agreement"  # enough solutions of a problem agreed
    FINISHED = "finished"  # all solutions of a problem finished


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. ``temperature=0`` is greedy; ``seed`` fixes the draw of this request alone."""

    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_stop: bool = True  # the matched stop string ends ``text`` (and its tokens ``token_ids``)
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make.

    ``prompt``: token ids; text is accepted where ``capabilities.text_prompts``.
    ``conversation``: requests with the same key share a growing prefix; routers keep them on one server.
    ``time_limit``: seconds from submission; None: no limit.
    """

    prompt: tuple[int, ...] | str
    sampling: Sampling = field(default_factory=Sampling)
    conversation: str | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: prompt tokens in all, those of them that were not recomputed, and tokens generated. ``estimated``: the
    server did not say all of it, and what it left out was counted from ids or from text."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. ``token_ids`` are the engine's own ids (never a re-encoding of ``text``); empty only where
    ``capabilities.token_ids`` is false. The end-of-turn token is part of ``token_ids`` when it was generated, and
    never of ``text``. ``stop`` is the stop string that matched, None at the end-of-turn token."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    stop: str | None = None
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[float, ...] | None = None  # of each generated token, natural log, at temperature 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed completion; the last one carries the whole ``completion``. ``logprobs``: of its tokens,
    where they were asked for and the engine knows them by then."""

    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. Asked for, never assumed: a caller that needs one of these checks it at start."""

    token_ids: bool  # prompts may be token ids and completions carry them (TIR needs this)
    text_prompts: bool
    seeds: bool
    logprobs: bool
    keep_stop: bool
    cached_tokens: bool  # usage.cached_tokens is reported
    max_context: int | None = None  # tokens of prompt + completion
    renders: bool = False  # a prompt in text is the user's turn: the chat template is put around it there


@runtime_checkable
class Engine(Protocol):
    """Completes prompts. Safe to call from many tasks of one event loop at once."""

    @property
    def model(self) -> str:
        """Name that goes into request ids and reports."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def complete(self, request: Request) -> Completion:
        """Return the finished completion. Raises EngineError when the engine could not make one."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield pieces as they are generated; closing the iterator cancels the request."""
        ...

    async def close(self) -> None:
        """Release everything; pending requests end as cancelled."""
        ...


class EngineError(RetryableError):
    """An engine could not make a completion."""


class WrongServer(EngineError):
    """The server is not the one that was meant: it lacks the model, refuses the key, has moved. That is wrong input."""

    exit_code = ExitCode.USER_ERROR

    def __init__(self, message: str):
        super().__init__(message, retryable=False)


class InvalidRequest(EngineError, Refused):
    """The request itself is wrong (an option out of range, an empty prompt): repeating it changes nothing."""

    def __init__(self, message: str):
        super().__init__(message, retryable=False)


class ContextOverflow(InvalidRequest):
    """The prompt leaves no room for a single token."""

    reason = "prompt longer than the context"

    def __init__(self, prompt_tokens: int, max_context: int):
        super().__init__(f"prompt of {prompt_tokens} tokens does not fit the context of {max_context}")

    @classmethod
    def said(cls, message: str) -> ContextOverflow:
        """The same, in a server's own words."""
        error = cls(0, 0)
        error.args = (message,)
        return error
