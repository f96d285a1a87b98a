"""What must not be trained on: the problems of all benchmarks, and which of them state the same as a given problem."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.synthesis.problems.statement import Statement

_LOOK_ALIKES = str.maketrans("аеорсухіјѕАВЕКМНОРСТУХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "aeopcyxijsABEKMHOPCTYXIJSABEZHIKMNOPTYXo")
"""Letters of Cyrillic and Greek that are drawn as Latin ones are. Greek letters that LaTeX has a command for are signs
of their own."""


def folded(text: str) -> str:
    """Return a text in which letters that look alike are one letter, and without characters that cannot be seen."""
    if text.isascii():
        return text
    return "".join(c for c in text.translate(_LOOK_ALIKES) if unicodedata.category(c) != "Cf")


@dataclass(frozen=True, slots=True)
class BenchmarkProblem:
    """A problem, and where it stands: (benchmark, id of the problem), one or more."""

    text: str
    places: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The problem and its benchmark, for a reader: ``problem-1f of amc23, problem-1f of aime``."""
        return ", ".join(f"{identifier} of {benchmark}" for benchmark, identifier in self.places)


class BenchmarkProblems:
    """The problems of all benchmarks. Those that state the same (statement.py) are one, whose text is the first's."""

    def __init__(self, problems: Iterable[tuple[str, Problem]]):
        """Take (name of the benchmark, problem) pairs."""
        self.problems: list[BenchmarkProblem] = []
        self.without_text: list[str] = []
        """Problems in which no word, number or sign stands: nothing can be compared with them."""
        self._by_statement: dict[int, list[int]] = defaultdict(list)
        for benchmark, problem in problems:
            place = (benchmark, problem.id)
            statement = stated(problem.problem)
            if not statement.tokens:
                self.without_text.append(f"{problem.id} of {benchmark}")
            elif (at := self._number(statement)) is None:
                self._by_statement[_key(statement)].append(len(self.problems))
                self.problems.append(BenchmarkProblem(problem.problem, (place,)))
            elif place not in (known := self.problems[at]).places:
                self.problems[at] = BenchmarkProblem(known.text, (*known.places, place))

    def stating(self, statement: Statement) -> BenchmarkProblem | None:
        """Return the problem that states this, whatever its form; None where there is none."""
        at = self._number(statement)
        return None if at is None else self.problems[at]

    def _number(self, statement: Statement) -> int | None:
        if not statement.tokens:
            return None
        alike = self._by_statement.get(_key(statement), ())
        return next((at for at in alike if stated(self.problems[at].text) == statement), None)


def stated(text: str) -> Statement:
    """Return what a problem states, whatever the letters that it is written in."""
    return Statement.of(folded(text))


def _key(statement: Statement) -> int:
    return unit_key("\0".join(f"{token}\1" if mathematics else token for token, mathematics in statement.tokens))
