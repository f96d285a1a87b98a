"""A model, a sandbox and a grader that take their time, hang, fail or will not be cancelled, as a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Chunk, Completion, EngineError, Finish, Request, Usage
from nemo_openmath.core.sandbox import Execution, Limits, SandboxError, Status
from nemo_openmath.grading import Grade, Majority, compare, majority
from tests.support.engines import LocalEngine

FOREVER = 1e6  # seconds; of much larger ones a float of the clock has no room for small steps


@dataclass(frozen=True)
class Say:
    """One completion. ``seconds``: from its first to its last token; then it goes on as the other fields say."""

    text: str
    seconds: float = 1.0
    delay: float = 0.0
    """Seconds before the first token, as in a queue."""
    fails: Exception | None = None
    """Raised in the place of the last token."""
    hangs: bool = False
    """It never ends, whatever its time limit."""
    stubborn: float = 0.0
    """Seconds for which it ignores that it was cancelled."""
    logprob: float = -0.5
    """Of each of its tokens."""


class TimedEngine(LocalEngine):
    """Says of the n-th request what ``says`` gives for its prompt and n, in the loop's time, token by token."""

    def __init__(self, tokenizer: ChatTokenizer, says: Callable[[str, int], Say], *, deterministic: bool = False):
        super().__init__(tokenizer)
        self.capabilities = replace(self.capabilities, logprobs=True)
        if deterministic:
            self.capabilities = replace(self.capabilities, deterministic=True)
        self._says = says
        self.requests: list[Request] = []
        self.running = self.cancelled = self.held = 0
        """Requests that run; those that were ever cancelled; those that were, and run on all the same."""

    async def complete(self, request: Request) -> Completion:
        async for chunk in self.stream(request):
            if chunk.completion is not None:
                return chunk.completion
        raise AssertionError("unreachable")

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        prompt = request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt)
        say = self._says(prompt, len(self.requests))
        self.requests.append(request)
        self.running += 1
        try:
            async for chunk in self._speak(request, say):
                yield chunk
        except asyncio.CancelledError:
            self.cancelled += 1
            self.held += 1
            await _ignore_cancellation(say.stubborn)
            self.held -= 1
            raise
        finally:
            self.running -= 1

    async def _speak(self, request: Request, say: Say) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        ends = FOREVER if request.time_limit is None or say.hangs else loop.time() + request.time_limit
        stop = next((stop for stop in request.sampling.stop if say.text.endswith(stop)), None)
        ids = [*self.tokenizer.encode(say.text)] + ([] if stop else [self.tokenizer.end_of_turn])
        ids, cut = ids[: request.sampling.max_tokens], len(ids) > request.sampling.max_tokens
        logprobs = [say.logprob] * len(ids)
        wait, sent, shown = say.delay, 0, ""
        for number in range(len(ids)):
            wait += say.seconds / len(ids)
            if loop.time() + wait > ends:
                await asyncio.sleep(max(0.0, ends - loop.time()))
                yield self._last(request, ids[:sent], logprobs[:sent], Finish.TIME, None)
                return
            await asyncio.sleep(wait)
            wait = 0.0
            if number == len(ids) - 1:
                break
            sent = number + 1
            text = self.tokenizer.decode(ids[:sent])
            more = (
                text[len(shown) :] if text.startswith(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}") else ""
            )
            shown += more
            kept = (say.logprob,) if request.sampling.logprobs else ()
            yield Chunk(more, (ids[number],), logprobs=kept)
        if say.hangs:
            await asyncio.sleep(FOREVER)
        if say.fails is not None:
            raise say.fails
        yield self._last(request, ids, logprobs, Finish.LENGTH if cut else Finish.STOP, None if cut else stop)

    def _last(
        self, request: Request, ids: Sequence[int], logprobs: Sequence[float], finish: Finish, stop: str | None
    ) -> Chunk:
        words = [i for i in ids if i != self.tokenizer.end_of_turn]
        kept = tuple(logprobs) if request.sampling.logprobs else None
        usage = Usage(len(request.prompt), 0, len(ids))
        completion = Completion(self.tokenizer.decode(words), tuple(ids), finish, stop, usage, kept)
        return Chunk("", (), completion)


async def _ignore_cancellation(seconds: float) -> None:
    """Go on for so long, whoever cancels."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


def boxed(answer: str | None, *, thought: str = "so") -> str:
    """The text of a solution."""
    return f"<think>{thought}</think>\n\nWell." + ("" if answer is None else f" \\boxed{{{answer}}}")


LOST = EngineError("lost", retryable=False)


@dataclass
class TimedSandbox:
    """Runs nothing: each block takes so long and prints so much. ``dead``: sessions fail to open; ``hangs``: blocks
    never end, and so does closing for ``stubborn`` seconds."""

    seconds: float = 0.5
    output: str = "42"
    dead: bool = False
    hangs: bool = False
    stubborn: float = 0.0
    opened: int = 0
    closed: int = 0
    limits: list[Limits | None] = field(default_factory=list)

    async def session(self, limits: Limits | None = None) -> Any:
        if self.dead:
            raise SandboxError("no worker answers", retryable=True)
        self.opened += 1
        self.limits.append(limits)
        return _Session(self)

    async def close(self) -> None:
        """Nothing is held."""


@dataclass
class _Session:
    sandbox: TimedSandbox

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        await asyncio.sleep(FOREVER if self.sandbox.hangs else self.sandbox.seconds)
        return Execution(Status.COMPLETED, self.sandbox.output, "", self.sandbox.seconds)

    async def close(self) -> None:
        await _ignore_cancellation(self.sandbox.stubborn)
        self.sandbox.closed += 1


@dataclass
class TimedGrader:
    """Groups answers after so many seconds. ``kills``: an answer whose grading never ends."""

    seconds: float = 0.0
    kills: str | None = None
    raises: Exception | None = None
    calls: int = 0

    async def majority(self, answers: Sequence[str | None]) -> Majority:
        self.calls += 1
        await asyncio.sleep(FOREVER if self.kills is not None and self.kills in answers else self.seconds)
        if self.raises is not None:
            raise self.raises
        return majority(answers)

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        return compare(predicted, expected)
