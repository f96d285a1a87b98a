"""A rollout under watch: what it has is there at any moment, also after it was cancelled, and so are its times.

A watched rollout is given a time at which its requests end, and streams, so that text which the engine had sent is not
lost with the request. A stream that breaks off is asked for again: with the same seed it is the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from nemo_openmath.core.clock import Clock
from nemo_openmath.core.engine import Completion, Engine, EngineError, Finish, Request
from nemo_openmath.core.records.notes import Timing
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.grading.extraction import box_spans
from nemo_openmath.inference.rollout.outcome import Outcome

TRIES = 4  # of a request whose stream breaks off
TAIL = 64  # tokens whose log-probabilities are summed up at the end of a solution
_FARTHEST = 4096  # tokens from the end of a text in which its answer is looked for


class Watch:
    """Watches one rollout.

    - ``ends_at``: the reading of the clock at which the rollout's requests end; None: they have no limit.
    - ``logprobs``: keep the log-probabilities of the last turn, where the engine has them.
    - ``streams``: whether to stream; a rollout that nobody will cut off need not.
    - ``told``: is given each text as it comes.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ends_at: float | None = None,
        logprobs: bool = False,
        streams: bool = True,
        told: Callable[[str], object] | None = None,
    ):
        self._clock, self._ends_at, self._logprobs, self._streams = clock, ends_at, logprobs, streams
        self._told = told
        self.began = clock.now()
        self.points: list[tuple[float, int]] = [(0.0, 0)]
        """(seconds, tokens) at the beginning and the end of each turn of the model; see ``Timing``."""
        self.so_far: Callable[[str, int], Outcome] | None = None
        """From the text of the request that is being made and its tokens to the solution as it stands. The rollout
        sets it."""
        self._text = ""
        self._tokens = 0  # of finished requests
        self._ids: list[int] = []  # of the last request
        self._last: list[float] = []  # their log-probabilities

    async def complete(self, engine: Engine, request: Request) -> Completion:
        """Ask the engine. Raises EngineError; a request whose time is over before it begins has no text."""
        left = None if self._ends_at is None else self._ends_at - self._clock.now()
        if left is not None and left <= 0:
            return Completion("", (), Finish.TIME)
        keeps = self._logprobs and engine.capabilities.logprobs
        request = replace(request, time_limit=left, sampling=replace(request.sampling, logprobs=keeps))
        self._mark()
        completion = await (self._stream(engine, request) if self._streams else engine.complete(request))
        self._ids, self._last = list(completion.token_ids), list(completion.logprobs or ())
        self._tokens += len(completion.token_ids) or completion.usage.completion_tokens
        self._text = ""
        self._mark()
        return completion

    async def _stream(self, engine: Engine, request: Request) -> Completion:
        for tries_left in reversed(range(TRIES)):
            self._text, self._ids, self._last = "", [], []
            try:
                async with aclosing(engine.stream(request)) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        self._text += chunk.text
                        self._ids += chunk.token_ids
                        self._last += chunk.logprobs
                        if self._told is not None and chunk.text:
                            self._told(chunk.text)
                        if chunk.completion is not None:
                            return chunk.completion
                raise EngineError("the stream ended without its completion", retryable=True)
            except EngineError as error:
                if not error.retryable or not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _mark(self, tokens: int = 0) -> None:
        seconds = max(self.points[-1][0], self._clock.now() - self.began)
        point = (seconds, self._tokens + tokens)
        if point != self.points[-1]:
            self.points.append(point)

    def outcome(self) -> Outcome | None:
        """Return the solution as it stands, unfinished; None before the rollout has its prompt."""
        return None if self.so_far is None else self.so_far(self._text, len(self._ids) if self._text else 0)

    def timing(
        self,
        tokenizer: Tokenizer,
        *,
        answered: bool,
        code_seconds: float,
        problem_began: float | None = None,
        cut: bool = False,
    ) -> Timing:
        """Return the times of the rollout up to now, and how sure the model was of its answer.

        ``answered``: whether it has an answer; ``problem_began``: a reading of the clock, by default the rollout's
        own beginning; ``cut``: whether it was cut off.
        """
        self._mark(len(self._ids) if self._text else 0)
        tail = self._last[-TAIL:]
        return Timing(
            tuple(self.points),
            0.0 if problem_began is None else max(0.0, self.began - problem_began),
            code_seconds,
            surprise(tokenizer, self._ids, self._last) if answered else None,
            _mean(tail),
            len(tail),
            cut,
        )


def surprise(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float]) -> float | None:
    """Return the mean negative log-probability of the tokens of the last box; None where there is no box, or where the
    log-probabilities are not those of these tokens."""
    if not logprobs or len(logprobs) != len(ids):
        return None
    size = 32
    while True:
        first = max(0, len(ids) - size)
        text = tokenizer.decode(ids[first:])
        if spans := box_spans(text):
            break
        if first == 0 or size >= _FARTHEST:
            return None
        size *= 4
    start, end = spans[-1]
    inside, before = [], 0
    for number in range(first, len(ids)):
        after = len(tokenizer.decode(ids[first : number + 1]))
        if before < end and after > start:
            inside.append(logprobs[number])
        before = after
        if before >= end:
            break
    return _mean(inside)


def _mean(logprobs: Sequence[float]) -> float | None:
    return -sum(logprobs) / len(logprobs) if logprobs else None
