"""Search for a policy on one half of the problems, and judge it on the other.

The best of many policies looks better on the problems that chose it than it is: its score there is the largest of many
numbers that all have errors. So that score is called biased wherever it is printed. The other half is looked at once,
by the winner and by the policy that one had before (``policy`` without the choices), on the same contests; what is
said of it needs no correction for the number of policies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemo_openmath.competition.lab.contest import ContestPlan, ContestSettings, Laboratory, Rehearsal
from nemo_openmath.competition.lab.rollouts import StoredProblem
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import Policy
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.evaluation.intervals import share_difference_interval

MOST = 100_000  # policies of a search
KEPT = 3  # of so many policies, successive halving keeps one


@dataclass(frozen=True)
class SearchFile:
    """What a file of choices says."""

    choices: dict[str, Any] = field(default_factory=dict)
    """Setting of the policy (``agree``, ``bayes.sure``) -> the list of its values. All combinations are candidates."""
    policy: Policy = field(default_factory=Policy)
    """The policy that one has: what no choice names has its values, and the winner is compared with it."""
    method: Literal["halving", "grid"] = "halving"
    """``grid`` rehearses all contests with all candidates; ``halving`` begins with few contests and keeps the best
    third, until one round has all."""
    first_contests: PositiveInt = 20
    """Of ``halving``: contests of the first round."""


@dataclass(frozen=True, slots=True)
class PolicyCandidate:
    """A policy of a search, and what it chose."""

    policy: Policy
    choices: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.choices.items()) or "the policy itself"


@dataclass(frozen=True)
class PolicyCandidates:
    """All policies of a search."""

    base: Policy
    method: Literal["halving", "grid"]
    first_contests: int
    candidates: tuple[PolicyCandidate, ...]
    refused: tuple[tuple[str, str], ...]
    """Combinations that are no policy, and why."""


def read_policy(path: Path) -> Policy:
    """Read a policy: a YAML file with its settings. Raises UserError."""
    source = Source.read(path)
    return Builder(source.origin, taken_out=source.taken_out).build(Policy, source.data)


def read_choices(path: Path) -> PolicyCandidates:
    """Read a file of choices and combine them. Raises UserError naming a setting or a value that is none."""
    source = Source.read(path)
    file = Builder(source.origin, taken_out=source.taken_out).build(SearchFile, source.data)
    if not file.choices:
        raise UserError("choices: there are none", file=path, remedy="write such as choices: {agree: [3, 4, 5]}")
    lists: dict[str, list[Any]] = {}
    for name, values in file.choices.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"choices.{name}: expected a list of values, got {values!r}", file=path)
        lists[name] = values
        for value in values:  # each alone has to be a setting: else a misspelt name refuses all combinations
            _check_setting(source, path, name, value)
    number = int(np.prod([len(values) for values in lists.values()], dtype=float))
    if number > MOST:
        raise UserError(f"choices: {number:,} combinations, at most {MOST:,}", file=path, remedy="choose fewer values")
    candidates, refused = [], []
    for combination in itertools.product(*lists.values()):
        chosen = dict(zip(lists, combination, strict=True))
        try:
            policy = _laid_over(source, chosen)
        except UserError as error:
            refused.append((str(PolicyCandidate(file.policy, chosen)), error.problem))
        else:
            candidates.append(PolicyCandidate(policy, chosen))
    if not candidates:
        raise UserError(f"choices: no combination is a policy, for {refused[0][0]}: {refused[0][1]}", file=path)
    return PolicyCandidates(file.policy, file.method, file.first_contests, tuple(candidates), tuple(refused))


def _laid_over(source: Source, chosen: Mapping[str, Any]) -> Policy:
    data: dict[str, Any] = _copied(source.data.get("policy") or {})
    for name, value in chosen.items():
        *sections, last = name.split(".")
        at = data
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    origin = source.origin(("choices",))
    return Builder(lambda key: origin).build(Policy, data, ("policy",))


def _copied(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in data.items()}


def _check_setting(source: Source, path: Path, name: str, value: Any) -> None:
    """Raise UserError where a choice is no setting of a policy, or its value none of the setting's kind. What depends
    on other settings is seen in the combinations."""
    try:
        _laid_over(source, {name: value})
    except UserError as error:
        if error.problem.startswith(f"policy.{name}:") or "no such" in error.problem or "unknown" in error.problem:
            raise UserError(f"choices.{name}: {error.problem}", file=path, remedy=error.remedy) from error


def halves(problems: Sequence[StoredProblem]) -> tuple[list[StoredProblem], list[StoredProblem]]:
    """Return the problems to search on and those to judge on, by a hash of their ids: the same problem is on the same
    side in every search. Raises UserError where there are fewer than two."""
    if len(problems) < 2:
        raise UserError("one problem has no halves", remedy="give the rollouts of more problems")
    order = sorted(problems, key=lambda problem: unit_key(problem.id))
    middle = len(order) // 2
    return order[:middle], order[middle:]


@dataclass(frozen=True)
class SearchRound:
    """One round of a search."""

    contests: int
    scores: tuple[tuple[PolicyCandidate, float, float], ...]
    """(candidate, score, tokens of a problem), the best first."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    rounds: tuple[SearchRound, ...]
    winner: PolicyCandidate
    searched: Rehearsal
    """The winner on the half that chose it: biased."""
    searched_base: Rehearsal
    held_out: Rehearsal
    held_out_base: Rehearsal
    unfit: tuple[tuple[str, str], ...]
    """PolicyCandidates that the stored solutions do not suffice for, and why."""
    speed: Speed | None

    @property
    def difference(self) -> tuple[float, float, float]:
        """Winner minus base on the held-out half, with its 95% interval over problems."""
        return difference(self.held_out_base, self.held_out)


def difference(before: Rehearsal, after: Rehearsal) -> tuple[float, float, float]:
    """Return the mean difference of two rehearsals of the same contests, with its 95% interval over problems."""
    assert [t.id for t in before.tallies] == [t.id for t in after.tallies]
    values = after.values - before.values
    low, high = share_difference_interval(values)
    return float(values.mean()), low, high


def search(
    problems: Sequence[StoredProblem],
    asked: PolicyCandidates,
    settings: ContestSettings,
    speed: Speed | None,
    told: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Search on one half and judge on the other. ``told`` hears of each round."""
    first, second = halves(problems)
    laboratory, judge = Laboratory(first, speed), Laboratory(second, speed)
    candidates, unfit = list[PolicyCandidate](), list[tuple[str, str]]()
    judge.check(asked.base)
    for candidate in asked.candidates:
        try:
            laboratory.check(candidate.policy)
            judge.check(candidate.policy)
        except UserError as error:
            unfit.append((str(candidate), error.problem))
        else:
            candidates.append(candidate)
    if not candidates:
        raise UserError(f"no candidate can be replayed, for {unfit[0][0]}: {unfit[0][1]}")
    plan = ContestPlan.make(first, settings)
    rounds = list(_rounds(laboratory, plan, candidates, asked, told))
    winner = rounds[-1].scores[0][0]
    held_out_plan = ContestPlan.make(second, settings)
    return SearchResult(
        tuple(rounds),
        winner,
        laboratory.rehearse(winner.policy, plan),
        laboratory.rehearse(asked.base, plan),
        judge.rehearse(winner.policy, held_out_plan),
        judge.rehearse(asked.base, held_out_plan),
        tuple(unfit),
        speed,
    )


def _rounds(
    laboratory: Laboratory,
    plan: ContestPlan,
    candidates: Sequence[PolicyCandidate],
    asked: PolicyCandidates,
    told: Callable[[str], None],
) -> Iterator[SearchRound]:
    """Rehearse with ever fewer candidates ever more of the same contests, until one round has all contests."""
    most = len(plan.orders)
    contests = most if asked.method == "grid" else min(most, asked.first_contests)
    while True:
        scores = []
        for candidate in candidates:
            rehearsal = laboratory.rehearse(candidate.policy, plan, contests=contests)
            scores.append((candidate, rehearsal.score, rehearsal.tokens))
        # of equal scores the cheaper one, then the one that the file has first
        scores.sort(key=lambda entry: (-round(entry[1], 12), entry[2]))
        told(f"{len(scores)} candidates, {contests} contests: best {scores[0][1]:.4f} with {scores[0][0]}")
        yield SearchRound(contests, tuple(scores))
        if contests == most:
            return
        candidates = [candidate for candidate, _, _ in scores[: max(1, -(-len(scores) // KEPT))]]
        contests = min(most, contests * KEPT)
