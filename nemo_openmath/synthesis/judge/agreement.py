"""How far the judges and the symbolic grader agree, with examples of where they do not."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.synthesis.judge.judge import Judgement, Question

DECIDED = (Verdict.EQUAL, Verdict.NOT_EQUAL)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    question: Question
    symbolic: Grade
    judged: Judgement

    def to_json(self) -> dict[str, Any]:
        q, s, j = self.question, self.symbolic, self.judged
        return {
            "problem": q.problem,
            "predicted_answer": q.predicted,
            "expected_answer": q.expected,
            "symbolic": str(s.verdict),
            "symbolic_reason": s.reason,
            "judged": str(j.verdict),
            "judged_reason": j.reason,
            "votes": list(j.votes),
            "asked": j.asked,
            "invalid": j.invalid,
        }

    @staticmethod
    def from_json(row: dict[str, Any]) -> JudgedPair:
        return JudgedPair(
            Question(row["problem"], row["predicted_answer"], row["expected_answer"]),
            Grade(Verdict(row["symbolic"]), row["symbolic_reason"]),
            Judgement(Verdict(row["judged"]), row["judged_reason"], tuple(row["votes"]), row["asked"], row["invalid"]),
        )


def read_judgements(files: Iterable[Path]) -> Agreement:
    """Agreement over journals of judgements. A torn last line is left out; of a unit judged twice the last stays."""
    found: dict[str, JudgedPair] = {}
    for file in files:
        for line in file.read_bytes().split(b"\n"):
            with contextlib.suppress(orjson.JSONDecodeError):
                row = orjson.loads(line)
                found[row["unit"]] = JudgedPair.from_json(row)
    agreement = Agreement()
    for _, entry in sorted(found.items()):
        agreement.add(entry.question, entry.symbolic, entry.judged)
    return agreement


@dataclass
class Agreement:
    """Counts of (symbolic verdict, judge's verdict), and up to ``keep`` disagreements, the first ones seen."""

    keep: int = 20
    table: Counter[tuple[Verdict, Verdict]] = field(default_factory=Counter)
    examples: list[JudgedPair] = field(default_factory=list)
    invalid_votes: int = 0
    requests: int = 0

    def add(self, question: Question, symbolic: Grade, judged: Judgement) -> None:
        self.table[symbolic.verdict, judged.verdict] += 1
        self.invalid_votes += judged.votes.count(None)
        self.requests += judged.asked
        both = symbolic.verdict in DECIDED and judged.verdict in DECIDED
        if both and symbolic.verdict is not judged.verdict and len(self.examples) < self.keep:
            self.examples.append(JudgedPair(question, symbolic, judged))

    @property
    def both_decided(self) -> int:
        return sum(self.table[a, b] for a in DECIDED for b in DECIDED)

    @property
    def rate(self) -> float | None:
        """Share of pairs with the same verdict among those that both decided; None where there are none."""
        total = self.both_decided
        return sum(self.table[v, v] for v in DECIDED) / total if total else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa over the pairs that both decided: agreement beyond what the two rates of "equal" make likely
        (Cohen 1960). None where it is not defined."""
        total = self.both_decided
        if not total or self.rate is None:
            return None
        chance = sum(
            sum(self.table[v, other] for other in DECIDED) * sum(self.table[other, v] for other in DECIDED)
            for v in DECIDED
        ) / (total * total)
        return (self.rate - chance) / (1 - chance) if chance < 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "table": {f"{a}/{b}": count for (a, b), count in sorted(self.table.items())},
            "rate": self.rate,
            "kappa": self.kappa,
            "requests": self.requests,
            "invalid_votes": self.invalid_votes,
            "disagreements": [d.to_json() for d in self.examples],
        }
