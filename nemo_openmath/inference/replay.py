"""Recorded runs: :class:`Recorder` writes what an engine answered, :class:`ReplayEngine` answers it again.

A replay is a recording, not a model, and says so: its name begins with ``recording of``, and a request that was not
recorded is an error. For tests, and for simulations that need true latencies without the hardware.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.engine import (
    Capabilities,
    Chunk,
    Completion,
    Engine,
    EngineError,
    Finish,
    Request,
    ToolCall,
    Usage,
)
from nemo_openmath.core.errors import UserError

FORMAT = "openmath-recording-1"
_Part: TypeAlias = tuple[float, str, tuple[int, ...], tuple[float, ...]]  # seconds, text, ids, log-probabilities


class Recorder:
    """Passes everything on to an engine and appends each finished completion to a JSONL file."""

    def __init__(self, engine: Engine, path: str | Path, clock: Clock | None = None):
        self._engine, self._clock = engine, clock or SystemClock()
        self._file = Path(path).open("wb")  # noqa: SIM115  # closed in close()
        header = {"format": FORMAT, "model": engine.model, "capabilities": asdict(engine.capabilities)}
        self._file.write(orjson.dumps(header) + b"\n")

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    async def complete(self, request: Request) -> Completion:
        began = self._clock.now()
        completion = await self._engine.complete(request)
        self._write(request, completion, [(self._clock.now() - began, "", (), ())])
        return completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        began = self._clock.now()
        parts: list[_Part] = []
        async for chunk in self._engine.stream(request):
            parts.append((self._clock.now() - began, chunk.text, chunk.token_ids, chunk.logprobs))
            if chunk.completion is not None:
                self._write(request, chunk.completion, parts)
            yield chunk

    async def close(self) -> None:
        """Close the file and the engine."""
        self._file.close()
        await self._engine.close()

    def _write(self, request: Request, c: Completion, parts: list[_Part]) -> None:
        row = {"key": request_key(request), "request": asdict(request), "completion": asdict(c), "pieces": parts}
        self._file.write(orjson.dumps(row) + b"\n")
        self._file.flush()


class ReplayEngine:
    """Serves a recording. ``speed``: latencies are divided by it; ``float("inf")`` answers at once.

    Repeated identical requests get the recorded answers in their order, and then from the first again.
    """

    def __init__(self, path: str | Path, *, speed: float = 1.0, clock: Clock | None = None):
        self._speed, self._clock = speed, clock or SystemClock()
        self._rows: dict[str, list[tuple[Completion, list[Any]]]] = defaultdict(list)
        self._served: dict[str, int] = defaultdict(int)
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    self._read(orjson.loads(line), number)
                except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                    raise UserError(
                        f"not a recording: {error!r}", file=path, row=number, remedy="record again"
                    ) from error

    def _read(self, row: dict[str, Any], number: int) -> None:
        if number == 1:
            if row["format"] != FORMAT:
                raise ValueError(f"format {row['format']}")
            self._model = f"recording of {row['model']}"
            capabilities = row["capabilities"]
            if "renders" in capabilities:  # its name when there were no conversations
                capabilities["conversations"] = capabilities.pop("renders")
            self._capabilities = Capabilities(**capabilities)
            return
        c = row["completion"]
        completion = Completion(
            text=c["text"],
            token_ids=tuple(c["token_ids"]),
            finish=Finish(c["finish"]),
            stop=c["stop"],
            usage=Usage(**c["usage"]),
            logprobs=None if c["logprobs"] is None else tuple(c["logprobs"]),
            thinking=c.get("thinking", ""),
            calls=tuple(ToolCall(**call) for call in c.get("calls", ())),
        )
        self._rows[row["key"]].append((completion, row["pieces"]))

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def complete(self, request: Request) -> Completion:
        completion, parts = self._next(request)
        await self._wait(parts[-1][0])
        return completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the parts as they were streamed; one part where the recorded request was not streamed."""
        completion, parts = self._next(request)
        if len(parts) == 1:
            parts = [(parts[0][0], completion.text, completion.token_ids, completion.logprobs or ())]
        began = self._clock.now()
        for i, (at, text, ids, *logprobs) in enumerate(parts):  # recordings made before have no log-probabilities here
            await self._wait(at - (self._clock.now() - began) * self._speed)
            last = completion if i == len(parts) - 1 else None
            yield Chunk(text, tuple(ids), last, tuple(*logprobs))

    async def close(self) -> None:
        self._rows.clear()

    def _next(self, request: Request) -> tuple[Completion, list[Any]]:
        key = request_key(request)
        if key not in self._rows:
            raise EngineError(f"{self._model}: this request is not in it", retryable=False)
        rows = self._rows[key]
        self._served[key] += 1
        return rows[(self._served[key] - 1) % len(rows)]

    async def _wait(self, seconds: float) -> None:
        await self._clock.sleep(max(0.0, seconds) / self._speed)


def request_key(request: Request) -> str:
    """Return what identifies a request: prompt and sampling, not its conversation, nor its time limit."""
    content = orjson.dumps([request.prompt, asdict(request.sampling)])
    return hashlib.blake2b(content, digest_size=16).hexdigest()
