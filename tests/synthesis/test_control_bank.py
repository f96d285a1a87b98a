"""The shipped cases: enough of each side, right by computation, and such that an ideal model passes them all."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.core.records.observations import read_observations
from nemo_openmath.core.stage import CONTROLS
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import CASES, same_statements
from nemo_openmath.synthesis.problems.classify import QUESTIONS
from tests.support.services import run_stage
from tests.synthesis.controlled_stages import STAGES


@pytest.mark.parametrize("kind", CASES)
def test_each_class_has_enough_cases_that_differ(kind: str) -> None:
    bank = load_bank(kind)
    sides = Counter(case.known for case in bank)
    assert min(sides.values()) >= 12
    assert len(bank) >= 24
    assert len({str(case.unit("x")) for case in bank}) == len(bank)
    assert len({case.sort for case in bank if case.sort}) > 5 or kind == "problems.classify"


def test_the_problems_of_a_post_stand_in_it() -> None:
    for case in load_bank("problems.extract"):
        assert all(problem in case.forum_post for problem in case.problems), case.id
        assert not same_statements(case.problems, [case.forum_post]) or case.id == "short", case.id


# What each answer is, computed in another way than the case argues.


def second_wins(stones: int) -> bool:
    wins = [False]
    for n in range(1, stones + 1):
        wins.append(any(not wins[n - take] for take in (1, 2, 3) if take <= n))
    return not wins[stones]


def limit(steps: int = 60) -> float:
    a = 1.0
    for _ in range(steps):
        a = math.sqrt(6 + a)
    return a


def integral(steps: int = 2000) -> float:
    middle = [(k + 0.5) / steps * math.pi / 2 for k in range(steps)]
    return sum(math.sin(x) / (math.sin(x) + math.cos(x)) for x in middle) / steps * math.pi / 2


def angle_cpd() -> float:
    c, d, p = (1.0, 1.0), (0.0, 1.0), (0.5, math.sqrt(3) / 2)
    u, v = (c[0] - p[0], c[1] - p[1]), (d[0] - p[0], d[1] - p[1])
    return math.degrees(math.acos((u[0] * v[0] + u[1] * v[1]) / (math.hypot(*u) * math.hypot(*v))))


def inradius(a: float, b: float, c: float) -> float:
    s = (a + b + c) / 2
    return math.sqrt((s - a) * (s - b) * (s - c) / s)


def ratio_of_the_cevian() -> Fraction:
    """AE : EC by coordinates: A = (0, 0), B = (3, 0), C = (0, 3)."""
    d = (Fraction(1), Fraction(2))  # two thirds of the way from B to C
    m = (d[0] / 2, d[1] / 2)
    at = m[1] * 3 / (3 - m[0])  # the line from B through M meets x = 0 here
    return at / (3 - at)


DICE = list(itertools.product(range(1, 7), repeat=2))
DIVISOR_OF = 2**5 * 3**4 * 7
VALUES: dict[str, dict[str, Callable[[], object]]] = {
    "problems.convert_proofs": {
        "tangents": lambda: round(math.tan(math.radians(15)) + math.tan(math.radians(75)), 9),
        "digits": lambda: sum(map(int, str(10**45 - 45))),
        "only-pair": lambda: next((x, y) for x in range(1, 99) for y in range(1, 99) if x * x - 4 * y * y == 9),
        "count": lambda: sum(n % 4 == 0 and n % 6 == 0 for n in range(1, 151)),
        "angle": lambda: round(angle_cpd(), 9),
        "minimum": lambda: round(min((k / 1000) ** 2 + 54 / (k / 1000) for k in range(1, 20000)), 9),
        "maximum": lambda: max(Fraction(a, 10) * (60 - 2 * Fraction(a, 10)) / 3 for a in range(301)),
        "remainder": lambda: pow(3, 100, 13),
        "limit": lambda: round(limit(), 9),
        "probability": lambda: Fraction(sum(max(pair) == 4 for pair in DICE), 36),
        "integral": lambda: f"{round(4 * integral(), 5) / math.pi:.0f}*pi/4",
        "ratio": ratio_of_the_cevian,
        "game": lambda: sum(second_wins(n) for n in range(1, 51)),
    },
    "problems.extract_answers": {
        "wrong-first": lambda: sum(DIVISOR_OF % d == 0 for d in range(6, DIVISOR_OF + 1, 6)),
        "two-wrong": lambda: sum(list(str(n)) == sorted(set(str(n))) for n in range(100, 1000)),
        "latex": lambda: f"sqrt({inradius(7, 8, 9) ** 2:.9g})",
        "hints-then-answer": lambda: pow(7, 222, 50),
        "several-agree": lambda: next(x for x in range(5, 1000) if (x - 5) ** 2 == x + 7),
        "off-topic": lambda: sum(sum(1 for p in group if p < 6) >= 2 for group in itertools.combinations(range(11), 4)),
        "set": lambda: ", ".join(str(n) for n in range(-99, 99) if n != 1 and (n + 11) % (n - 1) == 0),
        "fraction": lambda: Fraction(
            sum(len({card % 4 for card in hand}) == 3 for hand in itertools.combinations(range(52), 3)),
            math.comb(52, 3),
        ),
        "last-word": lambda: max(c for c in range(16, 999) if math.isqrt(c * c - 225) ** 2 == c * c - 225),
        "instruction": lambda: sum(int("".join(digits)) for digits in itertools.permutations("1358")),
        "units": lambda: 390 / (70 + 60) * 100,
    },
}
BY_FORMULA: dict[str, Callable[[], bool]] = {  # answers that are no number, at many places
    "expression": lambda: all(
        sum(k * (k + 1) for k in range(1, n + 1)) == n * (n + 1) * (n + 2) // 3 for n in range(1, 50)
    ),
    "function": lambda: all(
        (a + b) ** 2 + 3 * (a + b) == a * a + 3 * a + b * b + 3 * b + 2 * a * b
        for a, b in itertools.product(range(-9, 10), repeat=2)
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_every_answer_is_what_is_computed(kind: str, grading: GradingPool) -> None:
    for case in load_bank(kind):
        if case.expected_answer is None or (case.id in BY_FORMULA and BY_FORMULA[case.id]()):
            continue
        value = VALUES[kind][case.id]()
        assert grading.compare(str(value), case.expected_answer).is_equal, (case.id, value)


def ideal(case: Any, question: str) -> str:
    """What a model that makes no mistake replies to a question about a case."""
    match case.stage:
        case "problems.extract":
            return "\n".join(f"Problem {n}: {text}" for n, text in enumerate(case.problems, 1)) or "No problem"
        case "problems.classify":
            asked = next(name for name, template in CLASSIFIERS.items() if template.match(question) is not None)
            return f"Verdict: {'yes' if case.category == asked else 'no'}"
        case "problems.convert_proofs":
            if case.expected_answer is None:
                return "Not possible"
            claim = re.sub(r"\b(?:prove|show|verify|deduce|that)\b", "", case.problem, flags=re.I)
            asked = claim.replace(case.expected_answer.strip("$"), "this")
            return f"Problem: Find the value that is meant here: {asked}\nAnswer: {case.expected_answer}"
        case "problems.extract_answers":
            return "Not found" if case.expected_answer is None else f"Answer: {case.expected_answer}"
        case "problems.decontaminate":
            return f"Verdict: {'yes' if case.same else 'no'}"
    return f"Judgement: {'Yes' if case.equal else 'No'}"


NOTHING = {
    "problems.extract": "No problem",
    "problems.convert_proofs": "Not possible",
    "problems.extract_answers": "Not found",
    "judging.judge": "Judgement: No",
}


@pytest.mark.parametrize("kind", CASES)
async def test_an_ideal_model_passes_every_case(
    kind: str, tokenizer: ChatTokenizer, grading: GradingPool, tmp_path: Path
) -> None:
    bank = load_bank(kind)

    def reply(question: str) -> str:
        shown = [case for case in bank if all(piece in question for piece in pieces(case))]
        if not shown:  # a real unit
            return NOTHING.get(kind, "Verdict: no")
        return ideal(max(shown, key=lambda case: sum(map(len, pieces(case)))), question)

    make, config, inputs = STAGES[kind]
    settings: dict[str, Any] = {"controls": 1.0}
    if kind == "problems.decontaminate":  # what the retriever does not find is not the model's mistake
        settings |= {"threshold": 0.0, "ngram": 2}
    run = await run_stage(
        make(config(**settings)), tmp_path, reply, tokenizer=tokenizer, grading=grading,
        **{port: records[: len(bank)] for port, records in inputs.items()},
    )  # fmt: skip
    seen = {o.case: o for o in read_observations(run.context.output / CONTROLS)}
    assert len(seen) == len(bank), "there are as many units as cases"
    wrong = {n: (o.known, o.outcome) for n, o in seen.items() if not right(o.known, o.outcome, CASES[kind].classes)}
    assert wrong == {}


CLASSIFIERS = {name: load_template(f"classify-{name}") for name in QUESTIONS}


def right(known: str, outcome: str, classes: tuple[str, ...]) -> bool:
    return known == outcome if known in classes else outcome not in classes


def pieces(case: Any) -> list[str]:
    """The texts of a case that the model is shown."""
    match case.stage:
        case "problems.extract":
            return [case.forum_post]
        case "problems.classify":
            return [case.problem]
        case "problems.decontaminate":
            return [case.problem, case.benchmark]
        case "judging.judge":
            return [case.problem, case.predicted_answer, case.expected_answer]
    return [case.problem, case.forum_discussions]
