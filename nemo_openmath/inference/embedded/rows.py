"""What is known of the running requests, as one array for each property, so that a step is an operation on arrays."""

from __future__ import annotations

import numpy as np

from nemo_openmath.inference.embedded.requests import EngineRequest
from nemo_openmath.inference.embedded.sampling import RowSampling, uniforms


class RowTable:
    """The arrays of ``rows`` requests of at most ``capacity`` tokens. Row r belongs to the running request r.

    ``hidden``: width of the model where its states are kept, else 0.
    """

    def __init__(self, rows: int, capacity: int, hidden: int = 0):
        self.ids = np.zeros((rows, capacity), np.int32)  # prompt and completion
        self.length = np.zeros(rows, np.int64)  # tokens in ids; the last one is not in the cache while decoding
        self.prompt_length = np.zeros(rows, np.int64)
        self.full_length = np.zeros(rows, np.int64)  # length at which the request ends
        self.decoding = np.zeros(rows, bool)  # the prompt is computed
        self.deadline = np.full(rows, np.inf)
        self.stop_set = np.zeros(rows, np.int64)  # row of the stop table
        self.uniforms = np.zeros((rows, capacity))  # random numbers, by position in the completion
        self.temperature = np.zeros(rows, np.float32)
        self.top_p = np.ones(rows, np.float32)
        self.top_k = np.zeros(rows, np.int64)
        self.min_p = np.zeros(rows, np.float32)
        self.wants_logprobs = np.zeros(rows, bool)
        self.logprobs = np.zeros((rows, capacity), np.float32)  # by position in the completion
        self.streams = np.zeros(rows, bool)
        self.states = np.zeros((rows, hidden), np.float32)  # of the model where the newest token was drawn
        self._columns: list[np.ndarray] = list(vars(self).values())
        self.not_greedy: set[int] = set()  # rows that are drawn at random, or whose log-probabilities are wanted

    def set_ids(self, row: int, ids: np.ndarray) -> None:
        """Write the tokens that a request begins with."""
        self.ids[row, : len(ids)] = ids
        self.length[row] = len(ids)

    def begin(self, row: int, request: EngineRequest, *, stop_set: int, context: int, vocab: int) -> None:
        """Write all else of a request. ``context``: most tokens of prompt and completion."""
        sampling, prompt_length = request.sampling, len(request.prompt)
        self.prompt_length[row] = prompt_length
        self.full_length[row] = min(prompt_length + sampling.max_tokens, context)
        self.decoding[row] = False
        self.deadline[row] = request.deadline
        self.stop_set[row] = stop_set
        self.temperature[row] = sampling.temperature
        self.top_p[row] = sampling.top_p
        self.top_k[row] = min(sampling.top_k, vocab)
        self.min_p[row] = sampling.min_p
        if sampling.temperature > 0:
            draws = int(self.full_length[row]) - prompt_length
            self.uniforms[row, :draws] = uniforms(sampling.seed, draws)
        self.wants_logprobs[row] = sampling.logprobs
        self.streams[row] = request.on_tokens is not None
        (self.not_greedy.add if sampling.temperature > 0 or sampling.logprobs else self.not_greedy.discard)(row)
        if request.paused_logprobs is not None:
            self.logprobs[row, : len(request.paused_logprobs)] = request.paused_logprobs

    def move(self, source: int, target: int) -> None:
        """Copy all of row ``source`` to row ``target``."""
        for column in self._columns:
            column[target] = column[source]
        (self.not_greedy.add if source in self.not_greedy else self.not_greedy.discard)(target)

    def clear(self, row: int) -> None:
        """Make sure that no step looks at a row whose request is gone."""
        self.decoding[row] = self.streams[row] = False
        self.not_greedy.discard(row)
        self.deadline[row] = np.inf

    def in_cache(self, request: EngineRequest) -> int:
        """Return the tokens of a running request whose keys and values are in its row."""
        return int(self.length[request.row]) - 1 if self.decoding[request.row] else request.computed

    def completion(self, row: int) -> list[int]:
        """Return the tokens that were generated."""
        ids: list[int] = self.ids[row, self.prompt_length[row] : self.length[row]].tolist()
        return ids

    def sampling(self, rows: np.ndarray) -> RowSampling:
        """Return how the next token of each of ``rows`` is drawn."""
        return RowSampling(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.min_p[rows])
