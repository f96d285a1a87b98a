"""Pairs graded a second on one core, against math-verify alone on the same pairs.

    python benchmarks/grading.py DATA [--million] [--accuracy]

DATA: a JSONL file with ``expected_answer``. Each expected answer is compared with itself in other spellings and with
near misses (tests/grading/rewritings.py). "contest" takes the answers as often as they occur (most are short
integers) against integers; "fresh contest" has other digits in each pair, so that no reading of an answer is met twice;
"LaTeX" only those that hold a command. ``--million`` streams a million fresh contest pairs through a pool of one worker
and prints the peak memory of both processes. ``--accuracy`` runs both graders over the pair table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_openmath.grading import GradingPool, compare
from tests.grading.rewritings import body, near_misses

Pair = tuple[str, str]

DIGITS = re.compile(r"[0-9]+")


def contest_pairs(answers: list[str], count: int, *, fresh: bool = False) -> Iterator[Pair]:
    """What a label or a benchmark run compares: mostly right short answers, some wrong ones, a few in LaTeX."""
    rng = random.Random(0)

    def other(digits: re.Match[str]) -> str:
        size = len(digits[0])
        return str(rng.randrange(10 ** (size - 1), 10**size))

    for answer in itertools.islice(itertools.cycle(answers), count):
        text = DIGITS.sub(other, answer) if fresh else answer
        wrong = list(near_misses(text)) if rng.random() < 0.4 else []
        yield (rng.choice(wrong) if wrong else body(text)), body(text)


def latex_pairs(answers: list[str], count: int) -> list[Pair]:
    rng = random.Random(1)
    expressions = [body(a) for a in answers if "\\" in a]
    pairs = []
    for text in itertools.islice(itertools.cycle(expressions), count):
        wrong = list(near_misses(text))
        spelling = rng.choice(
            [text, text.replace(r"\frac", r"\dfrac"), rf"\left({text}\right)", f"0+{text}", rf"\frac{{2({text})}}{{2}}"]
        )
        pairs.append((rng.choice(wrong) if rng.random() < 0.4 else spelling, text))
    return list(dict.fromkeys(pairs))


def rate(grade: Callable[[str, str], object], pairs: Iterable[Pair]) -> float:
    started, count = time.process_time(), 0
    for predicted, expected in pairs:
        grade(predicted, expected)
        count += 1
    return count / (time.process_time() - started)


def math_verify(predicted: str, expected: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"${expected}$"), parse(f"${predicted}$"))


def accuracy() -> None:
    """Both graders on the table of pairs (tests/grading/pairs.txt), both orders. math-verify has no third verdict."""
    from tests.grading.pairs import PAIRS

    table = [(x, y, same) for _, a, b, same, _ in PAIRS for x, y in ((a, b), (b, a))]
    graders: dict[str, Callable[[str, str], bool]] = {
        "ours": lambda a, b: compare(a, b).is_equal,
        "math-verify": math_verify,
    }
    for name, grader in graders.items():
        accepted = sum(grader(a, b) for a, b, same in table if not same)
        missed = sum(not grader(a, b) for a, b, same in table if same)
        print(f"{name}: {len(table)} comparisons, {accepted} false positives, {missed} misses")


def million(answers: list[str]) -> None:
    verdicts: Counter[str] = Counter()
    seconds = 0.0
    pairs = contest_pairs(answers, 1_000_000, fresh=True)
    with GradingPool(workers=1) as pool:
        while batch := list(itertools.islice(pairs, 10_000)):
            started = time.monotonic()
            grades = pool.grade_batch(batch)
            seconds += time.monotonic() - started
            verdicts.update(str(g.verdict) for g in grades)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(
        f"1,000,000 fresh pairs: {seconds:.1f} s, peak memory {peak} MiB here, {workers} MiB in the worker; "
        + ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    options = parser.parse_args()
    with options.data.open(encoding="utf-8") as lines:
        answers = [json.loads(line)["expected_answer"] for line in lines]
    compare("x+1", "1+x")
    math_verify("x+1", "1+x")
    for name, pairs in (
        ("contest answers", list(contest_pairs(answers, 500))),
        ("fresh contest answers", list(contest_pairs(answers, 500, fresh=True))),
        ("LaTeX expressions", latex_pairs(answers, 300)),
    ):
        ours, theirs = rate(compare, pairs), rate(math_verify, pairs)
        print(f"{name}: {len(pairs)} pairs; ours {ours:,.0f}/s, math-verify {theirs:,.0f}/s, ratio {ours / theirs:.0f}")
    if options.accuracy:
        accuracy()
    if options.million:
        million(answers)


if __name__ == "__main__":
    main()
