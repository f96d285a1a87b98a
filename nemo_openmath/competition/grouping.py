"""Classes of equal answers, by a grader that may hang."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from nemo_openmath.grading import Majority

Vote = Callable[[Sequence[str | None]], Awaitable[Majority]]
"""Counts answers: ``GradingPool.majority``, whose workers keep hard limits, or the like."""


class Grouping:
    """The groups of the answers so far. Their numbers change as answers come."""

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def knows(self, answer: str | None) -> bool:
        """Tell whether an answer has its group. That it is missing needs no grader."""
        return not answer or answer in self._groups

    def group(self, answer: str | None) -> int | None:
        """Return the group of an answer; None where it is missing or not known."""
        return self._groups.get(answer) if answer else None

    def answer(self, group: int | None) -> str | None:
        """Return the answer that stands for a group."""
        return None if group is None else self._names[group]

    def take(self, answers: Sequence[str | None], vote: Majority) -> None:
        """Take over the groups of a vote on all answers."""
        self._groups = {a: group for a in answers if a and (group := vote.group_of(a)) is not None}
        self._names = {number: name for number, (name, _) in enumerate(vote.groups)}
        self.spell([a for a in answers if a and a not in self._groups])

    def spell(self, answers: Sequence[str | None]) -> None:
        """Give each answer without a group that of its very spelling: no grader says more in time."""
        named = {name.strip(): group for group, name in self._names.items()}
        for answer, _ in Counter(a for a in answers if a).most_common():
            if answer not in self._groups:
                group = named.setdefault(answer.strip(), len(self._names))
                self._names.setdefault(group, answer)
                self._groups[answer] = group
