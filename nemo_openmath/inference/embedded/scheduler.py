"""The decoding loop: continuous batching over a fixed number of slots, in one thread of its own.

Each turn: take new and cancelled requests; give free slots to waiting requests (with the longest prefix that some
slot or the prefix store holds); compute up to ``PREFILL_TOKENS`` of their prompts, packed without padding; then one
token for every decoding slot. Running requests always occupy slots 0..n-1, so that a step costs what n rows cost.
Python touches a single request only when it starts, streams or ends; everything per token is one array operation.

Where memory is not enough for every slot at full length, the requests share ``cache_tokens``: one is let in when there
is room for what it holds so far, and when the running ones outgrow the room, the newest is paused. It goes on later
from its own tokens, with the same result.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.engine import Completion, Finish, Sampling, Usage
from nemo_openmath.inference.embedded.decoder import Decoder, PrefillChunk
from nemo_openmath.inference.embedded.memory import PREFILL_TOKENS
from nemo_openmath.inference.embedded.prefix import Prefix, PrefixStore
from nemo_openmath.inference.embedded.sampling import RowSampling, uniforms
from nemo_openmath.inference.embedded.text import Detokenizer, StopTable

WORTH_COPYING = 16  # tokens; shorter common prefixes are computed again


def _nothing(ids: list[int], logprobs: list[float]) -> None:
    """A request that does not stream."""


@dataclass(eq=False, slots=True)
class EngineRequest:
    """A request inside the engine. ``done`` is called once, ``tokens`` after each new token, with its log-probability
    where that is wanted; both in this thread."""

    prompt: np.ndarray  # int32
    sampling: Sampling
    done: Callable[[Completion | BaseException], None]
    tokens: Callable[[list[int], list[float]], None] = field(default=_nothing)
    streams: bool = False
    conversation: str | None = None
    deadline: float = float("inf")  # on the scheduler's clock
    cancelled: bool = False
    row: int = -1
    computed: int = 0  # prompt tokens whose cache is in the row
    cached: int = 0
    order: int = -1  # of admission: the newest is paused first
    paused: np.ndarray | None = None  # prompt and completion so far, of a request that gave its slot back
    logprobs: np.ndarray | None = None  # of that completion
    source: EngineRequest | None = (
        None  # a request whose prompt is being computed and shares `share` tokens with this one
    )
    share: int = 0

    @property
    def ids(self) -> np.ndarray:
        """What is computed before the next token is drawn."""
        return self.prompt if self.paused is None else self.paused


@dataclass(slots=True)
class Statistics:
    """Totals since the engine started."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    pauses: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    finished: dict[Finish, int] = field(default_factory=lambda: dict.fromkeys(Finish, 0))


class Scheduler:
    """Runs jobs on a decoder. ``submit``, ``cancel`` and ``close`` may be called from any thread."""

    def __init__(
        self,
        decoder: Decoder,
        detokenizer: Detokenizer,
        stops: StopTable,
        slots: int,
        prefix_bytes: int,
        threads: int,
        cache_tokens: int | None = None,
        clock: Clock | None = None,
    ):
        self.clock = clock or SystemClock()  # of deadlines; read once a step
        self._decoder, self._detokenizer, self._stops = decoder, detokenizer, stops
        self._slots, self._threads = slots, threads
        self._context, self.vocab = decoder.max_context, decoder.vocab
        self._store = PrefixStore(prefix_bytes)
        self.statistics = Statistics()
        rows, capacity = decoder.rows, decoder.capacity
        # whole blocks for at least one request of full length: the oldest always goes on
        least, most = -(-decoder.max_context // decoder.block) * decoder.block, slots * capacity
        self._budget = most if cache_tokens is None else max(least, cache_tokens // decoder.block * decoder.block)
        self._tight = self._budget < most
        self._admitted = 0
        self._jobs: list[EngineRequest] = []  # job of row r at index r
        self._waiting: deque[EngineRequest] = deque()
        self._inbox: queue.SimpleQueue[EngineRequest | None] = queue.SimpleQueue()
        self._ids = np.zeros((rows, capacity), np.int32)  # prompt and completion
        self._length = np.zeros(rows, np.int64)  # tokens in _ids; the last one is not in the cache while decoding
        self._start = np.zeros(rows, np.int64)  # length of the prompt
        self._end = np.zeros(rows, np.int64)  # length at which the request is full
        self._decoding = np.zeros(rows, bool)
        self._deadline = np.full(rows, np.inf)
        self._set = np.zeros(rows, np.int64)  # row of the stop table
        self._uniforms = np.zeros((rows, capacity))
        self._sampling = RowSampling(
            np.zeros(rows, np.float32), np.ones(rows, np.float32), np.zeros(rows, np.int64), np.zeros(rows, np.float32)
        )
        self._wants_logprobs = np.zeros(rows, bool)
        self._streams = np.zeros(rows, bool)
        self._logprobs = np.zeros((rows, capacity), np.float32)
        self._per_row: list[np.ndarray] = [
            self._ids, self._length, self._start, self._end, self._decoding, self._deadline, self._set, self._uniforms,
            self._sampling.temperature, self._sampling.top_p, self._sampling.top_k, self._sampling.min_p,
            self._wants_logprobs, self._streams, self._logprobs,
        ]  # fmt: skip
        self._some_cancelled = False
        self._look_again = float("inf")  # when the first waiting request is late
        self._closed = False
        self._gate = threading.Lock()  # no job may enter the line after it has been emptied for good
        self._thread = threading.Thread(target=self._run, name="embedded-engine", daemon=True)
        self._thread.start()

    # -- from any thread -------------------------------------------------------------------------------------------

    def submit(self, job: EngineRequest) -> None:
        with self._gate:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.put(job)

    def cancel(self, job: EngineRequest) -> None:
        """End a job as cancelled; its slot is free at the next turn."""
        job.cancelled = True
        self._some_cancelled = True

    def close(self) -> None:
        """End every pending job as cancelled and stop the thread."""
        with self._gate:
            self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self._store.clear()  # memory goes now, whoever still holds the engine
        self._decoder = None  # type: ignore[assignment]

    @property
    def alive(self) -> bool:
        return not self._closed

    @property
    def running(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + self._inbox.qsize()

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._receive():
                    self._drop_cancelled_and_late()
                    self._admit()
                    self._prefill()
                    self._decode()
                self._cancel_all()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            with self._gate:
                self._closed = True
            self._fail_all(error)

    def _receive(self) -> bool:
        """Move new requests to the waiting line; sleep while there is nothing to do. False: close."""
        idle = not self._jobs and not self._waiting
        while True:
            try:
                job = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._waiting.append(job)
            self._look_again = min(self._look_again, job.deadline)
            if job.cancelled:  # on its way here; another thread may set the flag meanwhile: never write what was read
                self._some_cancelled = True
            idle = False

    def _drop_cancelled_and_late(self) -> None:
        now = self.clock.now()
        if cancelled := self._some_cancelled:
            self._some_cancelled = False
            for job in [j for j in self._jobs if j.cancelled]:
                self._finish(job, Finish.CANCELLED)
        n = len(self._jobs)
        if n and self._deadline[:n].min() <= now:
            for job in [self._jobs[r] for r in np.flatnonzero(self._deadline[:n] <= now)]:
                self._finish(job, Finish.TIME)
        if self._waiting and (cancelled or now >= self._look_again):
            kept: deque[EngineRequest] = deque()
            for job in self._waiting:
                if job.cancelled or job.deadline <= now:
                    self._answer_waiting(job, Finish.CANCELLED if job.cancelled else Finish.TIME)
                else:
                    kept.append(job)
            self._waiting = kept
            self._look_again = min((j.deadline for j in kept), default=float("inf"))

    # -- admission and prompts -------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._jobs) < self._slots:
            job = self._waiting[0]
            row, s, n = len(self._jobs), job.sampling, len(job.prompt)
            self._ids[row, : len(job.ids)] = job.ids
            self._length[row] = len(job.ids)
            if self._tight and not self._fits(row + 1, spare=row):
                return
            self._waiting.popleft()
            job.row, job.computed, job.source = row, 0, None
            if job.order < 0:
                job.order = self._admitted
                self._admitted += 1
            self._start[row] = n
            self._end[row] = min(n + s.max_tokens, self._context)
            self._decoding[row] = False
            self._deadline[row] = job.deadline
            self._set[row] = self._stops.index(s.stop)
            self._sampling.temperature[row] = s.temperature
            self._sampling.top_p[row] = s.top_p
            self._sampling.top_k[row] = min(s.top_k, self.vocab)
            self._sampling.min_p[row] = s.min_p
            if s.temperature > 0:
                new = int(self._end[row]) - n
                self._uniforms[row, :new] = uniforms(s.seed, new)
            self._wants_logprobs[row] = s.logprobs
            self._streams[row] = job.streams
            if job.logprobs is not None:
                self._logprobs[row, : len(job.logprobs)] = job.logprobs
            self._find_prefix(job)
            self._jobs.append(job)

    def _find_prefix(self, job: EngineRequest, among_rows: bool = True) -> None:
        """Take over the longest prefix there is in the store or in another row, or note the row that will have it."""
        usable = len(job.ids) - 1  # the last token's logits are needed
        entry, stored = self._store.find(job.ids[:usable], job.conversation)
        other, common = self._closest_row(job, usable) if among_rows else (None, 0)
        if other is not None and common > stored:
            if other.computed < min(common, len(other.ids)) and common - stored >= WORTH_COPYING:
                job.source, job.share = other, common
            elif min(common, self._in_cache(other)) >= max(stored, WORTH_COPYING):
                job.computed = min(common, self._in_cache(other))
                self._decoder.copy_row(other.row, job.row, job.computed)
        if job.source is None and job.computed == 0 and entry is not None and stored >= WORTH_COPYING:
            self._decoder.load_row(job.row, entry.keys, entry.values, stored)
            job.computed = stored
            if entry.conversation is not None and entry.conversation == job.conversation:
                self._store.drop(entry)  # this row holds it now, and will put it back longer
        if job.paused is None:
            job.cached = job.computed

    def _closest_row(self, job: EngineRequest, usable: int) -> tuple[EngineRequest | None, int]:
        """The running request that shares the longest prefix with the job's prompt."""
        n = len(self._jobs)
        if not n or not usable:
            return None, 0
        begins = np.flatnonzero(self._ids[:n, 0] == job.ids[0])
        if not len(begins):
            return None, 0
        same = self._ids[begins, :usable] == job.ids[:usable]
        common = np.where(same.all(1), usable, (~same).argmax(1))
        common = np.minimum(common, self._length[begins])
        best = int(common.argmax())
        return self._jobs[begins[best]], int(common[best])

    def _in_cache(self, job: EngineRequest) -> int:
        return int(self._length[job.row]) - 1 if self._decoding[job.row] else job.computed

    def _prefill(self) -> None:
        if self._decoding[: len(self._jobs)].all():
            return
        began = time.perf_counter()
        segments: list[PrefillChunk] = []
        jobs: list[EngineRequest] = []
        room = PREFILL_TOKENS
        for job in self._jobs:
            if self._decoding[job.row] or room <= 0 or self._waits_for_source(job):
                continue
            take = min(len(job.ids) - job.computed, room)
            segments.append(PrefillChunk(job.row, job.computed, job.ids[job.computed : job.computed + take]))
            jobs.append(job)
            room -= take
        if not segments:
            return
        logits = self._decoder.prefill(segments)
        ready = []
        for i, (job, segment) in enumerate(zip(jobs, segments, strict=True)):
            job.computed += len(segment.ids)
            if job.computed == len(job.ids):
                self._decoding[job.row] = True
                ready.append(i)
        self.statistics.prefill_seconds += time.perf_counter() - began
        if ready:
            rows = np.array([jobs[i].row for i in ready])
            self._take_tokens(logits if len(ready) == len(jobs) else logits[ready], rows)

    def _waits_for_source(self, job: EngineRequest) -> bool:
        """Copy the shared prefix once its owner has computed it; compute it here if the owner is gone."""
        source = job.source
        if source is None:
            return False
        if source.row >= 0 and source.computed < min(job.share, len(source.ids)):
            return True
        job.source = None
        if source.row < 0:
            self._find_prefix(job, among_rows=False)  # another row may be waiting for this one
            return False
        job.computed = min(job.share, self._in_cache(source))
        if job.paused is None:
            job.cached = job.computed
        self._decoder.copy_row(source.row, job.row, job.computed)
        return False

    # -- memory ----------------------------------------------------------------------------------------------------

    def _fits(self, rows: int, spare: int = 0) -> bool:
        """Whether the first ``rows`` rows, at their lengths and with a block more for ``spare`` of them, are within the
        budget; then memory that nobody needs is given back where that is necessary. A single row always fits."""
        block = self._decoder.block
        needed = np.zeros(self._decoder.rows, np.int64)
        needed[:rows] = -(-self._length[:rows] // block) * block
        if rows > 1 and int(needed.sum()) + spare * block > self._budget:
            return False
        held = self._decoder.held()
        if int(np.maximum(needed, held).sum()) > self._budget:
            for row in np.flatnonzero(held > needed).tolist():
                self._decoder.release(row, int(needed[row]))
        return True

    def _pause(self, job: EngineRequest) -> None:
        """Take the slot of a running request, which is the first in line from now on."""
        row, have = job.row, self._in_cache(job)
        if self._decoding[row]:
            job.paused = self._ids[row, : self._length[row]].copy()
            job.logprobs = self._logprobs[row, : len(job.paused) - len(job.prompt)].copy()
        if have >= WORTH_COPYING:
            self._store.put(Prefix(job.ids[:have].copy(), *self._decoder.save_row(row, have), None))
        self._close_gap(job)
        for other in self._jobs:
            if other.source is job:
                other.source = None
                self._find_prefix(other, among_rows=False)
        self._waiting.appendleft(job)
        self._look_again = min(self._look_again, job.deadline)
        self.statistics.pauses += 1

    # -- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        n = len(self._jobs)
        decoding = self._decoding[:n]
        if not decoding.any():
            return
        began = time.perf_counter()
        if self._tight:
            while not self._fits(len(self._jobs)):
                self._pause(max(self._jobs, key=lambda job: job.order))
            decoding = self._decoding[: len(self._jobs)]
            if not decoding.any():
                return
        rows = np.flatnonzero(decoding)
        at = self._length[rows] - 1
        logits = self._decoder.decode(rows, self._ids[rows, at], at)
        self.statistics.steps += 1
        self.statistics.decode_seconds += time.perf_counter() - began
        self._take_tokens(logits, rows)

    def _take_tokens(self, logits: torch.Tensor, rows: np.ndarray) -> None:
        """Draw the next token of each of ``rows`` and end the requests that it ends."""
        began = time.perf_counter()
        s = self._sampling
        parameters = RowSampling(s.temperature[rows], s.top_p[rows], s.top_k[rows], s.min_p[rows])
        length = self._length[rows]
        made = length - self._start[rows]
        wanted = bool(self._wants_logprobs[rows].any())
        drawn, logprobs = self._decoder.sample(logits, parameters, self._uniforms[rows, made], wanted)
        if logprobs is not None:
            self._logprobs[rows, made] = logprobs
        self._ids[rows, length] = drawn
        length += 1
        self._length[rows] = length
        self.statistics.generated_tokens += len(rows)
        self.statistics.sample_seconds += time.perf_counter() - began
        for i in np.flatnonzero(self._streams[rows]).tolist():
            job = self._jobs[rows[i]]
            known = [float(logprobs[i])] if job.sampling.logprobs and logprobs is not None else []
            job.tokens([int(drawn[i])], known)
        maybe = self._stops.table[self._set[rows], drawn] | (length >= self._end[rows])
        if maybe.any():
            for job in [self._jobs[r] for r in rows[maybe]]:
                self._end_if_over(job)

    def _end_if_over(self, job: EngineRequest) -> None:
        row = job.row
        ids = self._ids[row, self._start[row] : self._length[row]].tolist()
        if ids[-1] in self._detokenizer.end_ids:
            self._finish(job, Finish.STOP)
        elif job.sampling.stop and (found := self._detokenizer.find_stop(ids, job.sampling.stop, job.prompt)):
            text, stop = found
            if job.sampling.keep_stop:
                text += stop
            else:
                while ids and len(self._detokenizer.text(ids[:-1], job.prompt)) >= len(text):
                    ids.pop()
            self._finish(job, Finish.STOP, text, ids, stop)
        elif self._length[row] >= self._end[row]:
            self._finish(job, Finish.LENGTH)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _finish(
        self,
        job: EngineRequest,
        finish: Finish,
        text: str | None = None,
        ids: list[int] | None = None,
        stop: str | None = None,
    ) -> None:
        """Answer, keep the prefix for later, and close the gap in the rows."""
        row = job.row
        if ids is None:
            ids = self._ids[row, self._start[row] : self._length[row]].tolist()
        if text is None:
            text = self._detokenizer.text(ids, job.prompt)
        probabilities = None
        if job.sampling.logprobs:
            probabilities = tuple(self._logprobs[row, : len(ids)].tolist())
        generated = int(self._length[row] - self._start[row])
        self._keep_prefix(job, finish, stop)
        self._close_gap(job)
        self._answer(job, text, tuple(ids), finish, stop, probabilities, generated)

    def _close_gap(self, job: EngineRequest) -> None:
        """Take a request out of its row; the last row moves there."""
        row, last = job.row, len(self._jobs) - 1
        if row != last:
            moved = self._jobs[row] = self._jobs[last]
            self._decoder.move_row(last, row, self._in_cache(moved))
            for array in self._per_row:
                array[row] = array[last]
            moved.row = row
        self._jobs.pop()
        self._decoding[last] = False
        self._streams[last] = False
        self._deadline[last] = np.inf
        job.row = -1

    def _keep_prefix(self, job: EngineRequest, finish: Finish, stop: str | None) -> None:
        """Store what a later request may begin with: the conversation if it can go on, else the prompt."""
        have = self._in_cache(job)
        # one that has stop strings and ended by none of them is a loop with tools that is over
        waits = stop is not None or (job.conversation is not None and not job.sampling.stop)
        goes_on = waits and finish is not Finish.CANCELLED
        length = have if goes_on else min(have, len(job.prompt))
        ids = self._ids[job.row, :length].copy()
        if length < WORTH_COPYING:
            return
        if not goes_on:
            entry, common = self._store.find(ids, None)
            if entry is not None and common >= length - WORTH_COPYING:
                return
        keys, values = self._decoder.save_row(job.row, length)
        self._store.put(Prefix(ids, keys, values, job.conversation if goes_on else None))

    def _answer(
        self,
        job: EngineRequest,
        text: str,
        ids: tuple[int, ...],
        finish: Finish,
        stop: str | None = None,
        probabilities: tuple[float, ...] | None = None,
        generated: int = 0,
    ) -> None:
        s = self.statistics
        s.requests += 1
        s.finished[finish] += 1
        s.prompt_tokens += len(job.prompt)
        s.cached_tokens += job.cached
        usage = Usage(len(job.prompt), job.cached, generated)
        job.done(Completion(text, ids, finish, stop, usage, probabilities))

    def _answer_waiting(self, job: EngineRequest, finish: Finish) -> None:
        """Answer a request that has no slot, with what it generated before it was paused."""
        ids = job.ids[len(job.prompt) :].tolist()
        probabilities = None
        if job.sampling.logprobs:
            probabilities = () if job.logprobs is None else tuple(job.logprobs.tolist())
        text = self._detokenizer.text(ids, job.prompt) if ids else ""
        self._answer(job, text, tuple(ids), finish, None, probabilities, len(ids))

    def _cancel_all(self) -> None:
        while not self._inbox.empty():
            if (job := self._inbox.get()) is not None:
                self._waiting.append(job)
        for job in [*self._jobs]:
            self._finish(job, Finish.CANCELLED)
        for job in self._waiting:
            self._answer_waiting(job, Finish.CANCELLED)
        self._waiting.clear()

    def _fail_all(self, error: BaseException) -> None:
        while not self._inbox.empty():
            if (job := self._inbox.get()) is not None:
                self._waiting.append(job)
        for job in [*self._jobs, *self._waiting]:
            job.done(error)
