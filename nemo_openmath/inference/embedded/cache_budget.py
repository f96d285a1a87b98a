"""The tokens of keys and values that all running requests may hold together."""

from __future__ import annotations

import numpy as np

from nemo_openmath.inference.embedded.decoder import Decoder


class CacheBudget:
    """``cache_tokens``: the budget; None where there is memory for every slot at full length."""

    def __init__(self, decoder: Decoder, slots: int, cache_tokens: int | None):
        self._decoder, block = decoder, decoder.block
        # whole blocks for at least one request of full length: the oldest always goes on
        least, most = -(-decoder.max_context // block) * block, slots * decoder.capacity
        self.tokens = most if cache_tokens is None else max(least, cache_tokens // block * block)
        self.tight = self.tokens < most

    def fits(self, lengths: np.ndarray, spare: int = 0) -> bool:
        """Tell whether the first rows, at their ``lengths`` and with a block more for ``spare`` of them, are within the
        budget. If so, memory that nobody needs is given back where that is necessary. A single row always fits."""
        block = self._decoder.block
        needed = np.zeros(self._decoder.rows, np.int64)
        needed[: len(lengths)] = -(-lengths // block) * block
        if len(lengths) > 1 and int(needed.sum()) + spare * block > self.tokens:
            return False
        taken = self._decoder.memory_tokens()
        if int(np.maximum(needed, taken).sum()) > self.tokens:
            for row in np.flatnonzero(taken > needed).tolist():
                self._decoder.release(row, int(needed[row]))
        return True
