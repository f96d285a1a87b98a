r"""How sure the leading answer is: the derivation of the rule ``bayes``.

The solutions of a problem have weights: 1 each or less (``policy.weight_of``). ``n_g`` is the weight of the solutions
whose answer is of group g, ``n`` that of all with an answer, ``K`` the number of groups.

**Is it right?** (:func:`posterior_right`.) A solution gives the right answer with a probability p of this problem and
this model, and p has a prior Beta(a, b). A wrong answer is drawn from a Chinese restaurant process of concentration s
(Pitman, Combinatorial Stochastic Processes, section 3.1): the next wrong one repeats a wrong answer in proportion to
how often it was given, and is a new one in proportion to s, the ``spread``. So wrong solutions agree the less, the
larger s is. Integrating p and the process out leaves closed forms. With B the beta function, G the gamma function, and
C(A) = s^\|A\| G(s) / G(s + sum of A) * product of G(n_k) over the groups k of A:

    P(answers, g is right)          = B(a + n_g, b + n - n_g) / B(a, b) * C(all groups but g)
    P(answers, no group is right)   = B(a, b + n) / B(a, b) * C(all groups)

The posterior of g is the first over the sum of the firsts and the second. With a = b = 1 and s = 4, three equal answers
have 0.94, four 0.97, five 0.986. Weights that are no whole numbers enter in the place of counts: a likelihood to
the power of the weight, as a solution that is half believed.

**Does it stay in front?** (:func:`posterior_stays`.) Of R solutions that run each brings one more vote by the end
with probability v; the votes follow a Polya urn that holds n_g of each group and s of unseen answers. For one opponent
h of the leader l, the votes for either are beta-binomial, and so are those of them for l:

    votes in time       m ~ Binomial(R, v)
    for l or h of m     t ~ BetaBinomial(m; n_l + n_h, n + s - n_l - n_h)
    for l of those      j ~ BetaBinomial(t; n_l, n_h)

h draws level where n_h + (t - j) u >= n_l + j u, with u the mean weight of a vote so far. The probability that somebody
draws level is at most the sum over the opponents, of which all unseen answers together are one. The rule uses this
bound, so it errs to the side of waiting.

**What can still come?** (:func:`arrival`.) Solutions end at a rate that is unknown, with a prior Gamma(1, T), T the
time of the problem: one end in that time is expected. With k ends in E seconds of running (of all solutions together),
one that runs ends within d more seconds with probability 1 - ((T + E) / (T + E + d))^(1 + k), the Lomax distribution.
It has an answer with the probability (answers + 1) / (ends + 2), Laplace's rule. Lengths of solutions have no constant
rate; at the deadline d is 0 whatever the rate is, so the vote is settled there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


def posterior_right(weights: Sequence[float], group: int, *, accuracy: tuple[float, float], spread: float) -> float:
    """Return the probability that the answer of ``weights[group]`` is right. ``accuracy``: a and b; all positive."""
    logs = [_log_joint(weights, g, accuracy, spread) for g in (*range(len(weights)), None)]
    top = max(logs)
    return math.exp(logs[group] - top) / math.fsum(math.exp(value - top) for value in logs)


def _log_joint(weights: Sequence[float], right: int | None, accuracy: tuple[float, float], spread: float) -> float:
    """Return log P(answers, this group is right), without what all groups have in common."""
    a, b = accuracy
    n = math.fsum(weights)
    n_right = 0.0 if right is None else weights[right]
    wrong = [weight for g, weight in enumerate(weights) if g != right]
    chance = math.lgamma(a + n_right) + math.lgamma(b + n - n_right)  # lgamma(a + b + n) is common to all
    process = len(wrong) * math.log(spread) + math.lgamma(spread) - math.lgamma(spread + n - n_right)
    return chance + process + math.fsum(map(math.lgamma, wrong))


def posterior_stays(
    weights: Sequence[float], leader: int, *, running: int, vote: float, unit: float, spread: float
) -> float:
    """Return a lower bound of the probability that no answer draws level with the leader.

    ``running``: solutions that run; ``vote``: probability that one of them brings a vote in time; ``unit``: the weight
    of such a vote.
    """
    n, first = math.fsum(weights), weights[leader]
    opponents = [weight for g, weight in enumerate(weights) if g != leader]
    chances = [_level(first, weight, n + spread, weight, running, vote, unit) for weight in opponents]
    chances.append(_level(first, spread, n + spread, 0.0, running, vote, unit))  # unseen answers, as if they were one
    return max(0.0, 1.0 - math.fsum(chances))


def _level(first: float, mass: float, total: float, second: float, running: int, vote: float, unit: float) -> float:
    """Return the probability that an opponent draws level. ``mass``: what it has in the urn, of ``total``; ``second``:
    the votes that it has. What an urn of ``vote`` leaves out is a vote for neither."""
    chance = 0.0
    for votes in range(running + 1):
        in_time = math.comb(running, votes) * vote**votes * (1 - vote) ** (running - votes)
        if in_time > 0:
            chance += in_time * _level_of(first, mass, total, second, votes, unit)
    return min(1.0, chance)


@lru_cache(maxsize=50_000)  # a rule looks at the clock more often than a solution ends
def _level_of(first: float, mass: float, total: float, second: float, votes: int, unit: float) -> float:
    """Return the probability that the opponent draws level when so many votes come."""
    rest = max(0.0, total - first - mass)
    return math.fsum(
        _beta_binomial(votes, t, first + mass, rest) * _level_at(first, mass, second, t, unit) for t in range(votes + 1)
    )


@lru_cache(maxsize=50_000)
def _level_at(first: float, mass: float, second: float, votes: int, unit: float) -> float:
    """Return the probability that the opponent draws level when both together get so many votes."""
    return math.fsum(
        _beta_binomial(votes, j, first, mass)
        for j in range(votes + 1)
        if second + (votes - j) * unit >= first + j * unit - 1e-9
    )


def _beta_binomial(n: int, k: int, a: float, b: float) -> float:
    """Return the probability of k of n draws from an urn with a of the one kind, above 0, and b of the other."""
    if b <= 0:
        return float(k == n)
    lgamma = math.lgamma
    log = lgamma(k + a) + lgamma(n - k + b) - lgamma(n + a + b) + lgamma(a + b) - lgamma(a) - lgamma(b)
    return math.comb(n, k) * math.exp(log)


def arrival(ends: int, exposure: float, seconds: float, *, prior_seconds: float) -> float:
    """Return the probability that a running solution ends within ``seconds``. ``ends``: those seen in ``exposure``
    seconds of running."""
    base = prior_seconds + exposure
    return 1.0 - (base / (base + max(0.0, seconds))) ** (1 + ends)
