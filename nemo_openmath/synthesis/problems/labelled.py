"""What is known of the problems of labelled threads.

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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Thread
from nemo_openmath.synthesis.problems.classify import CATEGORIES

KNOWN = "known_problems"
ROW = "file_row"
"""The key in ``extra`` of where a thread stands: its file and row."""
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


def known_problems(thread: Thread, where: str = "") -> tuple[KnownProblem, ...] | None:
    """Return what is known of a thread's problems; None of one that is not labelled. Raises UserError naming the field
    that is none of these, and the thread: ``where`` it stands in its file, if that is known."""
    rows = thread.extra.get(KNOWN)
    if rows is None:
        return None
    where = where or str(thread.extra.get(ROW) or f"thread {thread.id}")
    if not isinstance(rows, list):
        raise _wrong(where, "is not a list")
    return tuple(_known(where, row) for row in rows)


def _known(where: str, row: Any) -> KnownProblem:
    if not isinstance(row, Mapping) or not isinstance(row.get("problem"), str):
        raise _wrong(where, "has an entry without the text 'problem'")
    if unknown := row.keys() - KnownProblem.__dataclass_fields__.keys():
        raise _wrong(where, f"has an unknown field {sorted(unknown)[0]!r}")
    values = dict(row)
    for name in _TEXTS:
        value = values.get(name, "")
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "category":
            values[name] = str(value)
        elif not (isinstance(value, str) or (value is None and name != "category")):
            raise _wrong(where, f"has {name} {value!r}, which is no text")
    if values.get("category", "answer") not in CATEGORIES:
        raise _wrong(where, f"has category {values['category']!r}; known: {', '.join(CATEGORIES)}")
    if not isinstance(values.get("in_benchmark"), bool | None):
        raise _wrong(where, f"has in_benchmark {values['in_benchmark']!r}; write true or false")
    return KnownProblem(**values)


def _wrong(where: str, what: str) -> UserError:
    return UserError(f"{where}: {KNOWN} {what}", remedy="correct the label, or remove it")
