"""An engine that plays stored solutions in the loop's time: each in the time that it took, or all sharing a machine.

It knows nothing of the laboratory's event queue: it is tasks that sleep, and a shared machine wakes all of them
whenever their number changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.lab.rollouts import Glimpse, StoredSolution
from nemo_openmath.core.engine import Chunk, Completion, Finish, Request, Usage
from nemo_openmath.grading import compare, extract_answer
from tests.support.engines import LocalEngine

LATE = 1e-9  # seconds by which a limit is overrun, as by any engine: it hears of the limit later than it was set


@dataclass(frozen=True)
class Script:
    """A solution: its text, how long it takes alone, and whether the limit of tokens ends it."""

    text: str
    seconds: float
    logprob: float
    whole: bool = True


def stored(
    tokenizer: ChatTokenizer,
    name: str,
    script: Script,
    expected: str,
    rule: AnswerRule = AnswerRule(),  # noqa: B008  # frozen
) -> StoredSolution:
    """What the laboratory is given of a solution."""
    ids = ids_of(tokenizer, script)
    glimpses: list[Glimpse] = []
    for number in range(len(ids) + 1):
        answer = rule.read(extract_answer(decoded(tokenizer, ids[:number])).answer).answer
        if answer != (glimpses[-1].answer if glimpses else None):
            glimpses.append(Glimpse(number, answer, -script.logprob))
    answer = rule.read(extract_answer(script.text).answer).answer
    points = ((script.seconds, len(ids)),)
    return StoredSolution(
        name,
        answer,
        compare(answer, expected).is_equal,
        len(ids),
        points,
        -script.logprob,
        script.whole,
        glimpses=tuple(glimpses),
    )


def ids_of(tokenizer: ChatTokenizer, script: Script) -> list[int]:
    return [*tokenizer.encode(script.text)] + ([tokenizer.end_of_turn] if script.whole else [])


def decoded(tokenizer: ChatTokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode([i for i in ids if i != tokenizer.end_of_turn])


class PlayedEngine(LocalEngine):
    """Plays the scripts of the problem that is asked, one after the other. ``rates[n]``: tokens a second of each of n
    that run; None: each takes its own time."""

    def __init__(
        self, tokenizer: ChatTokenizer, scripts: Mapping[str, Sequence[Script]], rates: Sequence[float] | None
    ):
        super().__init__(tokenizer)
        self.capabilities = replace(self.capabilities, logprobs=True)
        self._scripts, self._rates = {name: iter(of_problem) for name, of_problem in scripts.items()}, rates
        self.running = 0
        self._changed = asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        prompt = self.tokenizer.decode(request.prompt)  # type: ignore[arg-type]
        script = next(next(scripts for name, scripts in self._scripts.items() if name in prompt))
        ids = ids_of(self.tokenizer, script)
        self.running += 1
        self._wake()
        try:
            written = await self._write(len(ids), script, request.time_limit)
        finally:
            self.running -= 1
            self._wake()
        whole = written >= len(ids) - 1e-6
        ids = ids if whole else ids[: int(written + 1e-6)]
        finish = (Finish.STOP if script.whole else Finish.LENGTH) if whole else Finish.TIME
        kept = (script.logprob,) * len(ids) if request.sampling.logprobs else None
        usage = Usage(len(request.prompt), 0, len(ids))
        return Completion(decoded(self.tokenizer, ids), tuple(ids), finish, None, usage, kept)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk("", (), await self.complete(request))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _write(self, tokens: int, script: Script, limit: float | None) -> float:
        """Return the tokens that were written by the end or by the limit."""
        loop = asyncio.get_running_loop()
        ends, written = loop.time() + (1e9 if limit is None else limit + LATE), 0.0
        if self._rates is None:
            began = loop.time()
            await asyncio.sleep(min(script.seconds, ends - loop.time()))
            return tokens * min(1.0, (loop.time() - began) / script.seconds)
        while written < tokens - 1e-9 and loop.time() < ends - 1e-12:
            rate, since, changed = self._rates[self.running], loop.time(), self._changed
            left = min((tokens - written) / rate, ends - since)
            waiter = asyncio.ensure_future(changed.wait())
            await asyncio.wait({waiter}, timeout=left)
            waiter.cancel()
            written += (loop.time() - since) * rate
        return written
