"""How many tokens models wrote for a unit of work, whoever asked them and whatever became of the replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nemo_openmath.core.engine import Capabilities, Chunk, Completion, Engine, Request


@dataclass(slots=True)
class TokenCount:
    """A number of tokens that models wrote."""

    tokens: int = 0


_COUNT: ContextVar[TokenCount | None] = ContextVar("tokens that models write for the unit at hand", default=None)


@contextmanager
def counted_tokens(count: TokenCount | None = None) -> Iterator[TokenCount]:
    """Count what models write within, in this task and in those that it starts. ``count``: one that goes on."""
    count = count or TokenCount()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)


def add_tokens(tokens: int) -> None:
    """Add tokens to the count of the unit at hand; without one nothing is counted."""
    if (count := _COUNT.get()) is not None:
        count.tokens += tokens


class CountedEngine:
    """Passes everything on to an engine, and counts what it writes for the unit at hand."""

    def __init__(self, engine: Engine):
        self.engine = engine

    @property
    def model(self) -> str:
        return self.engine.model

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    async def complete(self, request: Request) -> Completion:
        completion = await self.engine.complete(request)
        add_tokens(_written(completion))
        return completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        tokens = 0
        try:
            async for chunk in self.engine.stream(request):
                tokens = tokens + len(chunk.token_ids) if chunk.completion is None else _written(chunk.completion)
                yield chunk
        finally:
            add_tokens(tokens)

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()


def _written(completion: Completion) -> int:
    return len(completion.token_ids) or completion.usage.completion_tokens
