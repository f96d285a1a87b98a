"""The model of answers: an enumeration says the same, parameters of simulated data come back, probabilities hold."""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.answers.latent import PLAUSIBLE, Parameters, fit, posterior
from nemo_openmath.synthesis.answers.noise import BestAnswers, kept_patterns, label_noise
from nemo_openmath.synthesis.answers.patterns import Table, pattern_of
from nemo_openmath.synthesis.answers.reliability import Reliability
from nemo_openmath.synthesis.answers.stages import (
    AnswerVotes,
    AnswerVotesConfig,
    CalibratedAnswers,
    CalibratedConfig,
)
from nemo_openmath.synthesis.answers.votes import FORUM, AnswerClass, ProblemVotes, Source
from tests.support.services import StageRun, run_stage
from tests.synthesis.test_answers import solutions

F: Source = (FORUM, "")
NEVER = 1e-200


def votes_of(answers: Sequence[tuple[Source, str]], marks: dict[str, str] | None = None) -> ProblemVotes:
    """The votes of single answers, each with its source."""
    by_answer: dict[str, Counter[Source]] = defaultdict(Counter)
    for source, answer in answers:
        by_answer[answer][source] += 1
    return ProblemVotes.make(
        [AnswerClass(a, tuple(sorted(c.items())), (marks or {}).get(a, "")) for a, c in by_answer.items()]
    )


def probabilities(votes: ProblemVotes, **parameters: Any) -> dict[str, float]:
    """P(right) of each answer under given parameters, with one difficulty."""
    table = Table.build([votes])
    known = Parameters.start(table, 1)
    right = np.array([[parameters["right"][s]] for s in table.sources])
    weights = np.array([[1.0 if v == parameters["v"] else NEVER for v in PLAUSIBLE]])
    concentration = np.array([[parameters["t"].get(name, 1.0)] for name in table.families])
    astray = np.array([parameters.get("astray", {}).get(name, NEVER) for name in table.families])
    lost = np.array([parameters.get("right_astray", {}).get(s, 0.5) for s in table.sources])
    lost_t = np.array([parameters.get("t_astray", {}).get(name, 1.0) for name in table.families])
    rest = {name: parameters[name] for name in ("equal", "sensitivity", "specificity") if name in parameters}
    astray = np.where(table.is_forum_family, 0.0, astray)
    known = replace(
        known, right=right, weights=weights, concentration=concentration, astray=astray, right_astray=lost,
        concentration_astray=lost_t, **rest,
    )  # fmt: skip
    p = posterior(table, known)
    return {c.answer: float(x) for c, x in zip(votes.classes, p, strict=True)}


def test_a_case_by_hand() -> None:
    """The forum says A, a model says B twice. Nine plausible names: the truth and eight wrong ones."""
    right = {F: 0.9, ("m", "cot"): 0.7}
    p = probabilities(votes_of([(F, "A"), *[(("m", "cot"), "B")] * 2]), right=right, v=8, t={"m": 1.0})
    a = Fraction(9, 10) * Fraction(9, 100) * 8 * (Fraction(1, 8) * Fraction(9, 8) / 2)  # both wrong votes on one of 8
    b = Fraction(1, 10) * Fraction(49, 100) * 8 * Fraction(1, 8)
    none = Fraction(1, 10) * Fraction(9, 100) * 8 * 7 * Fraction(1, 8) * (Fraction(1, 8) * Fraction(9, 8) / 2)
    assert p == pytest.approx({"A": float(a / (a + b + none)), "B": float(b / (a + b + none))}, rel=1e-12)


@pytest.mark.parametrize("mark", ["?", "+", "-"])
def test_an_answer_that_the_grader_cannot_tell_from_the_forums(mark: str) -> None:
    right = {F: 0.9, ("m", "cot"): 0.7}
    votes = votes_of([(F, "A"), (("m", "cot"), "B")], {"B": mark})
    p = probabilities(votes, right=right, v=8, t={}, equal=0.4, sensitivity=0.9, specificity=0.8)
    same = 0.4 * {"?": 1.0, "+": 0.9, "-": 0.1}[mark]
    apart = 0.6 * {"?": 1.0, "+": 0.2, "-": 0.8}[mark]
    total = same * (0.9 * 0.7 + 0.1 * 0.3 / 8) + apart * (0.9 * 0.3 + 0.1 * 0.7 + 0.1 * 0.3 * 7 / 8)
    assert p["A"] == pytest.approx((same * 0.63 + apart * 0.27) / total, rel=1e-12)
    assert p["B"] == pytest.approx((same * 0.63 + apart * 0.07) / total, rel=1e-12)


def outcomes(
    sources: Sequence[Source], right: dict[Source, float], t: dict[str, float], v: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every outcome of the process, vote by vote: 0 is the truth, 1 to v are the wrong answers."""
    for names in itertools.product(range(v + 1), repeat=len(sources)):
        p, urns = 1.0, defaultdict[str, list[int]](list)
        for source, name in zip(sources, names, strict=True):
            if name == 0:
                p *= right[source]
                continue
            urn = urns[source[0]]
            p *= (1 - right[source]) * (t[source[0]] / v + urn.count(name)) / (t[source[0]] + len(urn))
            urn.append(name)
        yield names, p


def test_the_posterior_is_that_of_an_enumeration() -> None:
    """All outcomes that look alike (up to the names) are added up; the share in which an answer is the truth is P."""
    a, a2, b = ("a", "cot"), ("a", "tir"), ("b", "cot")
    right, t = {F: 0.8, a: 0.6, a2: 0.7, b: 0.4}, {FORUM: 1.0, "a": 0.5, "b": 2.5}
    lost, lost_t, astray = {a: 0.1, a2: 0.2, b: 0.3}, {"a": 0.3, "b": 0.9}, {"a": 0.3, "b": 0.15}
    sources = [F, a, a, a2, b, b]
    seen: dict[tuple[int, ...], dict[int | None, float]] = defaultdict(lambda: defaultdict(float))
    for gone in itertools.product((False, True), repeat=2):
        state = dict(zip("ab", gone, strict=True))
        chance = math.prod(astray[f] if state[f] else 1 - astray[f] for f in "ab")
        rates = {s: lost[s] if state.get(s[0]) else rate for s, rate in right.items()}
        piles = {f: lost_t[f] if state.get(f) else number for f, number in t.items()}
        for names, p in outcomes(sources, rates, piles, 2):
            first = {name: i for i, name in reversed(list(enumerate(names)))}
            seen[tuple(first[name] for name in names)][first.get(0)] += chance * p
    assert math.isclose(sum(sum(s.values()) for s in seen.values()), 1.0)
    for look, shares in seen.items():
        votes = votes_of([(s, str(name)) for s, name in zip(sources, look, strict=True)])
        expected = {str(name): shares[name] / sum(shares.values()) for name in set(look)}
        p_of = probabilities(votes, right=right, v=2, t=t, astray=astray, right_astray=lost, t_astray=lost_t)
        assert p_of == pytest.approx(expected, rel=1e-9, abs=1e-12)


RIGHT = {
    F: (0.97, 0.9, 0.8),
    ("a", "cot"): (0.95, 0.6, 0.1),
    ("a", "tir"): (0.98, 0.8, 0.3),
    ("b", "cot"): (0.9, 0.7, 0.3),
}
TIMES = {F: 1, ("a", "cot"): 8, ("a", "tir"): 8, ("b", "cot"): 4}
WEIGHTS = np.array([[0.02, 0.05, 0.1, 0.33], [0.05, 0.05, 0.1, 0.1], [0.05, 0.05, 0.05, 0.05]])
T = {FORUM: 1.0, "a": 0.7, "b": 2.5}


def simulated(number: int, seed: int = 0) -> list[ProblemVotes]:
    """Problems whose votes follow the process; the right answer is "0"."""
    rng = random.Random(seed)
    classes = [(h, v) for h in range(3) for v in range(4)]
    problems = []
    for _ in range(number):
        h, place = rng.choices(classes, WEIGHTS.ravel())[0]
        urns, answers = defaultdict[str, list[int]](list), []
        for source, times in TIMES.items():
            for _ in range(times if source != F or rng.random() < 0.7 else 0):
                if rng.random() < RIGHT[source][h]:
                    answers.append((source, "0"))
                    continue
                urn, t = urns[source[0]], T[source[0]]
                fresh = rng.random() < t / (t + len(urn))
                urn.append(rng.randint(1, PLAUSIBLE[place]) if fresh else rng.choice(urn))
                answers.append((source, str(urn[-1])))
        problems.append(votes_of(answers))
    return problems


def test_simulated_data_is_recovered_and_probabilities_are_true() -> None:
    problems = simulated(800)
    table = Table.build(problems)
    fitted = fit(table)
    assert min(np.diff(fitted.objectives)) > -1e-6, "the objective never falls"
    assert fitted.converged
    p = fitted.parameters
    for i, source in enumerate(table.sources):
        assert p.right[i] == pytest.approx(RIGHT[source], abs=0.07 if source != F else 0.1), source
    assert p.weights.sum(1) == pytest.approx(WEIGHTS.sum(1), abs=0.05)
    assert p.concentration[table.families.index("a"), 1:] == pytest.approx(T["a"], rel=0.6)

    choice, place = BestAnswers.of(table, posterior(table, p)), table.place()
    found = [place[pattern_of(v)] for v in problems]
    answers = [v.classes[choice.answer[i] - table.first_answer[i]].answer for i, v in zip(found, problems, strict=True)]
    right = [answer == "0" for answer in answers]
    calibration = Reliability.of(choice.p[found].tolist(), right)
    assert calibration.error < 0.03
    assert abs(calibration.overconfidence) < 0.02
    kept = kept_patterns(choice, table.weights, 0.5, None)
    noise = label_noise(table, fitted, choice, kept, seed=1, resamples=5)
    wrong = sum(kept[i] and not ok for i, ok in zip(found, right, strict=True))
    assert noise.low <= wrong <= noise.high
    assert noise.high - noise.low < 0.06 * len(problems)

    naive = fit(table, independent=True, iterations=40)
    claimed = posterior(table, naive.parameters)
    chosen = BestAnswers.of(table, claimed)
    answers = [v.classes[chosen.answer[i] - table.first_answer[i]].answer for i, v in zip(found, problems, strict=True)]
    overconfident = Reliability.of(chosen.p[found].tolist(), [answer == "0" for answer in answers])
    assert overconfident.overconfidence > 5 * max(0.002, abs(calibration.overconfidence)), "votes taken for independent"


def test_many_equal_votes_of_one_model_say_little_more_than_a_few() -> None:
    """The forum contradicts a model whose errors repeat: the more votes, the more certain, but never beyond doubt."""
    right, model = {F: 0.95, ("m", "cot"): 0.7}, ("m", "cot")

    def p(number: int, t: float) -> float:
        return probabilities(votes_of([(F, "A"), *[(model, "B")] * number]), right=right, v=40, t={"m": t})["A"]

    assert p(32, 1e6) < 1e-9 < 0.05 < p(4, 0.1)
    assert p(32, 1e6) < p(32, 1.0) < p(32, 0.1)


def test_the_budget_keeps_the_most_probable() -> None:
    choice = BestAnswers(np.arange(4), np.array([0.9, 0.6, 0.9, 0.4]))
    weights = np.array([10.0, 10.0, 5.0, 100.0])
    assert kept_patterns(choice, weights, 0.5, None).tolist() == [True, True, True, False]
    assert kept_patterns(choice, weights, 0.5, 1.5).tolist() == [True, False, True, False]
    assert kept_patterns(choice, weights, 0.5, 1.49).tolist() == [False] * 4, "equal ones stay together"
    assert kept_patterns(choice, weights, 0.0, 1e9).tolist() == [True] * 4


def test_calibration_by_hand() -> None:
    c = Reliability.of([0.95, 0.95, 0.6, 0.6], [True, True, True, False])
    assert (c.error, c.overconfidence) == pytest.approx(((0.05 * 2 + 0.1 * 2) / 4, 0.775 - 0.75))
    assert c.brier == pytest.approx((2 * 0.05**2 + 0.4**2 + 0.6**2) / 4)
    assert Reliability.of([], []).answers == 0
    assert [b.answers for b in Reliability.of([0.0, 1.0, 0.5], [False, True, True]).bins] == [1, 1, 1]


# -- the stages --------------------------------------------------------------------------------------------------------


def problem_set() -> tuple[list[Problem], list[Generation]]:
    rng = random.Random(3)
    problems, given = [], []
    for i in range(60):
        truth, forum = str(i), None if i % 4 == 0 else str(i if i % 7 else i + 1)
        problem = Problem.make(f"q{i}", expected_answer=forum, problem_type="has_answer_extracted" if forum else None)
        problems.append(problem)
        for model in ("a", "b"):
            answers = [truth if rng.random() < 0.8 else str(i + rng.randint(2, 5)) for _ in range(4)]
            given += solutions(problem, [*answers, None], model=model)
    return problems, given


async def calibrated(grading: GradingPool, folder: Path, problems: Any, given: Any, **config: Any) -> StageRun:
    counted = await run_stage(
        AnswerVotes(AnswerVotesConfig()), folder / "votes", grading=grading, problems=problems, generations=given
    )
    assert len(counted.records) == len({p.id for p in problems})
    truth = [p.with_(expected_answer=p.problem[1:]) for p in problems if p.problem[1:].isdigit()]
    stage = CalibratedAnswers(CalibratedConfig(**{"resamples": 2} | config))
    return await run_stage(stage, folder / "out", grading=grading, problems=counted.records, truth=truth)


async def test_problems_get_their_most_probable_answer(grading: GradingPool, tmp_path: Path) -> None:
    problems, given = problem_set()
    run = await calibrated(grading, tmp_path / "1", problems, given, threshold=0.6)
    out = {p.problem: p for p in run.records}
    repaired = out["q7"]
    assert (repaired.expected_answer, repaired.extra["answer"]["forum"]) == ("7", "8")
    assert repaired.extra["answer"]["from"] == "calibrated"
    assert out["q1"].extra["answer"]["from"] == "forum"
    assert all(p.extra.keys() == {"answer"} and p.extra["answer"]["p"] >= 0.6 for p in run.records)
    metrics = run.context.metrics
    assert metrics["calibration"]["answers"] == 60
    assert metrics["wrong_answers_low"] <= metrics["wrong_answers_expected"] <= metrics["wrong_answers_high"] + 1
    assert metrics["witnesses"] == 3
    mixed = [random.Random(5).sample(rows, len(rows)) for rows in (problems, given)]
    again = await calibrated(grading, tmp_path / "2", *mixed, threshold=0.6)
    assert {p.id: p for p in again.records} == {p.id: p for p in run.records}
    assert again.context.metrics["answer_model"] == metrics["answer_model"]
    few = await calibrated(grading, tmp_path / "3", problems, given, budget=0.1)
    assert sum(1 - p.extra["answer"]["p"] for p in few.records) <= 0.1 + 60 * 5e-5
    assert set(few.reasons) <= {"beyond the budget of wrong answers", "no answer is probable enough"}
    assert len(few.records) + len(few.drops) == 60


async def test_odd_problems(grading: GradingPool, tmp_path: Path) -> None:
    names = ("nothing", "alone", "same", "unicode", "open")
    nothing, alone, same, unicode, opened = (Problem.make(name) for name in names)
    alone, unicode = alone.with_(expected_answer="7"), unicode.with_(expected_answer="½")
    opened = opened.with_(expected_answer="7")
    given = solutions(same, ["3"] * 32) + solutions(unicode, ["0.5", r"\frac12", "π"]) + solutions(nothing, [None] * 3)
    given += solutions(opened, ["seven or so"] * 3, verdict="equal")
    run = await calibrated(grading, tmp_path, [nothing, alone, same, unicode, opened], given, threshold=0.0)
    assert run.reasons == ["no expected answer and no solution with one"]
    assert {p.problem: p.expected_answer for p in run.records} == {
        "alone": "7", "same": "3", "unicode": "½", "open": "7",
    }  # fmt: skip
    assert run.context.metrics["witnesses"] == 2
    none = await run_stage(CalibratedAnswers(CalibratedConfig()), tmp_path / "none", problems=[], grading=grading)
    assert none.records == []
    with pytest.raises(UserError, match="answer_votes"):
        await run_stage(CalibratedAnswers(CalibratedConfig()), tmp_path / "uncounted", problems=[alone])
