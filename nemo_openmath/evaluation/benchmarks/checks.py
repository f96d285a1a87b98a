"""What is wrong, or may be, with the problems of a benchmark. Nothing is changed here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_openmath.core.grader import Grade
from nemo_openmath.grading import is_mathematics
from nemo_openmath.synthesis.problems.benchmark_problems import stated

_IMAGE = re.compile(
    r"\[asy\]|\\includegraphics|!\[[^\]]*\]\(|<img\b|\b(?:image|picture|diagram|figure)s? (?:shown|above|below)\b|"
    r"\b(?:shown|pictured|depicted) (?:above|below|in the (?:figure|diagram|picture|image))\b|\bthe (?:figure|diagram) "
    r"(?:shows|above|below)\b",
    re.IGNORECASE,
)
_PARTS = re.compile(r"\(a\).*\(b\)|\(i\).*\(ii\)|\band\b|\bor\b|(?<!\\);", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class BenchmarkFinding:
    """Rows of which something is to be said."""

    kind: str
    """What is counted: duplicate, contradiction, unreadable answer, several parts, image."""
    ids: tuple[str, ...]
    detail: str

    def line(self) -> str:
        """Return it for a reader."""
        return f"{self.kind}: {', '.join(self.ids)}: {self.detail}"


DUPLICATE, CONTRADICTION = "duplicate", "contradiction"
UNREADABLE, PARTS, IMAGE = "answer the grader cannot read", "answer of several parts", "image referenced"


def findings(rows: Sequence[Mapping[str, Any]], compare: Callable[[str, str], Grade]) -> Iterator[BenchmarkFinding]:
    """Yield what is to be said of the rows of a benchmark.

    - Two rows that state the same are a duplicate where the grader calls their answers equal, a contradiction where
      not.
    - An answer that is read as no mathematics is compared by its words alone: a judge should decide it.
    - An answer of several parts, and a problem that refers to an image, may be asked in vain.
    """
    yield from _duplicates(rows, compare)
    for row in rows:
        name, answer = str(row["id"]), str(row["expected_answer"])
        if not is_mathematics(answer):
            yield BenchmarkFinding(UNREADABLE, (name,), answer[:80])
        if _PARTS.search(answer) is not None:
            yield BenchmarkFinding(PARTS, (name,), answer[:80])
        if (image := _IMAGE.search(str(row["problem"]))) is not None:
            yield BenchmarkFinding(IMAGE, (name,), image.group())


def _duplicates(rows: Sequence[Mapping[str, Any]], compare: Callable[[str, str], Grade]) -> Iterator[BenchmarkFinding]:
    for first, again in repeated(rows):
        answers = [str(rows[number]["expected_answer"]) for number in (first, again)]
        kind = DUPLICATE if compare(answers[0], answers[1]).is_equal else CONTRADICTION
        ids = str(rows[first]["id"]), str(rows[again]["id"])
        yield BenchmarkFinding(kind, ids, " and ".join(answer[:40] for answer in answers))


def repeated(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """Yield (number of the first row, number of this one) for each row that states what an earlier one states."""
    firsts: dict[object, int] = {}
    for number, row in enumerate(rows):
        statement = stated(str(row["problem"]))
        first = firsts.setdefault(statement.tokens or " ".join(str(row["problem"]).split()), number)
        if first != number:
            yield first, number
