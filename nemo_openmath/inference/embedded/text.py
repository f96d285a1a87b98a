"""Token ids to text, and stop strings, at a price that does not grow with the number of running requests.

Each step asks one table, [stop set, token] -> bool, whether a new token could end a request: an end-of-turn token, or
a token whose text holds the last character of a stop string. Only then is text decoded and searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from nemo_openmath.chat.tokenizer import ChatTokenizer

Ids: TypeAlias = Sequence[int] | np.ndarray
BROKEN = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, UTF-8
OVERLAP = 6  # prompt tokens decoded along with a completion, for decoders whose pieces depend on what precedes


class Detokenizer:
    """Decodes with the tokenizer's own decoder. Special tokens are text like others; end-of-turn tokens are not."""

    def __init__(self, tokenizer: ChatTokenizer, end_ids: frozenset[int]):
        self._decode = tokenizer.backend.decode
        self.end_ids = end_ids
        decoder = tokenizer.backend.decoder
        self._joins = "ByteLevel" in repr(decoder)  # decode(a + b) == decode(a) + decode(b), up to UTF-8

    def text(self, ids: Ids, before: Ids = ()) -> str:
        """Return the text of ``ids`` as it continues the tokens ``before`` it."""
        shown = [i for i in ids if i not in self.end_ids]
        if self._joins or not len(before):
            return self._decode(shown, skip_special_tokens=False)
        head = [int(i) for i in before[-OVERLAP:]]
        prefix = self._decode(head, skip_special_tokens=False)
        return self._decode(head + shown, skip_special_tokens=False)[len(prefix) :]

    def find_stop(self, ids: Ids, stops: Sequence[str], before: Ids = ()) -> tuple[str, str] | None:
        """Return (text up to the stop string, stop string) of the stop string that appears first, if one does."""
        longest = max(len(s.encode()) for s in stops)
        tail = ids[-(longest + OVERLAP) :]  # a token is at least a byte
        if not any(s in self.text(tail, before if len(tail) == len(ids) else ids[: -len(tail)]) for s in stops):
            return None
        text = self.text(ids, before)
        matches = [(at, -len(s), s) for s in stops if (at := text.find(s)) >= 0]
        if not matches:
            return None
        at, _, stop = min(matches)
        return text[:at], stop


class StopTable:
    """Knows, as ``table[stop set, token]``, whether a token could end a request that has these stop strings."""

    MOST_SETS = 256  # beyond this many distinct sets every token is a candidate: slower, still right

    def __init__(self, tokenizer: ChatTokenizer, vocab: int, detokenizer: Detokenizer):
        ends = np.zeros(vocab, bool)
        ends[[i for i in detokenizer.end_ids if i < vocab]] = True
        self.table = np.stack([ends, np.ones(vocab, bool)])
        self._texts = _texts(tokenizer, vocab)
        self._sets: dict[tuple[str, ...], int] = {(): 0}

    def index(self, stops: tuple[str, ...]) -> int:
        """Return the row of ``table`` for these stop strings."""
        if stops not in self._sets:
            if len(self._sets) >= self.MOST_SETS:
                return 1
            lasts = {s[-1] for s in stops}
            foreign = any(ord(c) > 127 for c in lasts)
            could = [any(c in text for c in lasts) or (foreign and BROKEN in text) for text in self._texts]
            self.table = np.vstack([self.table, self.table[0] | np.array(could)])
            self._sets[stops] = len(self.table) - 1
        return self._sets[stops]


def _texts(tokenizer: ChatTokenizer, vocab: int) -> list[str]:
    """The text of each token, with the leading space that some decoders take from a first token."""
    decode, raw = tokenizer.backend.decode, tokenizer.backend.id_to_token
    return [decode([i], skip_special_tokens=False) + " " * (raw(i) or "").startswith("▁") for i in range(vocab)]


class TextStream:
    """Turns the ids of one streamed request into text as soon as it is certain."""

    def __init__(self, detokenizer: Detokenizer, before: Ids, stops: Sequence[str] = ()):
        self._detokenizer, self._before, self._stops = detokenizer, [int(i) for i in before[-OVERLAP:]], stops
        self._hold = max(map(len, stops), default=0)
        self._ids: list[int] = []
        self._returned = ""
        self._pending = ""

    def add(self, ids: Ids) -> str:
        """Add tokens and return the text that is certain now: whole characters, and nothing that a stop string could
        still take back."""
        self._ids.extend(ids)
        text = self._detokenizer.text(self._ids, self._before)
        if not text.endswith(BROKEN) or len(self._ids) > 8:
            self._pending += text
            self._before = (self._before + self._ids)[-OVERLAP:]
            self._ids = []
        certain = len(self._pending) - self._hold
        # a token may go on behind the stop string that ends the request
        certain = min([certain, *(at for s in self._stops if (at := self._pending.find(s)) >= 0)])
        certain = max(0, certain)
        new, self._pending = self._pending[:certain], self._pending[certain:]
        self._returned += new
        return new

    def remainder(self, text: str) -> str:
        """Return what was not returned yet of the completion's whole ``text``."""
        return text[len(self._returned) :]
