"""Majority by meaning: answers are grouped by equivalence, not by string. Used for labels and for maj@k alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_openmath.grading.compare import compare as compare_answers
from nemo_openmath.grading.verdict import Grade, Verdict

MAX_COMPARISONS = 2000


@dataclass(frozen=True, slots=True)
class Majority:
    """The vote on one problem.

    ``answer``: the most common spelling of the largest group; None where nobody answered or the winner missed
    ``min_share``. ``count``: size of the largest group; ``total``: all votes, missing ones included, so that
    ``count / total`` is the share among all who were asked. ``groups``: (representative, count), best first.
    ``tie``: another group is as large. ``comparisons``: pairs of spellings that were compared; ``complete``: False
    where the bound on them left some spellings uncompared (they count as different).
    """

    answer: str | None
    count: int
    total: int
    groups: tuple[tuple[str, int], ...]
    tie: bool
    missing: int
    comparisons: int
    complete: bool


def majority(
    answers: Sequence[str | None],
    *,
    compare: Callable[[str, str], Grade] = compare_answers,
    max_comparisons: int = MAX_COMPARISONS,
    min_share: float = 0.0,
) -> Majority:
    """Group ``answers`` by equivalence and return the vote.

    Missing answers (None or blank) count in ``total`` and never win. Spellings are visited from the most common to
    the rarest, equal counts in order of first appearance; each joins the first group whose representative it equals
    (only Verdict.EQUAL joins), so a group's representative is its most common spelling. Groups are ordered by count;
    of equal counts the one whose representative appeared first wins, and ``tie`` says so. A winner with
    ``count / total < min_share`` gives ``answer`` None.
    """
    spellings: Counter[str] = Counter()
    first: dict[str, int] = {}
    missing = 0
    for index, answer in enumerate(answers):
        spelling = answer.strip() if answer else ""
        if not spelling:
            missing += 1
            continue
        spellings[spelling] += 1
        first.setdefault(spelling, index)

    groups: list[list[str | int]] = []  # [representative, count, index of first appearance]
    comparisons, complete = 0, True
    for spelling, count in sorted(spellings.items(), key=lambda item: (-item[1], first[item[0]])):
        for group in groups:
            if comparisons >= max_comparisons:
                complete = False
                break
            comparisons += 1
            if compare(spelling, str(group[0])).verdict is Verdict.EQUAL:
                group[1] += count  # type: ignore[operator]
                break
        else:
            groups.append([spelling, count, first[spelling]])
            continue
        if not complete:
            groups.append([spelling, count, first[spelling]])
    ranked = sorted(((str(r), int(c), int(i)) for r, c, i in groups), key=lambda g: (-g[1], g[2]))
    best = ranked[0][1] if ranked else 0
    enough = bool(ranked) and best >= min_share * len(answers)
    return Majority(
        answer=ranked[0][0] if enough else None,
        count=best,
        total=len(answers),
        groups=tuple((r, c) for r, c, _ in ranked),
        tie=len(ranked) > 1 and ranked[1][1] == best,
        missing=missing,
        comparisons=comparisons,
        complete=complete,
    )
