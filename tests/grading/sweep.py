"""Sweeps over many answers: what the grader says of each pair is held against an independent check.

    python -m tests.grading.sweep [--sample N] [--only pairs,rewritings,mutations,votes] [--workers N]

Reads the answers of ``public-golds.txt`` and ``comp-math-24-25.jsonl`` in the folder of test data. All sweeps together
take about five minutes on two cores that are free.

- pairs: all pairs of different answers that share structure, in both directions. Two answers share structure where
  the sets of their marks (commands, relation and list signs, any letter as one mark; digits, signs, points and
  brackets left out) differ by at most one mark.
- rewritings: each answer against other spellings of it (rewritings.py): at least 99% are equal, none is refused.
- mutations: each answer against texts in which one mark is changed (mutations.py), in both directions.
- votes: ballots of answers, spellings and mutations of them, each in 20 orders.

Directions always agree, and each "equal" of pairs and mutations is confirmed by independent.py or listed with its
reason in equal_by_hand.txt; a "not equal" that independent.py calls the same is a failure too. Progress goes to
standard error. Ends with 1 where something fails.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.grading import Grade, Verdict, compare, majority
from tests.grading.independent import confirmed
from tests.grading.mutations import mutations
from tests.grading.rewritings import body, rewritings

FOLDER = Path(os.environ.get("OPENMATH_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
PUBLIC, CONTEST = FOLDER / "public-golds.txt", FOLDER / "comp-math-24-25.jsonl"
BY_HAND = Path(__file__).parent / "equal_by_hand.txt"
ORDERS = 20
REFUSALS = 20  # one "not equal" of so many is held against the independent check, for it is slow
MAX_OPEN = 0.01  # share of rewritings that may be unknown

_DRESS = re.compile(r"\\(?:left|right|displaystyle|quad|mathrm|text|[,;:! ])|[\s$]")
_MARK = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]|\S")


def answers() -> list[str]:
    """All different answers of both files, in order."""
    with PUBLIC.open(encoding="utf-8") as public, CONTEST.open(encoding="utf-8") as contest:
        texts = [*public, *(json.loads(line)["expected_answer"] for line in contest)]
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


@functools.cache
def by_hand() -> frozenset[frozenset[str]]:
    """Pairs that are equal for a reason that independent.py does not know: "a == b ## reason" a line."""
    pairs = set()
    for line in BY_HAND.read_text("utf-8").splitlines():
        if line and not line.startswith("; "):
            pair, reason = line.rsplit(" ## ", 1)
            a, b = pair.split(" == ", 1)
            assert reason.strip(), line
            pairs.add(frozenset((a, b)))
    return frozenset(pairs)


def marks(answer: str) -> frozenset[str]:
    """The marks of an answer that make its structure."""
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


@dataclass
class Report:
    """Counts and failures of one sweep."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.most_common())
        return "\n  ".join([f"{self.name}: {counts or 'nothing'}", *self.failures])


Found = tuple[list[str], list[str]]  # what is counted, what failed


def check_claim(claim: tuple[str, str, str]) -> Found:
    """Compare (kind, a, b) in both directions; each certain verdict needs an opinion that does not contradict it."""
    kind, a, b = claim
    grade, turned = compare(a, b), compare(b, a)
    said = f"[{kind}] {a}  ~  {b}"
    counts, failures = [str(grade.verdict)], []
    if grade.verdict is not turned.verdict:
        failures.append(f"directions: {said}: {grade.verdict} and {turned.verdict}")
    if grade.is_equal or turned.is_equal:
        if frozenset((a, b)) in by_hand():
            counts.append("listed by hand")
        elif (opinion := confirmed(a, b)) is True:
            counts.append("confirmed")
        else:
            failures.append(f"{'refuted' if opinion is False else 'not confirmed'}: {said} ({grade.reason})")
    elif (
        grade.verdict is Verdict.NOT_EQUAL
        and zlib.crc32(said.encode()) % REFUSALS == 0
        and confirmed(a, b, units=False)
    ):
        failures.append(f"refused: {said} ({grade.reason})")
    return counts, failures


def check_rewriting(pair: tuple[str, str]) -> Found:
    """Compare an answer with another spelling of it."""
    answer, text = pair
    grade, turned = compare(text, answer), compare(answer, text)
    said = f"{answer}  ~  {text}: {grade.verdict} ({grade.reason})"
    failures = []
    if grade.verdict is not turned.verdict:
        failures.append(f"directions: {said}; turned: {turned.verdict}")
    if grade.verdict is Verdict.NOT_EQUAL:
        failures.append(f"refused: {said}")
    elif not grade.is_equal:
        failures.append(f"open: {said}")
    return [str(grade.verdict)], failures


def check_vote(vote: Sequence[str]) -> Found:
    """Count a vote in many orders, each pair of spellings compared once."""
    known: dict[tuple[str, str], Grade] = {}

    def remembered(a: str, b: str) -> Grade:
        if (a, b) not in known:
            known[a, b] = compare(a, b)
        return known[a, b]

    results = set()
    for seed in range(ORDERS):
        order: list[str | None] = list(random.Random(seed).sample(vote, len(vote)))
        result = majority(order, compare=remembered)
        results.add((result.answer, result.groups, result.lead, tuple(sorted(result.ambiguous.items()))))
    counts = ["votes", *(["votes with ambiguous spellings"] if next(iter(results))[3] else [])]
    return counts, [] if len(results) == 1 else [f"{len(results)} results of {vote}"]


def ballots(texts: list[str], rng: random.Random) -> Iterator[tuple[str, ...]]:
    """Votes around each answer: spellings of it, mutations, and answers that the votes may confuse with it."""
    for text in texts:
        right = list(rewritings(text))
        wrong = [changed for _, changed in mutations(text)]
        yield (
            *(text for _ in range(rng.randrange(1, 4))),
            *rng.sample(right, min(4, len(right))),
            *rng.sample(wrong, min(4, len(wrong))),
            rf"{body(text)}\%",
            rf"{body(text)} \text{{ cm}}",
            rf"{body(text)} \text{{ m}}",
            rng.choice(texts),
        )


CHECKS: dict[str, Callable[[tuple[str, ...]], Found]] = {
    "pairs": check_claim,
    "rewritings": check_rewriting,
    "mutations": check_claim,
    "votes": check_vote,
}  # type: ignore[dict-item]


def cases(name: str, texts: list[str], rng: random.Random) -> list[tuple[str, ...]]:
    """What a sweep checks, from these answers."""
    if name == "pairs":
        return [("pair", a, b) for a, b in structured_pairs(texts)]
    if name == "rewritings":
        return [(t, r) for t in texts for r in dict.fromkeys(rewritings(t))]
    if name == "mutations":
        return [(kind, t, changed) for t in texts for kind, changed in mutations(t)]
    return list(ballots(texts, rng))


def report(name: str, found: Iterable[Found], total: int) -> Report:
    """Gather what a sweep found, with a line of progress now and then."""
    result = Report(name)
    shown = time.monotonic()
    for done, (counts, failures) in enumerate(found, 1):
        result.counts.update(counts)
        result.failures += failures
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            print(f"{name}: {done:,} of {total:,}, {len(result.failures)} failures", file=sys.stderr, flush=True)
    if name == "rewritings" and sum(f.startswith("open") for f in result.failures) <= MAX_OPEN * total:
        result.failures = [f for f in result.failures if not f.startswith("open")]
    return result


def sweep(name: str, texts: list[str], *, seed: int = 0, sample: int | None = None, workers: int = 0) -> Report:
    """One sweep over the answers. ``sample``: at most so many cases; ``workers``: processes, 0 for this one."""
    rng = random.Random(seed)
    found = cases(name, texts, rng)
    if sample is not None and sample < len(found):
        found = rng.sample(found, sample)
    if not workers:
        return report(name, map(CHECKS[name], found), len(found))
    chunk = 1 if name == "votes" else 50
    with multiprocessing.get_context("spawn").Pool(workers, os.nice, (10,)) as pool:
        return report(name, pool.imap_unordered(CHECKS[name], found, chunk), len(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="cases of each sweep instead of all")
    parser.add_argument("--only", default=",".join(CHECKS), help="names of sweeps, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    failed = False
    texts = answers()
    for name in options.only.split(","):
        started = time.monotonic()
        result = sweep(name, texts, seed=options.seed, sample=options.sample, workers=options.workers)
        print(f"{result}\n  ({time.monotonic() - started:.0f} s)", flush=True)
        failed |= bool(result.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
