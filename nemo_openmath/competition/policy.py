"""What the solver does next, and which answer it gives: pure decisions, for the live solver and for a replay alike.

Nothing here has a clock, waits, or draws. Whoever drives a problem (``solver.py``, or the laboratory with stored
rollouts) does this, with ``now`` and ``deadline`` in seconds since the problem began:

    while True:
        what = decide(policy, now=.., deadline=.., ended=.., running=..)
        Begin   begin these samples, and decide again
        Wait    decide again when a solution ends, and at ``until`` at the latest
        Stop    end all that runs; where ``search``, each solution so cut off is one more of ``ended``, with whole=False
                and the answer that its text so far has; then, where ``selection`` returns samples, ask the model
                which is right (``drawn`` says among which) and take ``judged``; else, or where that failed, ``choose``

Whoever drives groups the answers: ``Ended.group`` is a number of a class of equal answers, and the grader alone decides
on equality. The numbers may change from call to call, so nothing is remembered in them.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, TypeAlias

from nemo_openmath.competition.bayes import arrival, posterior_right, posterior_stays
from nemo_openmath.core.bounds import (
    Bounds,
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)
from nemo_openmath.core.records.ids import derive_seed


@dataclass(frozen=True)
class BayesPrior:
    """The model behind the rule ``bayes``. It is derived in ``competition/bayes.py``; its numbers are ours."""

    sure: Annotated[float, Bounds(0.5, 1)] = 0.97
    """End the batch where the leading answer is right with this probability. With the defaults the first four equal
    answers reach it, as in the rule ``votes``."""
    settled: Annotated[float, Bounds(0.5, 1)] = 0.99
    """End the batch where no other answer will draw level with this probability. What may still come in the time that
    is left decides it."""
    accuracy: Annotated[tuple[PositiveFloat, ...], Length(2, 2)] = (1.0, 1.0)
    """The prior of the share of right solutions: a and b of its beta distribution. [1, 1] is uniform."""
    spread: PositiveFloat = 4.0
    """How far wrong answers differ from each other: the concentration of the process that they come from. The larger
    it is, the more it says that answers agree."""
    checks: PositiveInt = 50
    """Looks at the clock over the time of a problem, besides those at each solution that ends."""


@dataclass(frozen=True)
class Policy:
    """How the solutions of one problem are begun, ended and counted (paper section 6.3)."""

    batch: PositiveInt = 16
    """Solutions that are begun together. Paper section 6.3.3."""
    rule: Literal["votes", "bayes"] = "votes"
    """When answers suffice. ``votes``: when the first ``agree`` solutions that end have equal answers, or later, when
    one more than that have. ``bayes``: when the leading answer is right, or stays in front, with a probability that is
    set in ``bayes``. Paper section 6.3.3 has votes."""
    agree: PositiveInt = 4
    """Of the rule ``votes``: end the batch when the first so many solutions that finish have equal answers, or later,
    when one more than that have. Paper section 6.3.3: 4 or 5."""
    bayes: BayesPrior = field(default_factory=BayesPrior)
    """Of the rule ``bayes``: the probabilities that suffice, and the prior."""
    stragglers: NonNegativeInt = 0
    """Cancel the last so many solutions once all others have ended and there is an answer; 0: wait for all. Paper
    section 6.3.3 cancels the last n."""
    partial_weight: Share = 0.5
    """Votes of an answer that was read in an unfinished solution: one that the deadline or the limit of tokens cut off.
    0: such answers do not count. Paper section 6.3.3 reads them; the weight is ours."""
    entropy_weight: NonNegativeFloat = 0.0
    """How much less an uncertain solution counts: its vote is exp(-entropy_weight x the mean negative log-probability
    of its answer's tokens, in nats). 0: votes are equal, and no log-probabilities are asked for."""
    second: NonNegativeInt = 0
    """Solutions of a second round, where all ended (but ``stragglers``) and no two agree; 0: none."""
    second_seconds: NonNegativeFloat = 60.0
    """A second round begins where at least so many seconds are left to sample in."""
    replace: NonNegativeInt = 16
    """Solutions that the engine or the sandbox lost and that are begun again, at most."""
    replace_pause: NonNegativeFloat = 2.0
    """Seconds between such a loss and the new solution: an engine may be starting again."""
    closing_seconds: NonNegativeFloat = 5.0
    """Seconds before the deadline at which solutions are cut off, so that their texts can be searched and votes
    counted; never more than a tenth of the problem's time."""
    final: Literal["vote", "genselect"] = "vote"
    """How the answer is chosen. ``vote``: the weighted majority. ``genselect``: where solutions that ended differ and
    time is left, the model selects, and the vote decides where that fails."""
    select_seconds: PositiveFloat = 60.0
    """Seconds that a selection may take; it is asked for where so many are left."""
    select_reserved: bool = False
    """Whether sampling ends so early that ``select_seconds`` are left, where no rule ended it before."""
    select_samples: PositiveInt = 8
    """Selections of a problem; their majority counts. Paper, Figure 2: 8."""
    select_candidates: Annotated[int, Bounds(2)] = 16
    """Solutions that a selection compares, drawn anew for each, at most. Paper section 4.3: 16."""

    def __post_init__(self) -> None:
        if not 1 <= self.agree <= self.batch:
            raise ValueError("agree: choose it from 1 to batch")
        if self.stragglers >= self.batch:
            raise ValueError("stragglers: choose it below batch")

    def closing(self, deadline: float) -> float:
        """Return the seconds that are kept for the end: to search what is cut off, and to count."""
        return min(self.closing_seconds, 0.1 * deadline)

    def requests_end(self, deadline: float) -> float:
        """Return when requests that still run end by themselves: a little after solutions are cut off."""
        return self.sampling_ends(deadline) + 0.1 * self.closing(deadline)

    def selecting_takes(self, deadline: float) -> float:
        """Return the seconds that have to be left for a selection."""
        return min(self.select_seconds, 0.5 * deadline) if self.select_reserved else self.select_seconds

    def sampling_ends(self, deadline: float) -> float:
        """Return when solutions are cut off, in seconds since the problem began."""
        reserved = self.final == "genselect" and self.select_reserved
        return max(0.0, deadline - self.closing(deadline) - (self.selecting_takes(deadline) if reserved else 0.0))


class Ended(NamedTuple):
    """One solution that ended."""

    sample: int
    at: float
    """Seconds since the problem began."""
    group: int | None
    """Its class of equal answers; None: it has no answer, or none that may be submitted."""
    tokens: int = 0
    entropy: float | None = None
    """Mean negative log-probability of its answer's tokens, in nats; None where it was not kept."""
    whole: bool = True
    """False: it was cut off, and its answer was searched for in what there was."""
    lost: bool = False
    """Whether the engine or the sandbox lost it: it says nothing of the problem."""


class Reason(StrEnum):
    """Why sampling ended."""

    AGREEMENT = "agreement"  # enough answers are equal (rule votes)
    SURE = "sure"  # the leading answer is right, as far as can be told (rule bayes)
    SETTLED = "settled"  # what is still to come hardly changes the vote (rule bayes)
    STRAGGLERS = "stragglers"  # all but the last few ended
    FINISHED = "finished"  # all ended
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin these samples."""

    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the next end of a solution, at most until ``until``, in seconds since the problem began."""

    until: float
    ends: int = field(default=1, compare=False)
    """Solutions that have to end, whatever their answers are, before anything else can be decided: until then a replay
    need not ask. It holds while the groups of the answers so far stay what they are."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End what runs."""

    reason: Reason

    @property
    def search(self) -> bool:
        """Whether the solutions that are cut off are searched for an answer: at the deadline (paper section 6.3.3)."""
        return self.reason is Reason.TIME


Decision: TypeAlias = Begin | Wait | Stop


@dataclass(frozen=True, slots=True)
class Pick:
    """The answer that is given, and what stood against it."""

    group: int | None
    """None: no solution has an answer."""
    weight: float = 0.0
    votes: int = 0
    """Solutions that gave it."""
    second: int | None = None
    """The group with the next most weight."""
    second_weight: float = 0.0


def decide(policy: Policy, *, now: float, deadline: float, ended: Sequence[Ended], running: Sequence[int]) -> Decision:
    """Return what is to be done now. Of equal arguments it is the same, whatever their order."""
    ends_at = policy.sampling_ends(deadline)
    losses = [e.at for e in ended if e.lost]
    heard, most = [e for e in ended if not e.lost] if losses else ended, 0
    if policy.rule == "votes":
        votes = [*_votes(heard).values()]
        most = max(votes, default=0)
        reason = Reason.AGREEMENT if _agree(votes, len(heard), policy.agree) else None
    else:
        reason = _sure(policy, now, deadline, ended, heard, len(running))
    if reason is not None:
        return Stop(reason)
    if now >= ends_at:
        return Stop(Reason.TIME)
    decision = _missing(policy, now, ends_at, ended, losses, len(running))
    if decision is not None:
        return decision
    if not running:
        return Stop(Reason.FINISHED)
    if len(running) <= policy.stragglers and any(e.group is not None for e in ended):
        return Stop(Reason.STRAGGLERS)
    if policy.rule == "votes":
        return Wait(ends_at, 1 if losses else _quiet(policy, most, len(heard), len(running)))
    step = deadline / policy.bayes.checks
    return Wait(min(ends_at, (math.floor(now / step + 1e-6) + 1) * step))


def _quiet(policy: Policy, most: int, heard: int, running: int) -> int:
    """Return how many solutions have to end before the votes can say anything but wait. ``most``: votes of the leading
    answer, of ``heard`` solutions."""
    missing = policy.agree - heard if most == heard < policy.agree else policy.agree + 1 - most
    return max(1, min(missing, running - policy.stragglers))


def _missing(
    policy: Policy, now: float, ends_at: float, ended: Sequence[Ended], losses: Sequence[float], running: int
) -> Begin | Wait | None:
    """Return the samples that are to be begun, or until when they have to wait; None where there are none. ``losses``:
    when solutions were lost."""
    begun = len(ended) + running
    counted = begun - min(len(losses), policy.replace)  # those that were lost and not yet begun again are missing
    if counted < policy.batch:
        missing, first = policy.batch - counted, begun == 0
    elif counted < policy.batch + policy.second:
        first = counted == policy.batch
        if first and not _second_is_due(policy, ends_at - now, ended, running):
            return None
        missing = policy.batch + policy.second - counted
    else:
        return None
    ready = now if first or not losses else max(losses) + policy.replace_pause
    if ready >= ends_at:
        return None
    return Begin(tuple(range(begun, begun + missing))) if now >= ready else Wait(ready)


def _second_is_due(policy: Policy, seconds: float, ended: Sequence[Ended], running: int) -> bool:
    most = max(_votes(ended).values(), default=0)
    return running <= policy.stragglers and seconds >= policy.second_seconds and most < 2


def _votes(ended: Sequence[Ended]) -> dict[int, int]:
    """Return how many whole solutions gave each answer. A dictionary: this is counted at every decision."""
    votes: dict[int, int] = {}
    for e in ended:
        if e.whole and e.group is not None:
            votes[e.group] = votes.get(e.group, 0) + 1
    return votes


def _sure(
    policy: Policy, now: float, deadline: float, ended: Sequence[Ended], heard: Sequence[Ended], running: int
) -> Reason | None:
    """Return why the answers there are suffice by the rule ``bayes``, or None. ``heard``: what was not lost."""
    weights = _weights(policy, heard)
    if not weights:
        return None
    groups = sorted(weights)
    values, prior = [weights[g] for g in groups], policy.bayes
    leader = groups.index(_order(heard, weights)[0])
    right = posterior_right(values, leader, accuracy=(prior.accuracy[0], prior.accuracy[1]), spread=prior.spread)
    if right >= prior.sure:
        return Reason.SURE
    if not running:
        return None
    answers = sum(e.group is not None for e in heard)
    exposure = sum(e.at for e in ended) + running * now
    seconds = policy.sampling_ends(deadline) - now
    vote = arrival(len(heard), exposure, seconds, prior_seconds=deadline) * (answers + 1) / (len(heard) + 2)
    unit = math.fsum(values) / answers
    stays = posterior_stays(values, leader, running=running, vote=vote, unit=unit, spread=prior.spread)
    return Reason.SETTLED if stays >= prior.settled else None


def _agree(votes: Sequence[int], heard: int, agree: int) -> bool:
    """Tell whether the first ``agree`` answers are all equal, or ``agree + 1`` of all are, and no other answer has as
    many."""
    most = max(votes, default=0)
    enough = agree if heard == agree else agree + 1
    return most >= enough and sum(count == most for count in votes) == 1


def choose(policy: Policy, ended: Sequence[Ended]) -> Pick:
    """Return the answer with the most weight. Of equal ones that with more solutions, then the one that was there
    first."""
    weights = _weights(policy, ended)
    order = _order(ended, weights)
    if not order:
        return Pick(None)
    votes = sum(e.group == order[0] for e in ended)
    second = order[1] if len(order) > 1 else None
    return Pick(order[0], weights[order[0]], votes, second, 0.0 if second is None else weights[second])


def weight_of(policy: Policy, ended: Ended, entropy: float = 0.0) -> float:
    """Return how much the answer of a solution counts. ``entropy``: what a solution without one is taken to have."""
    if ended.group is None or ended.lost:
        return 0.0
    weight = 1.0 if ended.whole else policy.partial_weight
    if not policy.entropy_weight:
        return weight
    doubt = entropy if ended.entropy is None else ended.entropy
    return weight * math.exp(-policy.entropy_weight * max(0.0, doubt))


def _weights(policy: Policy, ended: Sequence[Ended]) -> dict[int, float]:
    """Return the weight of each answer; those without any are left out. A solution whose log-probabilities are not
    known is taken for a mean one."""
    known = [e.entropy for e in ended if e.entropy is not None and e.group is not None] if policy.entropy_weight else []
    entropy = math.fsum(known) / len(known) if known else 0.0
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for e in ended:
        if e.group is not None and (weight := weight_of(policy, e, entropy)) > 0:
            parts[e.group].append(weight)
    return {group: math.fsum(values) for group, values in parts.items()}


def _order(ended: Sequence[Ended], weights: Mapping[int, float]) -> list[int]:
    """Return the answers, the leading one first."""
    votes, first = dict.fromkeys(weights, 0), dict[int, tuple[float, int]]()
    for e in ended:
        if (group := e.group) is not None and group in weights:
            came = e.at, e.sample
            votes[group] += 1
            if group not in first or came < first[group]:
                first[group] = came
    return sorted(weights, key=lambda g: (-round(weights[g], 9), -votes[g], first[g]))


def selection(
    policy: Policy, *, reason: Reason, now: float, deadline: float, ended: Sequence[Ended]
) -> tuple[int, ...]:
    """Return the samples among which a model selects, where one is to be asked; else none.

    A selection is asked for where sampling did not end by agreement, whole solutions differ, and the time suffices.
    """
    if policy.final != "genselect" or reason in (Reason.AGREEMENT, Reason.SURE):
        return ()
    if deadline - 0.1 * policy.closing(deadline) - now < policy.selecting_takes(deadline) - 1e-6:
        return ()
    whole = [e for e in ended if e.whole and e.group is not None and not e.lost]
    return tuple(sorted(e.sample for e in whole)) if len({e.group for e in whole}) > 1 else ()


def drawn(policy: Policy, samples: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Return the candidates of each selection in the order in which the model sees them."""
    draws = []
    for turn in range(policy.select_samples):
        rng = random.Random(derive_seed(seed, "selection", turn))
        draws.append(tuple(rng.sample(list(samples), min(len(samples), policy.select_candidates))))
    return draws


def judged(policy: Policy, ended: Sequence[Ended], chosen: Sequence[int | None]) -> Pick:
    """Return the answer whose solutions were selected most often; of equal ones that with the most weight in the vote.
    ``chosen``: the sample of each selection, None where it names none. Without any it is the vote's."""
    groups = {e.sample: e.group for e in ended}
    marks = Counter(group for s in chosen if s is not None and (group := groups.get(s)) is not None)
    weights = _weights(policy, ended)
    order = _order(ended, weights)
    ranked = sorted((g for g in order if marks[g]), key=lambda g: (-marks[g], order.index(g)))
    if not ranked:
        return choose(policy, ended)
    second = next((g for g in [*ranked[1:], *order] if g != ranked[0]), None)
    votes = sum(e.group == ranked[0] for e in ended)
    return Pick(ranked[0], weights[ranked[0]], votes, second, 0.0 if second is None else weights[second])
