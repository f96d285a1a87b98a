"""Measure how far the judges and the symbolic grader agree, with examples of where they do not.

A stage keeps every pair that it judged in ``judgements-<shard>.jsonl``, one JSON object a line, beside its records:
records hold one verdict each, and the agreement of the two verdicts is computed from these files at every run's end.
"""

from __future__ import annotations

import contextlib
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.synthesis.judge.judge import Judgement, Question

DECIDED = (Verdict.EQUAL, Verdict.NOT_EQUAL)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One pair of answers with both verdicts on it, whether they agree or not."""

    question: Question
    symbolic: Grade
    judged: Judgement

    def to_json(self) -> dict[str, Any]:
        """Return the pair as a row of the journal of judgements."""
        return {
            "problem": self.question.problem,
            "predicted_answer": self.question.predicted,
            "expected_answer": self.question.expected,
            "symbolic": str(self.symbolic.verdict),
            "symbolic_reason": self.symbolic.reason,
            "judged": str(self.judged.verdict),
            "judged_reason": self.judged.reason,
            "votes": list(self.judged.votes),
            "asked": self.judged.asked,
            "invalid": self.judged.invalid,
            "replies": list(self.judged.replies),
        }

    @staticmethod
    def from_json(row: dict[str, Any]) -> JudgedPair:
        """Read a row of the journal, with or without replies. Raises KeyError or ValueError where it is none."""
        return JudgedPair(
            Question(row["problem"], row["predicted_answer"], row["expected_answer"]),
            Grade(Verdict(row["symbolic"]), row["symbolic_reason"]),
            Judgement(
                Verdict(row["judged"]),
                row["judged_reason"],
                tuple(row["votes"]),
                row["asked"],
                row["invalid"],
                tuple(row.get("replies", ())),
            ),
        )


def read_judgements(files: Iterable[Path]) -> Agreement:
    """Return the agreement over journals of judgements.

    A torn line is left out. Where a unit was judged twice, as after a kill, its last judgement counts. Eight bytes a
    judgement are held, and those that came twice.
    """
    files = list(files)
    seen, repeated = KeySet(), set[int]()
    for row in _rows(files):
        if not seen.add(key := unit_key(row["unit"])):
            repeated.add(key)
    agreement, last = Agreement(), dict[str, JudgedPair]()
    for row in _rows(files):
        if unit_key(row["unit"]) in repeated:
            last[row["unit"]] = JudgedPair.from_json(row)
        else:
            agreement.add(JudgedPair.from_json(row), row["unit"])
    for unit, pair in last.items():
        agreement.add(pair, unit)
    return agreement


def _rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(orjson.JSONDecodeError):
                    yield orjson.loads(line)


@dataclass
class Agreement:
    """Count pairs by both verdicts, and keep pairs on which the two verdicts contradict each other: the first by the
    names of their units."""

    keep: int = 20
    """Most disagreements that are kept as examples."""
    table: Counter[tuple[Verdict, Verdict]] = field(default_factory=Counter)
    """(Symbolic verdict, judge's verdict) -> pairs."""
    examples: list[tuple[str, JudgedPair]] = field(default_factory=list)
    """Disagreements by the names of their units."""
    invalid_votes: int = 0
    """Votes that no attempt could read."""
    requests: int = 0
    """Requests that were made to judges."""

    @property
    def disagreements(self) -> list[JudgedPair]:
        """The examples."""
        return [pair for _, pair in self.examples]

    def add(self, pair: JudgedPair, unit: str = "") -> None:
        """Count the pair of a unit."""
        symbolic, judged = pair.symbolic.verdict, pair.judged.verdict
        self.table[symbolic, judged] += 1
        self.invalid_votes += pair.judged.votes.count(None)
        self.requests += pair.judged.asked
        contradict = symbolic in DECIDED and judged in DECIDED and symbolic is not judged
        if contradict:
            insort(self.examples, (unit, pair), key=lambda entry: entry[0])
            del self.examples[self.keep :]

    @property
    def both_decided(self) -> int:
        """Number of pairs that both the grader and the judges decided."""
        return sum(self.table[a, b] for a in DECIDED for b in DECIDED)

    @property
    def rate(self) -> float | None:
        """Share of pairs with the same verdict among those that both decided. None where there are none."""
        total = self.both_decided
        return sum(self.table[v, v] for v in DECIDED) / total if total else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa over the pairs that both decided (Cohen 1960). None where it is not defined.

        It is the agreement beyond the one that the two rates of "equal" make likely by chance.
        """
        total = self.both_decided
        if not total or self.rate is None:
            return None
        by_grader = {verdict: sum(self.table[verdict, judged] for judged in DECIDED) for verdict in DECIDED}
        by_judges = {verdict: sum(self.table[symbolic, verdict] for symbolic in DECIDED) for verdict in DECIDED}
        chance = sum(by_grader[verdict] * by_judges[verdict] for verdict in DECIDED) / total**2
        return (self.rate - chance) / (1 - chance) if chance < 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a report and for ``agreement.json``. Replies stay in the journal: they are long."""
        return {
            "table": {f"{a}/{b}": count for (a, b), count in sorted(self.table.items())},
            "rate": self.rate,
            "kappa": self.kappa,
            "requests": self.requests,
            "invalid_votes": self.invalid_votes,
            "disagreements": [
                {name: value for name, value in pair.to_json().items() if name != "replies"}
                for pair in self.disagreements
            ],
        }
