"""What is known of the problems of labelled threads, and what the stages of a problem set made of them.

A labelled thread is a ``Thread`` whose column ``known_problems`` lists the problems that it poses, each an object:

- ``problem``: its text, as the thread has it
- ``category``: answer, proof, multiple-choice, binary or invalid
- ``discussed_answer``: the answer that the replies settle on; null where they settle on none
- ``expected_answer``: the right answer
- ``converted_answer``: the answer of a proof that is turned into a problem; null where it hides no value
- ``in_benchmark``: whether the benchmark holds it, in whatever words

All but ``problem`` may be left out: what a label does not say is not measured by it. A thread without the column is not
labelled, one with an empty list poses no problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Thread
from nemo_openmath.synthesis.problems.classify import CATEGORIES
from nemo_openmath.synthesis.problems.statement import Statement, Token

KNOWN = "known_problems"
UNSAID = "\0unsaid"
"""What stands for a field that a label leaves out."""
_TEXTS = ("category", "discussed_answer", "expected_answer", "converted_answer")


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """What is true of a problem of a labelled thread. ``UNSAID`` is what its label does not say."""

    problem: str
    category: str = UNSAID
    discussed_answer: str | None = UNSAID
    expected_answer: str | None = UNSAID
    converted_answer: str | None = UNSAID
    in_benchmark: bool | None = None
    """None: not said."""

    @property
    def usable(self) -> bool:
        """Whether it belongs into a problem set as it is: it asks for an answer, and is in no benchmark."""
        return self.category == "answer" and not self.in_benchmark

    def as_converted(self) -> KnownProblem:
        """Return what is true of the problem that a proof was turned into; of what hides no value, itself."""
        if self.category != "proof" or self.converted_answer in (None, UNSAID):
            return self
        return replace(self, category="answer", expected_answer=self.converted_answer)


def known_problems(thread: Thread) -> tuple[KnownProblem, ...] | None:
    """Return what is known of a thread's problems; None of one that is not labelled. Raises UserError naming the thread
    and the field that is none of these."""
    rows = thread.extra.get(KNOWN)
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise _wrong(thread, "is not a list")
    return tuple(_known(thread, row) for row in rows)


def _known(thread: Thread, row: Any) -> KnownProblem:
    if not isinstance(row, Mapping) or not isinstance(row.get("problem"), str):
        raise _wrong(thread, "has an entry without the text 'problem'")
    if unknown := row.keys() - KnownProblem.__dataclass_fields__.keys():
        raise _wrong(thread, f"has an unknown field {sorted(unknown)[0]!r}")
    values = dict(row)
    for name in _TEXTS:
        value = values.get(name, "")
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "category":
            values[name] = str(value)
        elif not (isinstance(value, str) or (value is None and name != "category")):
            raise _wrong(thread, f"has {name} {value!r}, which is no text")
    if values.get("category", "answer") not in CATEGORIES:
        raise _wrong(thread, f"has category {values['category']!r}; known: {', '.join(CATEGORIES)}")
    if not isinstance(values.get("in_benchmark"), bool | None):
        raise _wrong(thread, f"has in_benchmark {values['in_benchmark']!r}; write true or false")
    return KnownProblem(**values)


def _wrong(thread: Thread, what: str) -> UserError:
    return UserError(f"thread {thread.id}: {KNOWN} {what}", remedy="correct the label, or remove it")


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
