"""Contests of stored rollouts: problems in random orders, the time bank, and the points.

Everything random is drawn before a policy is known: the problems of each contest, their order, and which stored
solution is sample number n. So policies are compared on the same contests, and a seed gives the same contests
everywhere.

Problems are dealt like cards: each is in as many contests as any other, or in one more. The score is the mean over
problems of the share of their runs that were right, so an interval over problems is an interval of the score.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.lab.loss import LossTally
from nemo_openmath.competition.lab.replay import UNLIMITED, ProblemReplay, ReplayedProblem
from nemo_openmath.competition.lab.rollouts import StoredProblem
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import Policy
from nemo_openmath.core.bounds import AnyInt, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.evaluation.intervals import share_interval


@dataclass(frozen=True)
class ContestSettings:
    """Which contests are rehearsed."""

    problems: NonNegativeInt = 0
    """Problems of a contest; 0: all that there are, at most 50. The paper's has 50."""
    base_seconds: PositiveFloat = 350.0
    """Seconds of every problem. Paper section 6.3.4."""
    bank_seconds: NonNegativeFloat = 210.0
    """Seconds that a problem may have from the bank, at most. Paper section 6.3.4."""
    total_seconds: PositiveFloat | None = None
    """Seconds of a whole contest, of each run where problems are run twice; null: the base time of all problems, which
    the bank keeps by itself."""
    reserve_seconds: NonNegativeFloat = 10.0
    """Seconds that each problem keeps whatever happened before it, at most its base time."""
    contests: PositiveInt = 200
    """Contests that are rehearsed."""
    draws: PositiveInt = 32
    """Draws of each problem's solutions. A contest takes one of them; each is replayed once for a policy where the
    deadline does not matter."""
    twice: bool = False
    """Whether each problem is run twice, for half a point each, as in AIMO-3. The second run of a contest has a bank of
    its own. The expected score is the same, the spread is smaller."""
    seed: AnyInt = 0

    @property
    def runs(self) -> int:
        """Runs of a contest."""
        return 2 if self.twice else 1

    def bank(self) -> TimeBank:
        """Return the bank of a run."""
        return TimeBank(self.base_seconds, self.bank_seconds, total=self.total_seconds, reserve=self.reserve_seconds)


@dataclass(frozen=True)
class ContestPlan:
    """The contests, before any policy is known."""

    settings: ContestSettings
    orders: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    """For each contest and run: (problem, draw) in the order of the contest."""
    draws: tuple[tuple[tuple[int, ...], ...], ...]
    """For each problem and draw: the places of its solutions in the order in which they are begun."""

    @classmethod
    def make(cls, problems: Sequence[StoredProblem], settings: ContestSettings) -> ContestPlan:
        """Draw the contests. Raises UserError where there are fewer problems than a contest has."""
        size = settings.problems or min(50, len(problems))
        if size > len(problems):
            raise UserError(
                f"a contest of {size} problems, and there are {len(problems)}",
                remedy="ask for fewer, or give more rollouts; no problem is in a contest twice",
            )
        draws = []
        for problem in problems:
            rng = random.Random(derive_seed(settings.seed, "draws", problem.id))
            places = range(len(problem.solutions))
            draws.append(tuple(tuple(rng.sample(places, len(places))) for _ in range(settings.draws)))
        rng = random.Random(derive_seed(settings.seed, "contests"))
        deck: list[int] = []
        orders = []
        for _ in range(settings.contests):
            hand = _deal(deck, size, len(problems), rng)
            runs = []
            for _ in range(settings.runs):
                rng.shuffle(hand)
                runs.append(tuple((problem, rng.randrange(settings.draws)) for problem in hand))
            orders.append(tuple(runs))
        return cls(settings, tuple(orders), tuple(draws))


def _deal(deck: list[int], size: int, number: int, rng: random.Random) -> list[int]:
    """Take ``size`` different problems from the deck, which is filled anew when it is empty."""
    hand: list[int] = []
    while len(hand) < size:
        if not deck:
            held = set(hand)
            fresh = [p for p in range(number) if p not in held]
            rng.shuffle(fresh)
            again = list(held)
            rng.shuffle(again)
            deck[:] = again + fresh  # taken from the end: those in the hand come last
        hand.append(deck.pop())
    return hand


@dataclass
class ProblemTally:
    """What became of one problem, over all its runs."""

    id: str
    runs: int = 0
    right: int = 0
    loss: LossTally = field(default_factory=LossTally)
    seconds: float = 0.0
    tokens: float = 0.0
    unselected: int = 0
    """Runs in which a selection was wanted and none was stored."""

    @property
    def score(self) -> float:
        """The share of its runs that were right."""
        return self.right / self.runs


@dataclass(frozen=True)
class Rehearsal:
    """What a policy makes of the contests."""

    policy: Policy
    settings: ContestSettings
    tallies: tuple[ProblemTally, ...]
    """Of the problems that were in a contest."""
    points: tuple[float, ...]
    """Of each contest; a problem has 1 at most."""
    size: int
    """Problems of a contest."""

    @property
    def values(self) -> np.ndarray:
        """The score of each problem."""
        return np.array([tally.score for tally in self.tallies])

    @property
    def score(self) -> float:
        """The mean score of the problems: the expected share of a contest's points."""
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the score over problems. The problems are the sample: contests that are rehearsed more
        often do not narrow it."""
        return share_interval(self.values)

    @property
    def seconds(self) -> float:
        """Mean seconds of a problem."""
        return sum(t.seconds for t in self.tallies) / sum(t.runs for t in self.tallies)

    @property
    def tokens(self) -> float:
        """Mean tokens of a problem."""
        return sum(t.tokens for t in self.tallies) / sum(t.runs for t in self.tallies)

    @property
    def unselected(self) -> int:
        """Runs in which a selection was wanted and none was stored."""
        return sum(t.unselected for t in self.tallies)


class Laboratory:
    """Rehearses contests of stored problems at one speed. Replays that the deadline does not touch are kept."""

    def __init__(self, problems: Sequence[StoredProblem], speed: Speed | None):
        self.problems, self.speed = tuple(problems), speed
        if speed is None:
            for problem in problems:
                if without := next((s for s in problem.solutions if s.seconds is None), None):
                    raise UserError(
                        f"solution {without.id} of problem {problem.id} has no time of its own",
                        remedy="state a speed, such as --speed 1:110,8:72,16:51",
                    )
        self.replays = 0
        """Problems that were replayed event by event."""

    def rehearse(self, policy: Policy, plan: ContestPlan, *, contests: int | None = None) -> Rehearsal:
        """Return what a policy makes of the first ``contests`` contests of a plan; None: of all. Raises UserError where
        the policy asks for what is not stored."""
        self.check(policy)
        runner = _Runner(policy, self, plan)
        tallies = [ProblemTally(problem.id) for problem in self.problems]
        points = []
        orders = plan.orders[: contests or len(plan.orders)]
        for runs in orders:
            right = 0
            for order in runs:
                for (problem, draw), replayed in zip(order, runner.contest(order), strict=True):
                    right += replayed.right
                    tally = tallies[problem]
                    tally.runs += 1
                    tally.right += replayed.right
                    tally.seconds += replayed.seconds
                    tally.tokens += replayed.tokens
                    tally.unselected += replayed.unselected
                    tally.loss.add(replayed, runner.unlimited(problem, draw))
            points.append(right / len(runs))
        return Rehearsal(policy, plan.settings, tuple(t for t in tallies if t.runs), tuple(points), len(orders[0][0]))

    def check(self, policy: Policy) -> None:
        """Raise UserError where a policy asks for what is not stored."""
        wanted = policy.batch + policy.second
        fewest = min(self.problems, key=lambda p: len(p.solutions))
        if len(fewest.solutions) < wanted:
            raise UserError(
                f"the policy begins up to {wanted} solutions, and problem {fewest.id} has {len(fewest.solutions)}",
                remedy="sample more, or choose a smaller batch",
            )
        if policy.entropy_weight and not any(s.entropy is not None for p in self.problems for s in p.solutions):
            raise UserError(
                "entropy_weight: no solution has the log-probabilities of its answer",
                remedy="sample with logprobs, or leave it at 0",
            )
        if policy.final == "genselect" and not any(p.selections for p in self.problems):
            raise UserError(
                "final: genselect: no selection among these solutions is stored",
                remedy="name the folder of genselect.select with --selections, or choose final: vote",
            )


class _Runner:
    """Replays the problems of a plan under one policy."""

    def __init__(self, policy: Policy, laboratory: Laboratory, plan: ContestPlan):
        self._policy, self._laboratory, self._plan = policy, laboratory, plan
        most = policy.batch + policy.second
        rates = None if laboratory.speed is None else laboratory.speed.rates(most)
        self._replay = ProblemReplay(policy, rates)
        self._unlimited: dict[tuple[int, int], ReplayedProblem] = {}
        self._by_time = deadline_matters_by_time_alone(policy)

    def contest(self, order: Sequence[tuple[int, int]]) -> Iterator[ReplayedProblem]:
        """Replay the problems of one run in their order, with one bank."""
        bank = self._plan.settings.bank()
        for place, (problem, draw) in enumerate(order):
            replayed = self.run(problem, draw, bank.allowance(len(order) - place - 1))
            bank.spend(replayed.seconds)
            yield replayed

    def unlimited(self, problem: int, draw: int) -> ReplayedProblem:
        """Return what becomes of a problem without a deadline."""
        if (problem, draw) not in self._unlimited:
            self._unlimited[problem, draw] = self._fresh(problem, draw, UNLIMITED)
        return self._unlimited[problem, draw]

    def run(self, problem: int, draw: int, deadline: float) -> ReplayedProblem:
        """Return what becomes of a problem with a deadline."""
        if self._by_time:
            free = self.unlimited(problem, draw)
            if free.seconds < self._policy.sampling_ends(deadline):
                return free
            self._laboratory.replays += 1
            stored = self._laboratory.problems[problem]
            return self._replay.run_out(stored, self._plan.draws[problem][draw], deadline=deadline)
        return self._fresh(problem, draw, deadline)

    def _fresh(self, problem: int, draw: int, deadline: float) -> ReplayedProblem:
        self._laboratory.replays += 1
        stored = self._laboratory.problems[problem]
        return self._replay.run(stored, self._plan.draws[problem][draw], deadline=deadline)


def deadline_matters_by_time_alone(policy: Policy) -> bool:
    """Tell whether a policy does, up to the deadline, what it would do without one.

    The rule ``votes`` does: it looks at the deadline only to see whether it has come. A second round, a selection and
    the rule ``bayes`` depend on the time that is left.
    """
    return policy.rule == "votes" and not policy.second and policy.final == "vote"
