"""Who gave which answer to a problem, by meaning: what the model of answers reads.

A *class* is the answers that are equal by meaning (grading/majority.py). Each class has the votes of its sources: the
forum, and each model in each mode. A class that the grader can neither join with the forum's answer nor tell from it is
*open*, with the judges' verdict where they were asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_openmath.core.grader import Grader, Verdict
from nemo_openmath.core.merging import ANSWERS
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.answer_note import forum_answer
from nemo_openmath.synthesis.answers.gather import GivenAnswer
from nemo_openmath.synthesis.judge.agreement import DECIDED

KEY = "answer_votes"
FORUM = "forum"
CLOSED, UNJUDGED, JUDGED_EQUAL, JUDGED_NOT_EQUAL = "", "?", "+", "-"

Source = tuple[str, str]
"""(``forum``, type of the problem), or (model, mode)."""


@dataclass(frozen=True, slots=True)
class AnswerClass:
    """Answers to a problem that are equal by meaning."""

    answer: str
    """The most common spelling; the forum's own, where the forum gives it."""
    votes: tuple[tuple[Source, int], ...]
    """(Source, votes), sorted."""
    open: str = CLOSED
    """Whether it may be equal to the forum's answer: one of the four marks of this module."""

    @property
    def is_forum(self) -> bool:
        """Whether the forum gives this answer."""
        return any(source[0] == FORUM for source, _ in self.votes)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.votes)


@dataclass(frozen=True, slots=True)
class ProblemVotes:
    """All answers to one problem."""

    classes: tuple[AnswerClass, ...]
    """In an order of their votes, then of their texts."""
    judged: tuple[tuple[bool, bool, int], ...] = ()
    """(Equal by the grader, equal by the judges, spellings): of pairs that both decided."""

    @staticmethod
    def make(classes: Sequence[AnswerClass], judged: tuple[tuple[bool, bool, int], ...] = ()) -> ProblemVotes:
        """Return the votes with their classes in order."""
        order = sorted(classes, key=lambda c: (-c.total, c.votes, c.open, len(c.answer), c.answer))
        return ProblemVotes(tuple(order), judged)

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``extra["answer_votes"]``."""
        classes = [
            {"answer": c.answer, "votes": [[*source, n] for source, n in c.votes]}
            | ({"open": c.open} if c.open else {})
            for c in self.classes
        ]
        return {"classes": classes} | ({"judged": [list(pair) for pair in self.judged]} if self.judged else {})

    @staticmethod
    def of(problem: Problem) -> ProblemVotes | None:
        """Read the votes of a problem; None where nobody counted them."""
        value = problem.extra.get(KEY)
        if not isinstance(value, dict) or "classes" not in value:
            return None
        classes = [
            AnswerClass(c["answer"], tuple(((a, b), n) for a, b, n in c["votes"]), c.get("open", CLOSED))
            for c in value["classes"]
        ]
        return ProblemVotes.make(classes, tuple((a, b, n) for a, b, n in value.get("judged", ())))


async def count_votes(problem: Problem, given: Sequence[GivenAnswer], grader: Grader) -> ProblemVotes:
    """Group the answer of the forum and those of solutions by meaning."""
    forum = forum_answer(problem)
    told = problem.extra.get(ANSWERS) or ({forum: 1} if forum else {})
    vote = await grader.majority([*(g.answer for g in given), *told])
    votes: list[Counter[Source]] = [Counter() for _ in vote.groups]
    for answer in given:
        if (group := vote.group_of(answer.answer)) is not None:
            votes[group][answer.model, str(answer.mode)] += 1
    names = [name for name, _ in vote.groups]
    opened = [CLOSED] * len(names)
    for text, number in told.items():  # of several threads, where several pose the problem
        if (group := vote.group_of(text)) is not None:
            votes[group][FORUM, problem.problem_type or ""] += number
    if forum is not None and (home := vote.group_of(forum)) is not None:
        names[home] = forum.strip()
        for group, name in enumerate(names):
            if group != home and (await grader.grade(name, forum)).verdict not in DECIDED:
                opened[group] = _judged_mark([g for g in given if vote.group_of(g.answer) == group], forum)
    classes = [
        AnswerClass(name, tuple(sorted(count.items())), mark)
        for name, count, mark in zip(names, votes, opened, strict=True)
    ]
    return ProblemVotes.make(classes, await _judged_pairs(given, grader))


def _judged_mark(given: Sequence[GivenAnswer], forum: str) -> str:
    """What the judges say of a class that is open: each spelling has a vote."""
    verdicts = {(g.answer, g.verdict) for g in given if g.compared_with == forum and g.verdict}
    yes, no = (sum(v == wanted for _, v in verdicts) for wanted in DECIDED)
    return UNJUDGED if yes == no else JUDGED_EQUAL if yes > no else JUDGED_NOT_EQUAL


async def _judged_pairs(given: Sequence[GivenAnswer], grader: Grader) -> tuple[tuple[bool, bool, int], ...]:
    """Count the spellings on which both grader and judges decided, by both."""
    pairs = {(g.answer, g.compared_with, g.judged) for g in given if g.judged and g.compared_with}
    table: Counter[tuple[bool, bool]] = Counter()
    for answer, expected, judged in sorted(pairs):
        verdict = (await grader.grade(answer, expected)).verdict
        if verdict in DECIDED:
            table[verdict is Verdict.EQUAL, judged == Verdict.EQUAL] += 1
    return tuple((by_grader, by_judges, n) for (by_grader, by_judges), n in sorted(table.items()))
