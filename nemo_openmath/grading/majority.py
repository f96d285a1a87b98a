"""Majority by meaning: answers are grouped by equivalence, not by string. Used for labels and for maj@k alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_openmath.grading import plain
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


@dataclass(slots=True)
class _Group:
    representative: str
    count: int
    first: int  # index of the representative's first appearance
    value: tuple[int, int] | None  # of a plain number
    spellings: list[str]


def majority(
    answers: Sequence[str | None],
    *,
    compare: Callable[[str, str], Grade] = compare_answers,
    max_comparisons: int = MAX_COMPARISONS,
    min_share: float = 0.0,
    by_value: bool = True,
) -> Majority:
    """Group ``answers`` by equivalence and return the vote.

    ``by_value``: plain numbers are told apart by their values, without a comparison; False where ``compare`` sees
    numbers otherwise (``take_modulo``).

    Missing answers (None or blank) count in ``total`` and never win. Spellings are visited from the most common to
    the rarest, equal counts in order of first appearance; each joins the first group whose representative it equals
    (only Verdict.EQUAL joins) and of which no other spelling is certainly different: 5 cm and 5 m both equal 5, and
    not each other. So a group's representative is its most common spelling, and no group holds two answers. Groups
    are ordered by count; of equal counts the one whose representative appeared first wins, and ``tie`` says so. A
    winner with ``count / total < min_share`` gives ``answer`` None.
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

    groups: list[_Group] = []
    homes: dict[tuple[int, int], _Group] = {}
    comparisons, complete = 0, True
    for spelling, count in sorted(spellings.items(), key=lambda item: (-item[1], first[item[0]])):
        value = plain.value(spelling) if by_value else None
        home = homes.get(value) if value is not None else None
        for group in groups if home is None else ():
            if value is not None and group.value is not None:
                continue  # plain numbers of different values
            if comparisons >= max_comparisons:
                complete = False
                break
            comparisons += 1
            if compare(spelling, group.representative).verdict is not Verdict.EQUAL:
                continue
            others = group.spellings[1 : 1 + max_comparisons - comparisons]
            comparisons += len(others)
            if all(compare(spelling, other).verdict is not Verdict.NOT_EQUAL for other in others):
                home = group
                break
        if home is None:
            home = _Group(spelling, 0, first[spelling], value, [])
            groups.append(home)
        home.count += count
        if value is None or value != home.value or not home.spellings:
            home.spellings.append(spelling)
        if value is not None:
            homes.setdefault(value, home)
    ranked = sorted(groups, key=lambda group: (-group.count, group.first))
    best = ranked[0].count if ranked else 0
    enough = bool(ranked) and best >= min_share * len(answers)
    return Majority(
        answer=ranked[0].representative if enough else None,
        count=best,
        total=len(answers),
        groups=tuple((group.representative, group.count) for group in ranked),
        tie=len(ranked) > 1 and ranked[1].count == best,
        missing=missing,
        comparisons=comparisons,
        complete=complete,
    )
