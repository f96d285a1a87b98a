"""How many problems the contest laboratory replays in a second, on one core.

    python benchmarks/contest.py

16 solutions of each of 50 made-up problems, on a machine that they share. *Fresh* replays go through all events of a
problem. In contests, replays that the deadline does not touch are kept and used again.
"""

from __future__ import annotations

import random
import time

from nemo_openmath.competition.lab.contest import ContestPlan, ContestSettings, Laboratory
from nemo_openmath.competition.lab.replay import ProblemReplay
from nemo_openmath.competition.lab.rollouts import StoredProblem, StoredSolution
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import Policy
from nemo_openmath.grading import compare

SPEED = Speed(((1, 110.0), (8, 72.0), (16, 51.0)))


def problems(rng: random.Random) -> list[StoredProblem]:
    made = []
    for name in range(50):
        share = rng.random()
        answers = ["1" if rng.random() < share else str(rng.randint(2, 6)) for _ in range(32)]
        solutions = [StoredSolution("", a, a == "1", rng.randint(500, 16000)) for a in answers]
        made.append(StoredProblem.make(str(name), solutions, compare))
    return made


def main() -> None:
    rng = random.Random(1)
    stored = problems(rng)
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


if __name__ == "__main__":
    main()
