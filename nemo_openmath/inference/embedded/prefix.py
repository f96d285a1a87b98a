"""Prefixes whose keys and values outlive their slot.

They are those of conversations that wait for their tool, and those of prompts that more samples may follow. Least
recently used entries go first when the byte budget is spent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

CHUNK = 32  # tokens; prefixes are found at multiples of this and then compared token by token


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens ``ids`` [n] and their cache: keys and values [layer, kv_head, n, head_dim]."""

    ids: np.ndarray
    keys: Tensor
    values: Tensor
    conversation: str | None
    hashes: list[int] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class PrefixStore:
    """Finds the stored prefix that shares most tokens with a prompt."""

    def __init__(self, budget_bytes: int):
        self._budget = budget_bytes
        self._used = 0
        self._entries: OrderedDict[int, Prefix] = OrderedDict()  # by id(), oldest use first
        self._by_hash: dict[int, Prefix] = {}
        self._by_conversation: dict[str, Prefix] = {}

    def put(self, prefix: Prefix) -> None:
        """Keep ``prefix``; it replaces the one of the same conversation."""
        if prefix.bytes > self._budget:
            return
        if prefix.conversation is not None:
            if (old := self._by_conversation.get(prefix.conversation)) is not None:
                self.drop(old)
            self._by_conversation[prefix.conversation] = prefix
        prefix.hashes = chain(prefix.ids)
        for key in prefix.hashes:
            self._by_hash[key] = prefix
        self._entries[id(prefix)] = prefix
        self._used += prefix.bytes
        while self._used > self._budget:
            self.drop(next(iter(self._entries.values())))

    def clear(self) -> None:
        """Drop everything."""
        for entry in list(self._entries.values()):
            self.drop(entry)

    def drop(self, prefix: Prefix) -> None:
        """Forget ``prefix``, if it is still there."""
        if self._entries.pop(id(prefix), None) is None:
            return
        self._used -= prefix.bytes
        for key in prefix.hashes:
            if self._by_hash.get(key) is prefix:
                del self._by_hash[key]
        if prefix.conversation is not None and self._by_conversation.get(prefix.conversation) is prefix:
            del self._by_conversation[prefix.conversation]

    def find(self, ids: np.ndarray, conversation: str | None) -> tuple[Prefix | None, int]:
        """Return the entry that shares the longest prefix with ``ids``, and that prefix's length in tokens."""
        candidates = []
        if conversation is not None and (own := self._by_conversation.get(conversation)) is not None:
            candidates.append(own)
        for key in reversed(chain(ids)):
            if (entry := self._by_hash.get(key)) is not None:
                candidates.append(entry)
                break
        best, length = None, 0
        for entry in candidates:
            if (n := shared(entry.ids, ids)) > length:
                best, length = entry, n
        if best is not None:
            self._entries.move_to_end(id(best))
        return best, length


def chain(ids: np.ndarray) -> list[int]:
    """Return a hash of each prefix of ``ids`` that is a multiple of CHUNK long, shortest first."""
    hashes, value = [], 0
    data = np.ascontiguousarray(ids, np.int32).tobytes()
    for end in range(4 * CHUNK, len(data) + 1, 4 * CHUNK):
        value = hash((value, data[end - 4 * CHUNK : end]))
        hashes.append(value)
    return hashes


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n
