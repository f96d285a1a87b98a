"""How many samples a problem gets: a fixed number, more for harder problems, or until more cannot matter.

By agreement, samples come in batches, each the smallest that could settle the vote, and the votes are counted in the
order of their sample numbers: what is decided depends on the answers alone, not on which sample finished first, so an
interrupted run goes on to the same set. ``confidence`` 1: a problem ends when no answers that are still to come could
change its majority, so labels equal those of the full count: the leader is counted without spellings that fit two
answers, its rivals with them (``Majority.lead``). What is not foreseen: an answer to come that makes one of the
leader's own spellings fit two (5, once both 5 cm and 5 m are there). Below 1: when the leading answer is the more
likely one of the two best with that probability, under a uniform prior: P(Beta(first + 1, second + 1) > 1/2), the rule
of Adaptive-Consistency (arXiv 2305.11860); it saves more and may now and then change a label.
"""

from __future__ import annotations

import math


def by_hardness(pass_rate: float | None, least: int, most: int) -> int:
    """Samples of a problem: ``least`` where it was always solved, ``most`` where never or where it is not known."""
    hardness = 1.0 if pass_rate is None else 1.0 - min(1.0, max(0.0, pass_rate))
    return least + math.floor((most - least) * hardness + 0.5)


def chance_of_lead(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1): with n = first + second + 1, that of at most ``first`` heads
    among n tosses of a fair coin."""
    n = first + second + 1
    return math.ldexp(sum(math.comb(n, k) for k in range(first + 1)), -n)


def settled(first: int, second: int, left: int, confidence: float) -> bool:
    """Whether ``left`` more answers are useless after votes of ``first`` and ``second`` for the two best answers."""
    if first - second > left:
        return True
    return confidence < 1 and first > 0 and chance_of_lead(first, second) >= confidence


def next_batch(first: int, second: int, made: int, least: int, most: int, confidence: float) -> int:
    """How many samples to make now; 0: no more are needed. After the ``least`` first ones, the fewest that settle the
    vote if all of them agree with the leading answer."""
    if made < least:
        return least - made
    left = most - made
    if left <= 0 or settled(first, second, left, confidence):
        return 0
    return next((k for k in range(1, left) if settled(first + k, second, left - k, confidence)), left)
