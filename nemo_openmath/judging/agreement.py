"""How far the judges and the symbolic grader agree, with examples of where they do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.judging.judge import Judgement, Question

DECIDED = (Verdict.EQUAL, Verdict.NOT_EQUAL)


@dataclass(frozen=True, slots=True)
class Disagreement:
    question: Question
    symbolic: Grade
    judged: Judgement


@dataclass
class Agreement:
    """Counts of (symbolic verdict, judge's verdict), and up to ``keep`` disagreements, the first ones seen."""

    keep: int = 20
    table: Counter[tuple[Verdict, Verdict]] = field(default_factory=Counter)
    examples: list[Disagreement] = field(default_factory=list)
    invalid_votes: int = 0
    requests: int = 0

    def add(self, question: Question, symbolic: Grade, judged: Judgement) -> None:
        self.table[symbolic.verdict, judged.verdict] += 1
        self.invalid_votes += judged.votes.count(None)
        self.requests += judged.asked
        both = symbolic.verdict in DECIDED and judged.verdict in DECIDED
        if both and symbolic.verdict is not judged.verdict and len(self.examples) < self.keep:
            self.examples.append(Disagreement(question, symbolic, judged))

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
            "disagreements": [
                {
                    "problem": d.question.problem,
                    "predicted_answer": d.question.predicted,
                    "expected_answer": d.question.expected,
                    "symbolic": str(d.symbolic.verdict),
                    "symbolic_reason": d.symbolic.reason,
                    "judged": str(d.judged.verdict),
                    "judged_reason": d.judged.reason,
                }
                for d in self.examples
            ],
        }
