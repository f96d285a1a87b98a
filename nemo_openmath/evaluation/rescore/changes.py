"""Which verdicts changed and why, what that does to each metric, and which problems turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_openmath.core.records import Generation
from nemo_openmath.evaluation.metrics import ProblemScores, split_name
from nemo_openmath.evaluation.paired import Pair, PairedRow, paired_difference
from nemo_openmath.evaluation.rescore.note import before, counts_known

EXAMPLES = 3
"""Most examples of a pair of reasons."""
SHOWN_CHARS = 200
"""Characters of an answer in an example."""
COUNTED = ("tokens", "code_calls", "called")
"""Metrics that need the counts of every generation."""
_TURNING = ("maj@k", "genselect@k", "pass@k", "pass@1")

Reasons = tuple[str, str, str, str, str]
"""Mode, old verdict and reason, new verdict and reason."""


@dataclass
class VerdictChanges:
    """A table of verdicts by what they were and what they are, with the first examples of each change."""

    total: int = 0
    changed: int = 0
    other_reason: int = 0
    """Generations of the same verdict for another reason."""
    other_answer: int = 0
    """Generations with another extracted answer than before."""
    rows: Counter[Reasons] = field(default_factory=Counter)
    examples: dict[Reasons, list[dict[str, Any]]] = field(default_factory=dict)
    unknown_counts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Mode -> generations whose tokens and calls under the limit are not known: their number, and the first id."""
    not_graded: int = 0
    """Generations that had no verdict before."""

    def watch(self, generations: Iterable[Generation]) -> Iterator[Generation]:
        """Yield generations that were scored again, and count them."""
        for generation in generations:
            self._add(generation)
            yield generation

    def _add(self, new: Generation) -> None:
        old = before(new)
        self.total += 1
        self.not_graded += old.verdict is None
        self.other_answer += old.predicted_answer != new.predicted_answer
        if not counts_known(new):
            number, first = self.unknown_counts.get(str(new.mode), (0, new.id))
            self.unknown_counts[str(new.mode)] = number + 1, first
        if old.verdict is new.verdict:
            self.other_reason += old.verdict_reason != new.verdict_reason
            return
        self.changed += 1
        key = (str(new.mode), str(old.verdict), old.verdict_reason or "", str(new.verdict), new.verdict_reason or "")
        self.rows[key] += 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < EXAMPLES:
            examples.append(_example(old, new))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each pair of verdicts and reasons, the most frequent first."""
        names = ("mode", "old_verdict", "old_reason", "new_verdict", "new_reason")
        ranked = sorted(self.rows.items(), key=lambda row: (-row[1], row[0]))
        return [
            dict(zip(names, key, strict=True)) | {"generations": count, "examples": self.examples[key]}
            for key, count in ranked
        ]


def _example(old: Generation, new: Generation) -> dict[str, Any]:
    example: dict[str, Any] = {"generation": new.id, "problem": new.problem_id}
    for name, value in (
        ("expected", new.expected_answer),
        ("expected_before", old.expected_answer),
        ("answer_before", old.predicted_answer),
        ("answer", new.predicted_answer),
    ):
        example[name] = value if value is None else value[:SHOWN_CHARS]
    if example["expected_before"] == example["expected"]:
        del example["expected_before"]
    return example


def metric_changes(
    old: Sequence[ProblemScores], new: Sequence[ProblemScores], unknown_counts: Iterable[str] = ()
) -> list[PairedRow]:
    """Return old and new value of every metric that both sides have, with the difference and its paired interval.

    ``unknown_counts``: modes of which some tokens and calls are not known: their metrics are left out.
    """
    hidden = set(unknown_counts)
    rows = []
    for mode, metric in _shared(old, new):
        if metric in COUNTED and mode in hidden:
            continue
        rows.append(
            paired_difference(
                old, new, Pair(mode, metric, mode, metric), checkpoint_before="before", checkpoint_after="after"
            )
        )
    return rows


def _shared(old: Sequence[ProblemScores], new: Sequence[ProblemScores]) -> list[tuple[str, str]]:
    sides = [{(str(p.mode), name): None for p in side for name in p.values} for side in (old, new)]
    return [key for key in sides[0] if key in sides[1]]


def without_unknown(scores: Sequence[ProblemScores], unknown_counts: Iterable[str]) -> list[ProblemScores]:
    """Return the scores without the metrics whose counts are not known in these modes."""
    hidden = set(unknown_counts)
    return [
        ProblemScores(
            p.problem_id,
            p.mode,
            p.samples,
            {name: value for name, value in p.values.items() if str(p.mode) not in hidden or name not in COUNTED},
        )
        for p in scores
    ]


@dataclass(frozen=True, slots=True)
class TurnedProblem:
    """A problem that is right now and was not, or was right and is not any more."""

    problem: str
    mode: str
    metric: str
    before: float
    after: float
    right: bool
    """Whether it is right now."""


def turns(old: Sequence[ProblemScores], new: Sequence[ProblemScores]) -> list[TurnedProblem]:
    """Return the problems that turn: by majority vote and by selection, at the most samples or candidates of the mode
    (right is a chance above one half), and whether any sample is right.

    Only pass@1 of a mode with one sample each is looked at: there it is the problem.
    """
    olds = {(p.problem_id, str(p.mode)): p for p in old}
    out = []
    for problem in new:
        was = olds[problem.problem_id, str(problem.mode)]
        for metric in _turning(problem):
            if metric not in was.values:
                continue
            first, second = was.values[metric], problem.values[metric]
            if _is_right(metric, first) != (now := _is_right(metric, second)):
                out.append(TurnedProblem(problem.problem_id, str(problem.mode), metric, first, second, now))
    return sorted(out, key=lambda turn: (turn.mode, turn.metric, turn.right, turn.problem))


def _turning(problem: ProblemScores) -> list[str]:
    """Return the metrics by which a problem turns, those of a k at its largest k."""
    largest: dict[str, tuple[int, str]] = {}
    for name in problem.values:
        metric, k = split_name(name)
        if metric in _TURNING:
            largest[metric] = max(largest.get(metric, (0, "")), (k or 1, name))
    if problem.samples > 1:
        largest.pop("pass@1", None)
    else:
        largest.pop("maj@k", None)
    return [name for _, name in largest.values()]


def _is_right(metric: str, value: float) -> bool:
    return value > (0 if metric.startswith("pass@") else 0.5)


def turn_rows(found: Iterable[TurnedProblem]) -> list[dict[str, Any]]:
    """Return the turns as plain data."""
    return [asdict(turn) for turn in found]
