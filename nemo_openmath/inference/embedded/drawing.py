"""Drawing tokens: the next one of a row, or as many as its guesses are right.

A token is drawn with the number that belongs to its place in the completion, from the logits behind the tokens before
it. With guesses the logits behind several tokens are there at once, and what is drawn behind one is drawn as plain
decoding would: where it is a guess that follows, the guess is right and the next token is drawn behind it; where not,
it is the next token all the same, and the guesses behind it never happened.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nemo_openmath.core.engine import Finish
from nemo_openmath.inference.embedded.decoder import Decoder, DraftTree
from nemo_openmath.inference.embedded.requests import EngineRequest, Statistics
from nemo_openmath.inference.embedded.rows import RowTable
from nemo_openmath.inference.embedded.sampling import greedy
from nemo_openmath.inference.embedded.text import Detokenizer, StopTable


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """Why a request is over. ``text`` and ``ids``: what a stop string left of the completion."""

    request: EngineRequest
    finish: Finish
    text: str | None = None
    ids: list[int] | None = None
    stop: str | None = None


class Drawing:
    """Draws the tokens of running requests, tells streams of them, and finds the requests that they end."""

    def __init__(
        self,
        decoder: Decoder,
        rows: RowTable,
        detokenizer: Detokenizer,
        stops: StopTable,
        running: Sequence[EngineRequest],
        statistics: Statistics,
    ):
        self._decoder, self._rows, self._running = decoder, rows, running
        self._detokenizer, self._stops, self._statistics = detokenizer, stops, statistics
        self._keeps_states = rows.states.shape[1] > 0

    def next_tokens(self, logits: Tensor, states: Tensor | None, rows: np.ndarray) -> list[EndedRequest]:
        """Draw one token for each of ``rows``; return what is over."""
        began = time.perf_counter()
        table = self._rows
        length = table.length[rows]
        place = length - table.prompt_length[rows]  # of the token in the completion
        drawn, logprobs = self._draw(logits, rows, place)
        if logprobs is not None:
            table.logprobs[rows, place] = logprobs
        if states is not None and self._keeps_states:
            table.states[rows] = states.numpy(force=True)
        table.ids[rows, length] = drawn
        length += 1
        table.length[rows] = length
        self._statistics.generated_tokens += len(rows)
        self._statistics.sample_seconds += time.perf_counter() - began
        for i in np.flatnonzero(table.streams[rows]).tolist():
            self._tell(self._running[rows[i]], [int(drawn[i])], None if logprobs is None else [float(logprobs[i])])
        maybe = self._stops.table[table.stop_set[rows], drawn] | (length >= table.full_length[rows])
        if not maybe.any():
            return []
        endings = [self._ending(self._running[row]) for row in rows[maybe].tolist()]
        return [ending for ending in endings if ending is not None]

    def verified_tokens(self, logits: Tensor, states: Tensor | None, trees: Sequence[DraftTree]) -> list[EndedRequest]:
        """Draw the tokens of the trees' rows from the logits [nodes, vocab]; return what is over."""
        began = time.perf_counter()
        table = self._rows
        if len(trees) == 1:
            rows, depths = np.full(len(trees[0]), trees[0].row), trees[0].depths()
        else:
            rows = np.repeat([tree.row for tree in trees], [len(tree) for tree in trees])
            depths = np.concatenate([tree.depths() for tree in trees])
        place = table.length[rows] - table.prompt_length[rows] + depths
        drawn, logprobs = self._draw(logits, rows, place)
        endings = []
        begin = 0
        for tree in trees:
            end = begin + len(tree)
            tokens = drawn[begin:end].tolist()
            path = tree.path(tokens)
            known = None if logprobs is None else [float(logprobs[begin + node]) for node in path]
            taken, ending = self._append(tree.row, [tokens[node] for node in path], known)
            self._decoder.keep(tree.row, tree.start, path[:taken])
            if states is not None and self._keeps_states:
                table.states[tree.row] = states[begin + path[taken - 1]].numpy(force=True)
            self._statistics.verified(tree, taken)
            if ending is not None:
                endings.append(ending)
            begin = end
        self._statistics.sample_seconds += time.perf_counter() - began
        return endings

    def appended(self, row: int, start: int, before: int) -> EndedRequest | None:
        """Tell of the tokens of a row behind its ``start`` first ones, which are in the table already. Those behind the
        first ``before`` may end the request: what is behind its end is taken back."""
        table, request = self._rows, self._running[row]
        could_end, full, length = self._stops.table[table.stop_set[row]], table.full_length[row], int(table.length[row])
        ending = None
        for end in range(before + 1, length + 1):
            if could_end[table.ids[row, end - 1]] or end >= full:
                table.length[row] = end
                if ending := self._ending(request):
                    break
        if ending is None:
            table.length[row] = length
        if table.streams[row]:
            end, first = int(table.length[row]), int(table.prompt_length[row])
            known = table.logprobs[row, start - first : end - first].tolist() if request.sampling.logprobs else None
            self._tell(request, table.ids[row, start:end].tolist(), known)
        return ending

    def _draw(self, logits: Tensor, rows: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The token behind each of the logits, which is at ``place`` in the completion of its row, and, where one of
        the rows wants them, the log-probabilities."""
        table = self._rows
        if table.not_greedy:
            wanted = bool(table.wants_logprobs[rows].any())
            return self._decoder.sample(logits, table.sampling(rows), table.uniforms[rows, place], wanted)
        return greedy(logits), None

    def _append(self, row: int, tokens: list[int], logprobs: list[float] | None) -> tuple[int, EndedRequest | None]:
        """Append tokens to a row until one of them ends its request; return how many it took."""
        table, request = self._rows, self._running[row]
        could_end, full = self._stops.table[table.stop_set[row]], int(table.full_length[row])
        ending, taken = None, 0
        begin = length = int(table.length[row])
        while ending is None and taken < len(tokens):
            token = tokens[taken]
            table.ids[row, length] = token
            length += 1
            taken += 1
            table.length[row] = length
            if could_end[token] or length >= full:
                ending = self._ending(request)
        if logprobs is not None:
            place = begin - int(table.prompt_length[row])
            table.logprobs[row, place : place + taken] = logprobs[:taken]
            logprobs = logprobs[:taken]
        if table.streams[row]:
            self._tell(request, tokens[:taken], logprobs)
        return taken, ending

    def _tell(self, request: EngineRequest, tokens: list[int], logprobs: list[float] | None) -> None:
        assert request.on_tokens is not None
        request.on_tokens(tokens, logprobs if request.sampling.logprobs and logprobs is not None else [])

    def _ending(self, request: EngineRequest) -> EndedRequest | None:
        """Tell whether the newest token ends the request."""
        row, sampling = request.row, request.sampling
        ids = self._rows.completion(row)
        if ids[-1] in self._detokenizer.end_ids:
            return EndedRequest(request, Finish.STOP)
        if sampling.stop and (match := self._detokenizer.find_stop(ids, sampling.stop, request.prompt)):
            text, stop = match
            if sampling.keep_stop:
                text += stop
            else:
                while ids and len(self._detokenizer.text(ids[:-1], request.prompt)) >= len(text):
                    ids.pop()
            return EndedRequest(request, Finish.STOP, text, ids, stop)
        if self._rows.length[row] >= self._rows.full_length[row]:
            return EndedRequest(request, Finish.LENGTH)
        return None
