"""The contest laboratory's speed, and problems solved in an hour.

    python benchmarks/contest.py speed
    python benchmarks/contest.py hour ROLLOUTS --speed 1:400,16:120 --base-seconds 2 --bank-seconds 3

``speed``: how many problems are replayed in a second, on one core. 16 solutions of each of 50 made-up problems, on a
machine that they share. *Fresh* replays go through all events of a problem. In contests, replays that the deadline does
not touch are kept and used again.

``hour``: stored solutions of a model, replayed on one machine by the solver of section 6.3 (a batch that ends early
when answers agree, a time bank) and by fixed numbers of solutions that are all waited for, with the majority's answer.
An hour is filled with contests one after the other. The ratio's 95% interval is a bootstrap over problems, paired: a
problem that is drawn is drawn for both.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np

from nemo_openmath.competition.lab.command import Asked
from nemo_openmath.competition.lab.contest import ContestPlan, ContestSettings, Laboratory, Rehearsal
from nemo_openmath.competition.lab.replay import ProblemReplay
from nemo_openmath.competition.lab.rollouts import StoredProblem, StoredSolution
from nemo_openmath.competition.lab.search import read_policy
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import Policy
from nemo_openmath.core.records import Mode
from nemo_openmath.grading import compare

SPEED = Speed(((1, 110.0), (8, 72.0), (16, 51.0)))
FIXED = (1, 2, 4, 8, 16, 32, 64)
RESAMPLES = 10_000


def made_up_problems(rng: random.Random) -> list[StoredProblem]:
    made = []
    for name in range(50):
        share = rng.random()
        answers = ["1" if rng.random() < share else str(rng.randint(2, 6)) for _ in range(32)]
        solutions = [StoredSolution("", a, a == "1", rng.randint(500, 16000)) for a in answers]
        made.append(StoredProblem.make(str(name), solutions, compare))
    return made


def speed() -> None:
    """Print replays a second."""
    rng = random.Random(1)
    stored = made_up_problems(rng)
    orders = [rng.sample(range(32), 32) for _ in range(40)]
    for name, policy in (("agree 4 of 16", Policy()), ("all 16", Policy(agree=16)), ("bayes", Policy(rule="bayes"))):
        replay, count, began = ProblemReplay(policy, SPEED.rates(16)), 0, time.process_time()
        while (seconds := time.process_time() - began) < 3:
            replay.run(stored[count % 50], orders[count // 50 % 40], deadline=350.0)
            count += 1
        print(f"fresh, {name}: {count / seconds:,.0f} problem-replays a second")
    for base in (350.0, 120.0, 60.0):
        plan = ContestPlan.make(stored, ContestSettings(base_seconds=base, bank_seconds=0.6 * base, contests=1000))
        began = time.process_time()
        rehearsal = Laboratory(stored, SPEED).rehearse(Policy(), plan)
        seconds = time.process_time() - began
        print(f"contests of {base:g} s a problem: {50_000 / seconds:,.0f} a second; score {rehearsal.score:.3f}")


def hour(options: argparse.Namespace) -> None:
    """Print problems solved in an hour, by the contest's solver and by fixed numbers of solutions."""
    settings = ContestSettings(base_seconds=options.base_seconds, bank_seconds=options.bank_seconds)
    mode = None if options.mode is None else Mode(options.mode)
    rollouts, machine = Asked(tuple(options.rollouts), options.speed, settings, mode=mode).open()
    policy = Policy() if options.policy is None else read_policy(options.policy)
    plan, laboratory = ContestPlan.make(rollouts.problems, settings), Laboratory(rollouts.problems, machine)
    solver = laboratory.rehearse(policy, plan)
    # of fixed numbers nothing is cut off early, and nothing is left of the time
    fixed = {n: Policy(batch=n, agree=n) for n in FIXED if n <= min(rollouts.fewest, max(16, policy.batch))}
    print(f"{len(rollouts.problems)} problems, {sum(len(p.solutions) for p in rollouts.problems)} solutions; {machine}")
    print(f"{'':<22}{'score':>7}{'seconds':>9}{'solved in an hour':>19}   the solver solves as many times more (95%)")
    print(_row(f"solver: {policy.agree} of {policy.batch}", solver))
    for number, other in fixed.items():
        rehearsal = laboratory.rehearse(other, plan)
        low, high = ratio_interval(solver, rehearsal)
        ratio = per_hour(solver) / per_hour(rehearsal)
        print(f"{_row(f'all of {number}', rehearsal)}   {ratio:.2f} ({low:.2f} to {high:.2f})")


def _row(name: str, rehearsal: Rehearsal) -> str:
    return f"{name:<22}{rehearsal.score:>7.3f}{rehearsal.seconds:>9.2f}{per_hour(rehearsal):>19,.0f}"


def _means(rehearsal: Rehearsal) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of right runs and the mean seconds of each problem."""
    return rehearsal.values, np.array([tally.seconds / tally.runs for tally in rehearsal.tallies])


def per_hour(rehearsal: Rehearsal) -> float:
    """Return how many problems are solved in an hour."""
    right, seconds = _means(rehearsal)
    return float(3600 * right.sum() / seconds.sum())


def ratio_interval(first: Rehearsal, second: Rehearsal) -> tuple[float, float]:
    """Return the 95% interval of the ratio of problems solved in an hour: a bootstrap over problems, paired."""
    assert [t.id for t in first.tallies] == [t.id for t in second.tallies]
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(first.tallies), size=(RESAMPLES, len(first.tallies)))
    sums = [[values[drawn].sum(axis=1) for values in _means(rehearsal)] for rehearsal in (first, second)]
    (right, seconds), (other_right, other_seconds) = sums
    ratios = (right / seconds) / np.maximum(other_right / other_seconds, 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("speed")
    of_hour = verbs.add_parser("hour")
    of_hour.add_argument("rollouts", type=Path, nargs="+")
    of_hour.add_argument("--speed", default="stored")
    of_hour.add_argument("--mode", choices=["cot", "tir"])
    of_hour.add_argument("--policy", type=Path)
    of_hour.add_argument("--base-seconds", type=float, default=350.0)
    of_hour.add_argument("--bank-seconds", type=float, default=210.0)
    options = parser.parse_args()
    if options.verb == "speed":
        speed()
    else:
        hour(options)


if __name__ == "__main__":
    main()
