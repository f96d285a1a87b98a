"""What the stages of a problem set made of the problems of labelled threads (synthesis/problems/labelled.py)."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_openmath.synthesis.problems.labelled import KnownProblem
from nemo_openmath.synthesis.problems.statement import Statement, Token


class Matcher:
    """Finds each problem that was taken from a thread among those that the thread is known to pose: equal but for its
    form (synthesis/problems/statement.py). Each known problem is found once."""

    def __init__(self, known: tuple[KnownProblem, ...]):
        self._left = [(known_problem, *_keys(known_problem.problem)) for known_problem in known]

    def take(self, text: str) -> KnownProblem | None:
        """Return the known problem that a text is, which is then taken; None where it is none of those that are
        left."""
        words, tokens = _keys(text)
        for at, (known, own_words, own_tokens) in enumerate(self._left):
            if words == own_words or (tokens and tokens == own_tokens):
                del self._left[at]
                return known
        return None

    def left(self) -> Iterator[KnownProblem]:
        """Yield the known problems that were not taken."""
        return (known for known, _, _ in self._left)


def _keys(text: str) -> tuple[str, tuple[Token, ...]]:
    return " ".join(text.split()), Statement.of(text).tokens
