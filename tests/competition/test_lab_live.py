"""The replay is the live solver: random solutions, policies and times are given to both, one problem at a time and in
whole contests. ``tests.competition.mutants`` changes the live one alone, and sees these fail."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import SolverSettings, solve
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.lab.contest import ContestPlan, ContestSettings, Laboratory, _Runner
from nemo_openmath.competition.lab.replay import ProblemReplay
from nemo_openmath.competition.lab.rollouts import StoredProblem
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import BayesPrior, Reason
from nemo_openmath.competition.solver import Answer
from nemo_openmath.competition.stage import Compete, CompeteConfig
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.records.store import write_records
from nemo_openmath.grading import compare
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.played import PlayedEngine, Script, ids_of, stored
from tests.competition.timed import TimedGrader, TimedSandbox
from tests.support.services import Lent, stage_context
from tests.support.virtual_time import VirtualClock, in_virtual_time

RULES = [AnswerRule(), AnswerRule(), AnswerRule(integers=True, most=9, modulo=10), AnswerRule(integers=True, most=8)]
SPELLINGS = ["17", "1/2", "0.5", "\\frac12", "50\\%", "50", "7", "7.0", "8", "9", None]
CASES, CONTESTS = 160, 10
ROUNDED = 5e-3  # seconds: records hold milliseconds
SPEED = Speed(((1, 40.0), (2, 31.0), (6, 12.0)))


def random_script(rng: random.Random) -> Script:
    """A solution: perhaps a box in its thinking, perhaps a box at its end, perhaps too long."""
    early, answer = rng.choice(SPELLINGS), rng.choice(SPELLINGS)
    thought = "so " * rng.randint(1, 8) + ("" if early is None or rng.random() < 0.4 else f"\\boxed{{{early}}} hm")
    text = f"{thought}</think> Well." + ("" if answer is None else f" \\boxed{{{answer}}}")
    whole = rng.random() < 0.85
    seconds = rng.uniform(0.2, 10.0)
    return Script(text if whole else text[: rng.randint(10, len(text))], seconds, -rng.uniform(0, 3), whole)


def distinct(tokenizer: ChatTokenizer, scripts: list[Script]) -> list[Script]:
    """Make the lengths differ: which of two that end at one moment is heard first is the event loop's affair."""
    lengths: set[int] = set()
    out = []
    for script in scripts:
        while (length := len(ids_of(tokenizer, script))) in lengths:
            script = replace(script, text=f"so {script.text}")
        lengths.add(length)
        out.append(script)
    return out


def random_policy(rng: random.Random) -> SolverSettings:
    batch = rng.randint(1, 7)
    return SolverSettings(
        batch=batch,
        rule=rng.choice(["votes", "votes", "bayes"]),
        agree=rng.randint(1, min(batch, 4)),
        bayes=BayesPrior(sure=rng.choice([0.5, 0.7, 0.95]), settled=rng.choice([0.6, 0.9]), checks=rng.choice([3, 20])),
        stragglers=rng.choice([0, 0, rng.randrange(batch)]),
        partial_weight=rng.choice([0.0, 0.5, 1.0]),
        entropy_weight=rng.choice([0.0, 0.0, 1.0]),
        second=rng.choice([0, 0, 2, 4]),
        second_seconds=rng.choice([0.0, 2.0]),
        closing_seconds=rng.choice([0.05, 0.3, 5.0]),
        replace=0,
        answers=rng.choice(RULES),
        rollout=RolloutSettings(max_tokens=1000, temperature=1.0),
    )


def stored_problem(tokenizer: ChatTokenizer, name: str, scripts: list[Script], rule: AnswerRule) -> StoredProblem:
    """A problem whose right answer is 7."""
    read = [rule.read(answer).answer for answer in SPELLINGS]
    glimpsed = {answer: compare(answer, "7").is_equal for answer in read if answer is not None}
    solutions = [stored(tokenizer, f"{name}{n}", script, "7", rule) for n, script in enumerate(scripts)]
    return StoredProblem.make(name, solutions, compare, glimpsed=glimpsed)


async def live(
    tokenizer: ChatTokenizer, scripts: list[Script], policy: SolverSettings, rates: list[float] | None, seconds: float
) -> Answer:
    engine = PlayedEngine(tokenizer, {"": scripts}, rates)
    template = load_template("cot")
    return await solve(engine, tokenizer, None, template, "p", policy, seconds=seconds, seed=1, clock=VirtualClock())


@pytest.mark.parametrize("shared", [False, True])
def test_the_replay_equals_the_live_solver(tokenizer: ChatTokenizer, shared: bool) -> None:
    """Answer, reason and time to the event are the same, and so is the number of solutions."""
    rng = random.Random(20 + shared)
    reasons: Counter[Reason] = Counter()
    answered = 0
    for case in range(CASES):
        policy = random_policy(rng)
        number = policy.batch + policy.second
        scripts = distinct(tokenizer, [random_script(rng) for _ in range(number)])
        seconds = rng.choice([rng.uniform(1, 12), 30.0])
        rates = SPEED.rates(number) if shared else None
        problem = stored_problem(tokenizer, "p", scripts, policy.answers)
        replayed = ProblemReplay(policy, rates).run(problem, range(number), deadline=seconds)
        answer = in_virtual_time(live(tokenizer, scripts, policy, rates, seconds))
        said = f"case {case}, {seconds:.3f} s: {policy}\nreplayed {replayed}\n"
        said += f"live {answer.reason} at {answer.seconds}: {answer.answer}"
        said += "".join(f"\n{t.sample} at {t.at}: {t.written}, whole {t.whole}" for t in answer.trials)
        assert answer.reason is replayed.reason, said
        assert answer.seconds == pytest.approx(replayed.seconds, abs=1e-6), said
        assert len(answer.trials) == replayed.begun, said
        groups = problem.grouping.of([answer.answer, replayed.answer])
        assert groups[0] == groups[1], said
        if replayed.reason in (Reason.TIME, Reason.FINISHED):  # elsewhere the engine forgets what it had written
            assert answer.completion_tokens == pytest.approx(replayed.tokens, abs=number), said
        reasons[replayed.reason] += 1
        answered += replayed.answer is not None
    assert set(reasons) == set(Reason), f"too few kinds of ends: {reasons}"
    assert answered > CASES // 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_contest_that_is_replayed_equals_the_stage(tokenizer: ChatTokenizer, tmp_path: Path, shared: bool) -> None:
    """With a bank, a total and a reserve each problem has the same time, ends alike, and has the same answer."""
    rng, limited = random.Random(30 + shared), 0
    for case in range(CONTESTS):
        policy, names = random_policy(rng), [f"Problem {n}" for n in "ABCDEF"]
        number = policy.batch + policy.second
        base = rng.uniform(2, 8)
        settings = ContestSettings(
            base_seconds=base,
            bank_seconds=rng.choice([0.0, 1.5, 5.0]),
            total_seconds=base * len(names) * rng.choice([0.3, 0.6, 1.0]),
            reserve_seconds=rng.choice([0.0, 1.0, 20.0]),
        )
        scripts = {name: distinct(tokenizer, [random_script(rng) for _ in range(number)]) for name in names}
        speed = SPEED if shared else None
        stored = [stored_problem(tokenizer, name, scripts[name], policy.answers) for name in names]
        order = tuple((place, 0) for place in range(len(names)))
        plan = ContestPlan(settings, ((order,),), ((tuple(range(number)),),) * len(names))
        replayed = list(_Runner(policy, Laboratory(stored, speed), plan).contest(order))
        engine = PlayedEngine(tokenizer, scripts, None if speed is None else speed.rates(number))
        records = live_contest(engine, tmp_path / str(case), names, settings, policy)
        bank = settings.bank()
        for place, (replay, record) in enumerate(zip(replayed, records, strict=True)):
            note, said = Submission.of(record), f"case {case}, problem {place}: {policy} {settings}"
            allowed = bank.allowance(len(names) - place - 1)
            limited += allowed < base - 1e-6
            bank.spend(replay.seconds)
            assert note.allowed == pytest.approx(allowed, abs=ROUNDED), said
            assert note.seconds == pytest.approx(replay.seconds, abs=ROUNDED), said
            assert note.details["reason"] == replay.reason, said
            assert record.correct == replay.right, said
            groups = stored[place].grouping.of([record.predicted_answer, replay.answer])
            assert groups[0] == groups[1], said
    assert limited > CONTESTS, "the total hardly ever mattered"


def live_contest(
    engine: PlayedEngine, folder: Path, names: list[str], settings: ContestSettings, policy: SolverSettings
) -> list[Generation]:
    """Run the stage over problems whose answer is 7, and return its submissions."""
    problems = [Problem.make(f"{name}?", expected_answer="7") for name in names]
    write_records(folder / "problems", problems)
    config = CompeteConfig(
        "m",
        Mode.COT,
        settings.base_seconds,
        settings.bank_seconds,
        settings.total_seconds,
        settings.reserve_seconds,
        solver=policy,
    )
    stage = Compete(config)
    stage.clock = VirtualClock()
    lent = Lent(engine=engine, tokenizer=engine.tokenizer, sandbox=TimedSandbox())
    lent._grading = TimedGrader()  # type: ignore[assignment]
    context = stage_context({"problems": [folder / "problems"]}, folder / "out", services=lent)
    in_virtual_time(stage.run(context))
    return [r for r in read_records(folder / "out", Generation) if r.mode == Mode.COMPETITION]
