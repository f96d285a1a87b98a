"""The contest laboratory: scores against enumeration, the loss, the search, what is read and refused."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import orjson
import pytest

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.competition.lab.contest import (
    ContestPlan,
    ContestSettings,
    Laboratory,
    _Runner,
    deadline_matters_by_time_alone,
)
from nemo_openmath.competition.lab.glimpses import glimpses_of
from nemo_openmath.competition.lab.grouping import AnswerClasses
from nemo_openmath.competition.lab.reading import read_rollouts
from nemo_openmath.competition.lab.replay import UNLIMITED, ProblemReplay
from nemo_openmath.competition.lab.rollouts import Glimpse, StoredProblem, StoredSolution
from nemo_openmath.competition.lab.search import PolicyCandidates, read_choices, search
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.lab.timing import Shared
from nemo_openmath.competition.policy import Policy
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.estimators import majority_at_k
from nemo_openmath.grading import compare, majority
from nemo_openmath.synthesis.genselect.select import Selection

SPEED = Speed(((1, 110.0), (8, 72.0), (16, 51.0)))


def solution(answer: str | None, seconds: float, tokens: int = 100, **values: object) -> StoredSolution:
    """A solution that is right where its answer is "1"."""
    return StoredSolution("", answer, answer == "1", tokens, ((seconds, tokens),), **values)  # type: ignore[arg-type]


def random_problems(rng: random.Random, number: int, solutions: int) -> list[StoredProblem]:
    problems = []
    for name in range(number):
        share = rng.random()
        made = [
            solution(
                "1" if rng.random() < share else rng.choice(["2", "3", "4", None]),
                rng.uniform(1, 60),
                rng.randint(10, 5000),
                glimpses=(Glimpse(rng.randint(1, 400), rng.choice(["1", "2"])),) if rng.random() < 0.5 else (),
            )
            for _ in range(solutions)
        ]
        problems.append(StoredProblem.make(f"p{name}", made, compare, glimpsed={"1": True, "2": False}))
    return problems


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twice", [False, True])
def test_the_score_is_that_of_all_orders_and_draws_counted_by_hand(twice: bool) -> None:
    """A batch of two, a bank, and a deadline that some solutions miss: every contest that there is, by other code."""
    table = {"a": [("1", 4), ("2", 9), ("1", 12)], "b": [("2", 1), ("1", 3), (None, 8)]}
    problems = [StoredProblem.make(n, [solution(*s) for s in rows], compare) for n, rows in table.items()]
    policy = Policy(batch=2, agree=2, closing_seconds=0.0)
    draws = list(itertools.permutations(range(3)))
    hands = [
        tuple((p, d) for p, d in zip(order, picks, strict=True))
        for order in itertools.permutations(range(2))
        for picks in itertools.product(range(6), repeat=2)
    ]
    pairs = list(itertools.product(hands[::5], repeat=2)) if twice else [(hand,) for hand in hands]
    settings = ContestSettings(base_seconds=7, bank_seconds=4, twice=twice)
    plan = ContestPlan(settings, tuple(pairs), (tuple(draws), tuple(draws)))
    rehearsal = Laboratory(problems, None).rehearse(policy, plan)

    def points(hand: tuple[tuple[int, int], ...]) -> int:
        saved, total = 0.0, 0
        for place, draw in hand:
            rows = [table["ab"[place]][n] for n in draws[draw][:2]]
            limit = 7 + min(saved, 4)
            heard = sorted((seconds, answer) for answer, seconds in rows if seconds <= limit)
            saved += 7 - (max(seconds for _, seconds in rows) if len(heard) == 2 else limit)
            answers = [answer for _, answer in heard if answer]
            total += bool(answers) and answers[0] == "1"  # of two different ones the first is taken
        return total

    expected = [Fraction(sum(map(points, hand)), len(hand)) for hand in pairs]
    assert rehearsal.points == pytest.approx([float(e) for e in expected], abs=1e-12)
    assert rehearsal.score == pytest.approx(float(sum(expected) / len(expected) / 2), abs=1e-12)
    assert 0 < rehearsal.score < 1
    assert len(set(expected)) > 2


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_without_a_deadline_a_batch_is_a_majority_of_as_many(batch: int) -> None:
    answers = ["1", "2", "2", "1", "3", None]
    problem = StoredProblem.make("p", [solution(a, 5.0) for a in answers], compare)
    orders = list(itertools.permutations(range(6)))
    replay = ProblemReplay(Policy(batch=batch, agree=batch), SPEED.rates(batch))
    share = sum(replay.run(problem, order, deadline=UNLIMITED).right for order in orders) / len(orders)
    (by_estimator,) = majority_at_k([2, 2, 1], [1.0, 0.0, 0.0], 1, [batch])
    assert share == pytest.approx(by_estimator, abs=1e-12)


def test_problems_are_dealt_evenly_and_once_a_contest() -> None:
    problems = random_problems(random.Random(1), 7, 2)
    plan = ContestPlan.make(problems, ContestSettings(problems=3, contests=50, twice=True))
    hands = [[problem for problem, _ in run] for runs in plan.orders for run in runs]
    assert all(len(set(hand)) == 3 for hand in hands)
    counts = [sum(hand.count(p) for hand in hands) // 2 for p in range(7)]
    assert max(counts) - min(counts) <= 1
    with pytest.raises(UserError, match="a contest of 8 problems, and there are 7"):
        ContestPlan.make(problems, ContestSettings(problems=8))


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_divides_exactly() -> None:
    """Each cause alone, and at random: right runs and the three causes are all runs of each problem."""
    policy = Policy(batch=3, agree=2, closing_seconds=0.0)
    cases = {
        "coverage": [("2", 1), ("3", 2), (None, 3)],
        "selection": [("2", 1), ("2", 2), ("1", 3)],  # two agree before the right one is there
        "time": [("2", 1), ("1", 20), ("1", 30)],
        "right": [("1", 1), ("1", 2), ("2", 3)],
    }
    problems = [StoredProblem.make(n, [solution(*s) for s in rows], compare) for n, rows in cases.items()]
    settings = ContestSettings(base_seconds=10, bank_seconds=0, contests=20)
    tallies = Laboratory(problems, None).rehearse(policy, ContestPlan.make(problems, settings)).tallies
    for tally in tallies:
        counts = {"right": tally.right, **{c: getattr(tally.loss, c) for c in ("coverage", "selection", "time")}}
        assert counts.pop(tally.id) == 20, tally
        assert not any(counts.values())
    rng, lost = random.Random(3), Counter[str]()
    problems = random_problems(rng, 8, 8)
    for policy in (Policy(batch=8), Policy(batch=4, rule="bayes"), Policy(batch=6, second=2, second_seconds=1)):
        plan = ContestPlan.make(problems, ContestSettings(base_seconds=12, bank_seconds=5, contests=12, draws=3))
        for t in Laboratory(problems, SPEED).rehearse(policy, plan).tallies:
            causes = {c: getattr(t.loss, c) for c in ("coverage", "selection", "time")}
            assert t.right + sum(causes.values()) == t.runs == 12
            lost.update(causes)
    assert min(lost.values()) > 5, lost


# -- kept replays, shared machines, classes of answers -------------------------------------------------------------


@pytest.mark.parametrize("speed", [None, SPEED])
def test_what_is_kept_is_what_a_fresh_replay_gives(speed: Speed | None) -> None:
    """Replays that the deadline does not touch are kept, and those that it ends are not decided on the way."""
    rng = random.Random(5)
    problems = random_problems(rng, 6, 8)
    plan = ContestPlan.make(problems, ContestSettings(draws=4))
    for _ in range(40):
        batch = rng.randint(1, 8)
        policy = Policy(
            batch=batch,
            agree=rng.randint(1, batch),
            stragglers=rng.randrange(batch),
            partial_weight=rng.choice([0.0, 0.5]),
            closing_seconds=rng.choice([0.0, 3.0]),
        )
        assert deadline_matters_by_time_alone(policy)
        runner = _Runner(policy, Laboratory(problems, speed), plan)
        fresh = ProblemReplay(policy, None if speed is None else speed.rates(batch))
        for _ in range(10):
            problem, draw, deadline = rng.randrange(6), rng.randrange(4), rng.uniform(1, 90)
            expected = fresh.run(problems[problem], plan.draws[problem][draw], deadline=deadline)
            assert runner.run(problem, draw, deadline) == expected
    assert not deadline_matters_by_time_alone(Policy(rule="bayes"))
    assert not deadline_matters_by_time_alone(Policy(second=2))
    assert not deadline_matters_by_time_alone(Policy(final="genselect"))


def test_a_shared_machine_is_what_small_steps_give() -> None:
    """Solutions with code on a shared machine, against a simulation that looks at all of them at every event."""
    rng = random.Random(9)
    rates = SPEED.rates(6)
    for _ in range(50):
        parts = [[(rng.randint(1, 300), rng.uniform(0, 4)) for _ in range(rng.randint(0, 3))] for _ in range(6)]
        lasts = [rng.randint(1, 300) for _ in range(6)]
        machine, cut = Shared(rates), rng.uniform(1, 12)
        for n in range(6):
            points, tokens, now = [], 0, 0.0
            for written, code in parts[n]:
                points += [(now := now + 1, tokens := tokens + written), (now := now + code, tokens)]
            points.append((now + 1, tokens := tokens + lasts[n]))
            machine.begin(n, StoredSolution("", None, False, tokens, tuple(points)))
        ends: dict[int, float] = {}
        written_at_cut: dict[int, float] = {}
        while machine.running:
            at, ended = machine.advance(1e6 if written_at_cut else cut)
            ends |= {n: ended_at for ended_at, n, _ in ended}
            if at >= cut and not written_at_cut:
                written_at_cut = {n: machine.written(n) for n in machine.running}

        left = [
            [*(x for part in parts[n] for x in (["w", part[0]], ["c", part[1]])), ["w", lasts[n]]] for n in range(6)
        ]
        now, expected, done = 0.0, dict[int, float](), [0.0] * 6
        while any(left):
            writing = [n for n in range(6) if left[n] and left[n][0][0] == "w"]
            rate = rates[len(writing)] if writing else 0.0
            step = min(left[n][0][1] / (rate if n in writing else 1.0) for n in range(6) if left[n])
            if now < cut < now + step:
                step = cut - now
            now += step
            for n in range(6):
                if left[n]:
                    left[n][0][1] -= step * (rate if n in writing else 1.0)
                    done[n] += step * rate * (n in writing)
                    while left[n] and left[n][0][1] < 1e-9:
                        left[n].pop(0)
                    if not left[n]:
                        expected[n] = now
            if now == cut:
                assert written_at_cut == pytest.approx({n: done[n] for n in range(6) if left[n]}, abs=1e-6)
        assert ends == pytest.approx(expected, abs=1e-6)


def test_classes_among_any_answers_are_the_graders() -> None:
    rng = random.Random(2)
    for pool in (["1/2", "0.5", "\\frac12", "7", "7.0", "8"], ["50\\%", "0.5", "50", "5 cm", "5", "5 m", "1/2"]):
        grouping = AnswerClasses(pool, compare)
        assert (grouping.fixed is None) == ("50\\%" in pool), "what 50% equals is no equivalence"
        for _ in range(40):
            answers = [rng.choice([*pool, None]) for _ in range(rng.randint(1, 9))]
            vote = majority(answers)
            mine, graders = grouping.of(answers), [vote.group_of(a) for a in answers]
            assert len(set(zip(mine, graders, strict=True))) == len(set(mine)) == len(set(graders))


def test_speeds_between_and_beside_the_points() -> None:
    assert SPEED.rate(1) == 110
    assert SPEED.rate(32) == 51 / 2, "a full machine is shared"
    assert 1 / SPEED.rate(12) == pytest.approx((1 / 72 + 1 / 51) / 2), "the time of a step is interpolated"
    assert Speed(((4, 60.0), (8, 40.0))).rate(1) == 60, "nothing faster was measured"
    assert Speed.parse("stored") is None
    assert Speed.parse("80") is not None
    assert Speed.parse("80").rate(900) == 80  # type: ignore[union-attr]
    for text, problem in (
        ("8:10,1:20", "out of order"),
        ("1:10,8:20", "faster"),
        ("x", "not a speed"),
        ("1:0", "above 0"),
    ):
        with pytest.raises(UserError, match=problem):
            Speed.parse(text)


# -- the search --------------------------------------------------------------------------------------------------------


def planted(rng: random.Random) -> StoredProblem:
    """A problem on which the first four that agree are right: three wrong ones come first, or right ones are followed
    by a wrong majority."""
    if rng.random() < 0.5:
        rows = [("2", rng.uniform(1, 2)) for _ in range(3)] + [("1", rng.uniform(5, 9)) for _ in range(9)]
    else:
        rows = [("1", rng.uniform(1, 2)) for _ in range(4)] + [("2", rng.uniform(5, 9)) for _ in range(8)]
    return StoredProblem.make(f"p{rng.random()}", [solution(*row) for row in rows], compare)


@pytest.mark.parametrize("method", ["grid", "halving"])
def test_a_planted_best_policy_is_found(tmp_path: Path, method: str) -> None:
    rng = random.Random(4)
    problems = [planted(rng) for _ in range(60)]
    file = tmp_path / "choices.yaml"
    file.write_text(
        f"policy: {{batch: 12, agree: 6}}\nmethod: {method}\nfirst_contests: 3\n"
        "choices: {agree: [2, 3, 4, 5, 6, 20], stragglers: [0, 2]}\n"
    )
    asked = read_choices(file)
    assert len(asked.candidates) == 10
    assert len(asked.refused) == 2, "agree above batch is no policy"
    lines: list[str] = []
    found = search(problems, asked, ContestSettings(contests=27, draws=6, base_seconds=20), None, lines.append)
    assert found.winner.policy.agree == 4
    assert found.searched.score == found.held_out.score == 1.0
    difference, low, _ = found.difference
    assert difference > 0.3
    assert low > 0
    assert {t.id for t in found.searched.tallies}.isdisjoint(t.id for t in found.held_out.tallies)
    rounds = [(len(r.scores), r.contests) for r in found.rounds]
    assert rounds == ([(10, 27)] if method == "grid" else [(10, 3), (4, 9), (2, 27)])
    assert len(lines) == len(rounds)


def test_choices_that_cannot_be_are_named(tmp_path: Path) -> None:
    file = tmp_path / "choices.yaml"
    for text, problem in (
        ("choices: {agre: [3]}", "agre"),
        ("choices: {agree: 3}", "expected a list"),
        ("choices: {agree: [x]}", "agree"),
        ("policy: {batch: 4}", "there are none"),
        ("choices: {bayes.sure: [2.0]}", "sure"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_choices(file)
    problems = random_problems(random.Random(1), 4, 4)
    wide = PolicyCandidates(Policy(batch=8), "grid", 1, (), ())
    with pytest.raises(UserError, match=r"begins up to 8 solutions, and problem p\d has 4"):
        search(problems, wide, ContestSettings(), None)
    laboratory = Laboratory(problems, None)
    for policy, problem in (
        (Policy(batch=4, entropy_weight=1), "log-probabilities"),
        (Policy(batch=4, final="genselect"), "no selection"),
    ):
        with pytest.raises(UserError, match=problem):
            laboratory.check(policy)


# -- what is read ------------------------------------------------------------------------------------------------------


def grade(pairs):  # type: ignore[no-untyped-def]
    return [compare(*pair) for pair in pairs]


def generation(name: str, text: str, finish: Finish = Finish.STOP, **values: object) -> Generation:
    transcript = Transcript((), (Span(Author.MODEL, text),), finish is Finish.STOP)
    fields = {
        "mode": Mode.COT,
        "verdict": Verdict.NOT_EQUAL,
        "expected_answer": "7",
        "completion_tokens": len(text),
    } | values
    return Generation(
        id=name,
        problem_id="p",
        model="m",
        sample=0,
        transcript=transcript.to_json(),
        finish=finish,
        **fields,  # type: ignore[arg-type]
    )


def test_records_are_read_with_what_unfinished_ones_hold(tmp_path: Path) -> None:
    rows = [
        generation("a", "so \\boxed{8}", predicted_answer="8"),
        generation("b", "so \\boxed{7}", predicted_answer="7", verdict=Verdict.EQUAL),
        generation("c", "it may be \\boxed{7.0} or", Finish.LENGTH),
        generation("d", "no box", Finish.LENGTH, extra={"timing": {"points": [[2, 3]], "began": 0, "code_seconds": 0}}),
    ]
    write_records(tmp_path / "graded", rows)
    rollouts = read_rollouts([tmp_path / "graded"], grade)
    (problem,) = rollouts.problems
    assert [(s.answer, s.right, s.whole) for s in problem.solutions] == [
        ("8", False, True),
        ("7", True, True),
        ("7.0", True, False),
        (None, False, False),
    ]
    assert problem.solutions[3].seconds == 2
    cut = problem.solutions[2]
    assert cut.glimpsed(cut.tokens - 3).answer == "7.0"
    assert cut.glimpsed(12).answer is None, "the box is not there yet, or open"
    with pytest.raises(UserError, match="has no time of its own"):
        Laboratory(rollouts.problems, None)
    write_records(tmp_path / "open", [generation("e", "x", verdict=None)])
    with pytest.raises(UserError, match="no verdict"):
        read_rollouts([tmp_path / "open"], grade)
    write_records(tmp_path / "tir", [generation("f", "x", mode=Mode.TIR)])
    with pytest.raises(UserError, match="several kinds"):
        read_rollouts([tmp_path / "graded", tmp_path / "tir"], grade)
    with pytest.raises(UserError, match="given twice"):
        read_rollouts([tmp_path / "graded", tmp_path / "graded"], grade)


def test_selections_decide_where_solutions_differ(tmp_path: Path) -> None:
    """The model's choice outvotes the majority, in the time that the selection takes; without one the vote decides."""
    rows = [
        generation(n, "x", predicted_answer=a, verdict=Verdict.EQUAL if a == "7" else Verdict.NOT_EQUAL)
        for n, a in (("a", "8"), ("b", "8"), ("c", "7"))
    ]
    write_records(tmp_path / "graded", rows)
    chosen = generation(
        "s", "c", mode=Mode.GENSELECT, parents=("g", "a", "c"), extra=Selection("g", "c", 2, 0).to_extra()
    ).with_(completion_tokens=500)
    write_records(tmp_path / "selections", [chosen])
    (problem,) = read_rollouts([tmp_path / "graded"], grade, selections=[tmp_path / "selections"]).problems
    policy = Policy(batch=3, agree=3, final="genselect", select_seconds=20.0)
    replay = ProblemReplay(policy, [0.0, 100.0, 100.0, 100.0])
    selected = replay.run(problem, [0, 1, 2], deadline=100.0)
    assert (selected.answer, selected.right, selected.selected) == ("7", True, 1)
    assert selected.seconds == pytest.approx(1 / 100 + 500 / 100)
    late = replay.run(problem, [0, 1, 2], deadline=15.0)
    assert (late.answer, late.selected, late.unselected) == ("8", 0, False), "no time is left for a selection"
    slow = ProblemReplay(policy, [0.0, 10.0, 10.0, 10.0]).run(problem, [0, 1, 2], deadline=100.0)
    assert (slow.answer, slow.selected) == ("8", 0), "it would have taken 50 seconds"


def test_tables_are_read_or_refused_by_row(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    row = {"problem_id": "p", "answer": "7", "right": True, "tokens": 10}
    file.write_bytes(
        b"".join(orjson.dumps(r) + b"\n" for r in (row, row | {"answer": None, "right": False, "seconds": 3}))
    )
    (problem,) = read_rollouts([file], grade).problems
    assert [(s.answer, s.right, s.tokens, s.seconds) for s in problem.solutions] == [
        ("7", True, 10, None),
        (None, False, 10, 3.0),
    ]
    for change, message in (
        ({"tokens": -1}, "tokens is -1"),
        ({"right": "maybe"}, "right is 'maybe'"),
        ({"answer": None}, "there is no answer"),
        ({"problem_id": None}, "problem_id is None"),
        ({"length": 3}, "unknown column 'length'"),
        ({"right": False, "answer": " 7"}, "right is false, and the same answer to the same problem is true in row 1"),
    ):
        file.write_bytes(orjson.dumps(row) + b"\n" + orjson.dumps(row | change) + b"\n")
        with pytest.raises(UserError, match=f":2: .*{message}"):
            read_rollouts([file], grade)
    with pytest.raises(UserError, match="is given twice"):
        read_rollouts([file, tmp_path / "." / "rollouts.jsonl"], grade)


def test_glimpses_follow_the_rule_for_whole_texts() -> None:
    said = "a \\boxed{1} b \\boxed{2} c</think> d \\boxed{3}"
    found = [(g.tokens, g.answer) for g in glimpses_of(said, len(said))]
    ends = [
        said.index("1}") + 2,
        said.index("\\boxed{2") + 7,
        said.index("2}") + 2,
        said.index("</think>") + 8,
        len(said),
    ]
    assert found == list(zip(ends, ["1", None, "2", None, "3"], strict=True))
