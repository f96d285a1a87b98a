"""The texts of problems, kept as one text that is searched as a whole."""

from __future__ import annotations

import numpy as np


class SearchedProblems:
    """Problems by number. About 230 bytes a problem beside its text, which is kept twice: as it is, and in small
    letters."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._texts: dict[int, bytes] = {}
        self._blob = b""
        self._starts = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, problem: str) -> int:
        """Return the number of a problem."""
        number = self._numbers.setdefault(problem, len(self.ids))
        if number == len(self.ids):
            self.ids.append(problem)
        return number

    def number(self, problem: str) -> int | None:
        """Return the number of a problem that is known."""
        return self._numbers.get(problem)

    def set_text(self, number: int, text: str) -> None:
        """Keep the text of a problem. The first one holds: an id is made from the text."""
        self._texts.setdefault(number, text.encode("utf-8", "replace"))

    def lacking(self) -> list[int]:
        """Return the numbers of the problems whose text is not known."""
        return [number for number in range(len(self.ids)) if number not in self._texts]

    def close(self) -> None:
        """Make the text that is searched, when all texts are there."""
        lowered = [_searched(self._texts.get(i, b"").decode()) for i in range(len(self.ids))]
        self._blob = b"\n".join(lowered)
        self._starts = np.cumsum([0, *(len(text) + 1 for text in lowered)])

    def text(self, number: int) -> str:
        """Return the text of a problem; "" where it is not known."""
        return self._texts.get(number, b"").decode()

    def search(self, words: str) -> np.ndarray:
        """Return which problems hold a text, in any case and with any white space: an array of booleans by number."""
        holding = np.zeros(len(self.ids), bool)
        wanted = _searched(words)
        at = self._blob.find(wanted)
        while at >= 0:
            number = int(np.searchsorted(self._starts, at, side="right")) - 1
            holding[number] = True
            at = self._blob.find(wanted, int(self._starts[number + 1]))
        return holding


def _searched(text: str) -> bytes:
    """Return a text as it is searched: in small letters, on one line."""
    return " ".join(text.lower().split()).encode("utf-8", "replace")
