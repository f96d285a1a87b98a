"""Continuous batching: one turn of all requests, over a fixed number of slots.

Each turn does the following:

1. End requests that are cancelled or late.
2. Give free slots to waiting requests, with the longest prefix that some slot or the prefix store holds.
3. Compute up to ``PREFILL_TOKENS`` of their prompts, packed without padding.
4. Compute one token for every decoding slot, or, where guesses of the next tokens are worth it, several (drafting.py).

Running requests always occupy rows 0..n-1, so that a step costs what n rows cost. Python touches a single request only
when it starts, streams or ends; everything per token is one array operation.

Where memory is not enough for every slot at full length, the requests share a budget of tokens. A request is let in
when there is room for what it holds so far, and when the running ones outgrow the room, the newest is paused. It goes
on later from its own tokens, with the same result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from nemo_openmath.core.engine import Completion, Finish, Usage
from nemo_openmath.inference.embedded.cache_budget import CacheBudget
from nemo_openmath.inference.embedded.decoder import Decoder, DraftTree, PrefillChunk
from nemo_openmath.inference.embedded.drafting import Drafting
from nemo_openmath.inference.embedded.drawing import Drawing, EndedRequest
from nemo_openmath.inference.embedded.memory import PREFILL_TOKENS
from nemo_openmath.inference.embedded.prefix import PrefixStore
from nemo_openmath.inference.embedded.prefix_sharing import PrefixSharing
from nemo_openmath.inference.embedded.proposers import DraftSource
from nemo_openmath.inference.embedded.requests import EngineRequest, Statistics
from nemo_openmath.inference.embedded.rows import RowTable
from nemo_openmath.inference.embedded.text import Detokenizer, StopTable
from nemo_openmath.inference.embedded.turns import MOST_TURNS, Turns, compiled_turns


class ContinuousBatch:
    """The requests of an engine, waiting and running. All methods are called in one thread.

    ``slots``: requests that run at once, at most. ``prefix_bytes``: memory of the prefix store. ``cache_tokens``: the
    budget of all running requests; None where every slot has memory for full length. ``drafts``: what guesses tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        detokenizer: Detokenizer,
        stops: StopTable,
        slots: int,
        prefix_bytes: int,
        cache_tokens: int | None,
        drafts: DraftSource | None = None,
    ):
        self.decoder, self.store = decoder, PrefixStore(prefix_bytes)
        self.budget = CacheBudget(decoder, slots, cache_tokens)
        self.statistics = Statistics()
        self.running: list[EngineRequest] = []  # the request of row r at index r
        self.waiting: deque[EngineRequest] = deque()
        self._detokenizer, self._stops, self._slots = detokenizer, stops, slots
        self._rows = RowTable(decoder.rows, decoder.capacity, 0 if drafts is None else drafts.hidden)
        self._drawing = Drawing(decoder, self._rows, detokenizer, stops, self.running, self.statistics)
        self._drafting: Drafting | None = None
        if drafts is not None:
            clock = time.thread_time if decoder.on_cpu else time.perf_counter
            self._drafting = Drafting(drafts, self._rows, decoder.max_context, clock)
            if drafts.hidden:
                decoder.keep_states()
        self._turns = compiled_turns(decoder, self._rows, self._drafting)
        self._sharing = PrefixSharing(decoder, self._rows, self.store)
        self._admitted = 0
        self._first_deadline = float("inf")  # of the waiting requests
        self._next_deadline = float("inf")  # of the running ones, or of one that has ended since

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, request: EngineRequest) -> None:
        """Put a request at the end of the waiting line."""
        self.waiting.append(request)
        self._first_deadline = min(self._first_deadline, request.deadline)

    def turn(self, now: float, *, some_cancelled: bool) -> None:
        """Do one turn. ``some_cancelled``: a request has been cancelled since the last one."""
        self._end_cancelled_and_late(now, some_cancelled)
        self._admit()
        self._prefill()
        self._decode()

    def cancel_all(self) -> None:
        """Answer every request as cancelled, with what it has."""
        for request in [*self.running]:
            self._finish(EndedRequest(request, Finish.CANCELLED))
        for request in self.waiting:
            self.answer_waiting(request, Finish.CANCELLED)
        self.waiting.clear()

    # -- requests that end before their text does ------------------------------------------------------------------

    def _end_cancelled_and_late(self, now: float, some_cancelled: bool) -> None:
        if some_cancelled:
            for request in [r for r in self.running if r.cancelled]:
                self._finish(EndedRequest(request, Finish.CANCELLED))
        if now >= self._next_deadline:
            late = np.flatnonzero(self._rows.deadline[: len(self.running)] <= now)
            for request in [self.running[row] for row in late]:
                self._finish(EndedRequest(request, Finish.TIME))
            self._next_deadline = self._rows.deadline[: len(self.running)].min(initial=float("inf"))
        if self.waiting and (some_cancelled or now >= self._first_deadline):
            line, self.waiting = self.waiting, deque()
            self._first_deadline = float("inf")
            for request in line:
                if request.cancelled or request.deadline <= now:
                    self.answer_waiting(request, Finish.CANCELLED if request.cancelled else Finish.TIME)
                else:
                    self.add(request)

    # -- admission and prompts -------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._slots:
            request, row = self.waiting[0], len(self.running)
            self._rows.set_ids(row, request.ids)
            if self.budget.tight and not self.budget.fits(self._rows.length[: row + 1], spare=row):
                return
            self.waiting.popleft()
            request.row, request.computed, request.source = row, 0, None
            if request.order < 0:
                request.order = self._admitted
                self._admitted += 1
            stop_set = self._stops.index(request.sampling.stop)
            self._rows.begin(
                row, request, stop_set=stop_set, context=self.decoder.max_context, vocab=self.decoder.vocab
            )
            if self._drafting is not None:
                self._drafting.begin(row)
            self._sharing.take_over(request, self.running)
            self.running.append(request)
            self._next_deadline = min(self._next_deadline, request.deadline)

    def _prefill(self) -> None:
        """Compute the next tokens of prompts. A request whose prompt is computed draws its first token."""
        if self._rows.decoding[: len(self.running)].all():
            return
        began = time.perf_counter()
        chunks: list[PrefillChunk] = []
        requests: list[EngineRequest] = []
        room = PREFILL_TOKENS
        for request in self.running:
            if self._rows.decoding[request.row] or room <= 0 or self._sharing.waits(request):
                continue
            end = request.computed + min(len(request.ids) - request.computed, room)
            chunks.append(PrefillChunk(request.row, request.computed, request.ids[request.computed : end]))
            requests.append(request)
            room -= end - request.computed
        if not chunks:
            return
        logits = self.decoder.prefill(chunks)
        ready = []
        for i, (request, chunk) in enumerate(zip(requests, chunks, strict=True)):
            request.computed += len(chunk.ids)
            if request.computed == len(request.ids):
                self._rows.decoding[request.row] = True
                ready.append(i)
        self.statistics.prefill_seconds += time.perf_counter() - began
        if ready:
            rows, states = np.array([requests[i].row for i in ready]), self.decoder.states
            if len(ready) < len(requests):
                logits, states = logits[ready], None if states is None else states[ready]
            self._finish_all(self._drawing.next_tokens(logits, states, rows))

    # -- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Compute one token for every row whose prompt is computed."""
        began = time.perf_counter()
        if self.budget.tight and self._rows.decoding[: len(self.running)].any():
            while not self.budget.fits(self._rows.length[: len(self.running)]):
                self._pause(max(self.running, key=lambda request: request.order))
        rows = np.flatnonzero(self._rows.decoding[: len(self.running)])
        if not len(rows):
            return
        if self._turns is not None and not self.budget.tight and self._turns.take(len(rows)):
            self._decode_on(self._turns, rows, began)
            return
        trees = [] if self._drafting is None else self._drafting.trees(rows)
        if trees and self._fits(trees):
            logits = self.decoder.verify(trees)
        else:
            trees = []
            at = self._rows.length[rows] - 1
            logits = self.decoder.decode(rows, self._rows.ids[rows, at], at)
        self.statistics.steps += 1
        self.statistics.decode_seconds += time.perf_counter() - began
        states = self.decoder.states
        if trees:
            endings = self._drawing.verified_tokens(logits, states, trees)
        else:
            endings = self._drawing.next_tokens(logits, states, rows)
            self.statistics.row_steps += len(rows)
        if self._drafting is not None:
            self._drafting.took(len(logits), guessed=bool(trees))
        self._finish_all(endings)

    def _decode_on(self, turns: Turns, rows: np.ndarray, began: float) -> None:
        """Do turns until something else has to be done than to decode: at most until a token may end a request."""
        table, statistics, n = self._rows, self.statistics, len(rows)
        alone = n == len(self.running) and (n == self._slots or not self.waiting)
        long = alone and self._next_deadline == float("inf") and not table.streams[rows].any()
        starts = table.length[rows]
        done = turns.run(rows, self._stops.table, MOST_TURNS if long else 1)
        statistics.decode_seconds += time.perf_counter() - began
        statistics.steps += len(done.turns)
        statistics.row_steps += n * len(done.turns)
        statistics.drafted += int(done.turns["tokens"].sum()) - n * len(done.turns)
        for place, right in enumerate(done.right[: np.count_nonzero(done.right)].tolist()):
            statistics.right([place], right)
        lengths, endings = table.length[rows], []
        statistics.generated_tokens += int((lengths - starts).sum())
        for i in np.flatnonzero((done.before < lengths) | table.streams[rows]).tolist():
            row, before, length = int(rows[i]), int(done.before[i]), int(lengths[i])
            if ending := self._drawing.appended(row, int(starts[i]), before):
                endings.append(ending)
                end = int(table.length[row])
                statistics.generated_tokens -= length - end
                statistics.right(range(end - before - 1, length - before - 1), -1)
        self._finish_all(endings)

    def _fits(self, trees: Sequence[DraftTree]) -> bool:
        """Tell whether there is memory for all nodes of ``trees``."""
        if not self.budget.tight:
            return True
        lengths = self._rows.length[: len(self.running)].copy()
        for tree in trees:
            lengths[tree.row] += len(tree) - 1
        return self.budget.fits(lengths)

    def _pause(self, request: EngineRequest) -> None:
        """Take the row of a running request, which is the first in line from now on."""
        table, row = self._rows, request.row
        if table.decoding[row]:
            request.paused_ids = table.ids[row, : table.length[row]].copy()
            request.paused_logprobs = table.logprobs[row, : table.length[row] - table.prompt_length[row]].copy()
        self._sharing.keep_paused(request)
        self._close_gap(request)
        for dependent in self.running:
            if dependent.source is request:
                dependent.source = None
                self._sharing.take_over(dependent, ())
        self.waiting.appendleft(request)
        self._first_deadline = min(self._first_deadline, request.deadline)
        self.statistics.pauses += 1

    # -- ends ------------------------------------------------------------------------------------------------------

    def _finish_all(self, endings: Sequence[EndedRequest]) -> None:
        for ending in endings:
            self._finish(ending)

    def _finish(self, ending: EndedRequest) -> None:
        """Answer a running request, keep its prefix for later, and close the gap in the rows."""
        request, finish, text, ids, stop = ending.request, ending.finish, ending.text, ending.ids, ending.stop
        row, table = request.row, self._rows
        generated = int(table.length[row] - table.prompt_length[row])
        if ids is None:
            ids = table.completion(row)
        if text is None:
            text = self._detokenizer.text(ids, request.prompt)
        logprobs = tuple(table.logprobs[row, : len(ids)].tolist()) if request.sampling.logprobs else None
        self._sharing.keep_finished(request, finish, stop)
        self._close_gap(request)
        usage = Usage(len(request.prompt), request.cached, generated)
        self._answer(request, Completion(text, tuple(ids), finish, stop, usage, logprobs))

    def answer_waiting(self, request: EngineRequest, finish: Finish) -> None:
        """Answer a request that has no row, with what it generated before it was paused."""
        ids = request.ids[len(request.prompt) :].tolist()
        logprobs: tuple[float, ...] | None = None
        if request.sampling.logprobs:
            logprobs = () if request.paused_logprobs is None else tuple(request.paused_logprobs.tolist())
        text = self._detokenizer.text(ids, request.prompt) if ids else ""
        usage = Usage(len(request.prompt), request.cached, len(ids))
        self._answer(request, Completion(text, tuple(ids), finish, None, usage, logprobs))

    def _answer(self, request: EngineRequest, completion: Completion) -> None:
        statistics, usage = self.statistics, completion.usage
        statistics.requests += 1
        statistics.finished[completion.finish] += 1
        statistics.prompt_tokens += usage.prompt_tokens
        statistics.cached_tokens += usage.cached_tokens
        request.on_done(completion)

    def _close_gap(self, request: EngineRequest) -> None:
        """Take a request out of its row; the last row moves there."""
        row, last = request.row, len(self.running) - 1
        if row != last:
            moved = self.running[row] = self.running[last]
            self.decoder.move_row(last, row, self._rows.in_cache(moved))
            self._rows.move(last, row)
            if self._drafting is not None:
                self._drafting.move(last, row)
            moved.row = row
        self.running.pop()
        self._rows.clear(last)
        request.row = -1
