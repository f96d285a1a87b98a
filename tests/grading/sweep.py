"""Sweeps over many answers: what the grader says of each pair is held against an independent check.

    python -m tests.grading.sweep [--sample N] [--only pairs,rewritings,mutations,votes]

Reads the answers of ``public-golds.txt`` and ``comp-math-24-25.jsonl`` in the folder of test data.

- pairs: all pairs of different answers that share structure, in both directions. Two answers share structure where
  the sets of their marks (commands, relation and list signs, any letter as one mark; digits, signs, points and
  brackets left out) differ by at most one mark.
- rewritings: each answer against other spellings of it (rewritings.py): at least 99% are equal, none is refused.
- mutations: each answer against texts in which one mark is changed (mutations.py), in both directions.
- votes: ballots of answers, spellings and mutations of them, each in 20 orders.

Directions always agree, and each "equal" of pairs and mutations is confirmed by independent.py or listed with its
reason in equal_by_hand.txt. Ends with 1 where something fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nemo_openmath.grading import Grade, Verdict, compare, majority

from .independent import confirmed
from .mutations import mutations
from .rewritings import body, rewritings

FOLDER = Path(os.environ.get("OPENMATH_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
PUBLIC, CONTEST = FOLDER / "public-golds.txt", FOLDER / "comp-math-24-25.jsonl"
BY_HAND = Path(__file__).parent / "equal_by_hand.txt"
ORDERS = 20

_DRESS = re.compile(r"\\(?:left|right|displaystyle|quad|mathrm|text|[,;:! ])|[\s$]")
_MARK = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]|\S")


def answers() -> list[str]:
    """All different answers of both files, in order."""
    with PUBLIC.open(encoding="utf-8") as public, CONTEST.open(encoding="utf-8") as contest:
        texts = [*public, *(json.loads(line)["expected_answer"] for line in contest)]
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def by_hand() -> set[frozenset[str]]:
    """Pairs that are equal for a reason that independent.py does not know: "a == b ## reason" a line."""
    pairs = set()
    for line in BY_HAND.read_text("utf-8").splitlines():
        if line and not line.startswith("; "):
            pair, reason = line.rsplit(" ## ", 1)
            a, b = pair.split(" == ", 1)
            assert reason.strip(), line
            pairs.add(frozenset((a, b)))
    return pairs


def marks(answer: str) -> frozenset[str]:
    text = _DRESS.sub("", answer).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    found = ("a" if len(m) == 1 and m.isalpha() else m for m in _MARK.findall(text))
    return frozenset(m for m in found if not m.isdigit() and m not in "{}().-+")


def structured_pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """All pairs of answers whose sets of marks differ by at most one."""
    groups: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for text in texts:
        groups[marks(text)].append(text)
    for (x, first), (y, second) in itertools.combinations(groups.items(), 2):
        if len(x ^ y) == 1:
            yield from itertools.product(first, second)
    for group in groups.values():
        yield from itertools.combinations(group, 2)


class Report:
    """Counts and failures of one sweep."""

    def __init__(self, name: str):
        self.name = name
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.most_common())
        return "\n  ".join([f"{self.name}: {counts or 'nothing'}", *self.failures])


def sweep_claims(name: str, claims: Iterable[tuple[str, str, str]]) -> Report:
    """Compare (kind, a, b) in both directions; every EQUAL needs a confirmation."""
    report, listed = Report(name), by_hand()
    for kind, a, b in claims:
        grade, turned = compare(a, b), compare(b, a)
        report.counts[str(grade.verdict)] += 1
        said = f"[{kind}] {a}  ~  {b}"
        if grade.verdict is not turned.verdict:
            report.failures.append(f"directions: {said}: {grade.verdict} and {turned.verdict}")
        if grade.is_equal or turned.is_equal:
            if frozenset((a, b)) in listed:
                report.counts["listed by hand"] += 1
            elif (opinion := confirmed(a, b)) is True:
                report.counts["confirmed"] += 1
            else:
                why = "refuted" if opinion is False else "not confirmed"
                report.failures.append(f"{why}: {said} ({grade.reason})")
    return report


def sweep_pairs(pairs: Iterable[tuple[str, str]]) -> Report:
    return sweep_claims("pairs", (("pair", a, b) for a, b in pairs))


def sweep_mutations(pairs: Iterable[tuple[str, str, str]]) -> Report:
    return sweep_claims("mutations", pairs)


def sweep_rewritings(pairs: Iterable[tuple[str, str]]) -> Report:
    """(answer, rewriting): each is equal, at most 1 in 100 unknown, none refused."""
    report, open_ = Report("rewritings"), []
    for answer, text in pairs:
        grade, turned = compare(text, answer), compare(answer, text)
        report.counts[str(grade.verdict)] += 1
        said = f"{answer}  ~  {text}: {grade.verdict} ({grade.reason})"
        if grade.verdict is not turned.verdict:
            report.failures.append(f"directions: {said}; turned: {turned.verdict}")
        if grade.verdict is Verdict.NOT_EQUAL:
            report.failures.append(f"refused: {said}")
        elif not grade.is_equal:
            open_.append(f"open: {said}")
    if len(open_) > 0.01 * sum(report.counts.values()):
        report.failures += open_
    return report


def ballots(texts: list[str], rng: random.Random) -> Iterator[list[str]]:
    """Votes around each answer: spellings of it, mutations, and answers that the votes may confuse with it."""
    for text in texts:
        right = list(rewritings(text))
        wrong = [changed for _, changed in mutations(text)]
        yield [
            *(text for _ in range(rng.randrange(1, 4))),
            *rng.sample(right, min(4, len(right))),
            *rng.sample(wrong, min(4, len(wrong))),
            rf"{body(text)}\%",
            rf"{body(text)} \text{{ cm}}",
            rf"{body(text)} \text{{ m}}",
            rng.choice(texts),
        ]


def sweep_votes(votes: Iterable[list[str]], rng: random.Random) -> Report:
    """Every ballot has one result in each of its orders."""
    report = Report("votes")
    for vote in votes:
        known: dict[tuple[str, str], Grade] = {}

        def remembered(a: str, b: str, known: dict[tuple[str, str], Grade] = known) -> Grade:
            return known.setdefault((a, b), compare(a, b)) if (a, b) not in known else known[a, b]

        results = set()
        for _ in range(ORDERS):
            rng.shuffle(vote)
            result = majority(vote, compare=remembered)
            results.add((result.answer, result.groups, result.lead, tuple(sorted(result.ambiguous.items()))))
        report.counts["votes"] += 1
        report.counts["votes with ambiguous spellings"] += bool(result.ambiguous)
        if len(results) > 1:
            report.failures.append(f"{len(results)} results of {vote}")
    return report


def sweeps(texts: list[str], rng: random.Random, sample: int | None) -> dict[str, Callable[[], Report]]:
    """The sweeps by name; ``sample``: at most so many pairs of each, chosen by ``rng``."""

    def some(items: Iterable[tuple[str, ...]], share: float = 1) -> list[tuple[str, ...]]:
        found = list(items)
        count = len(found) if sample is None else min(len(found), int(sample * share))
        return found if count == len(found) else rng.sample(found, count)

    return {
        "pairs": lambda: sweep_pairs(some(structured_pairs(texts))),  # type: ignore[arg-type]
        "rewritings": lambda: sweep_rewritings(
            some(((t, r) for t in texts for r in dict.fromkeys(rewritings(t))), 0.2)
        ),  # type: ignore[arg-type]
        "mutations": lambda: sweep_mutations(some(((k, t, m) for t in texts for k, m in mutations(t)), 0.2)),  # type: ignore[arg-type]
        "votes": lambda: sweep_votes(
            ballots(texts if sample is None else rng.sample(texts, max(1, sample // 250)), rng), rng
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="pairs of each sweep instead of all")
    parser.add_argument("--only", default="", help="names of sweeps, with commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for name, sweep in sweeps(answers(), random.Random(options.seed), options.sample).items():
        if not options.only or name in options.only.split(","):
            started = time.monotonic()
            report = sweep()
            print(f"{report}\n  ({time.monotonic() - started:.0f} s)", flush=True)
            failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
