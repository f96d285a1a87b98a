"""Problems with the same votes are one pattern, and all hypotheses about all patterns are a few flat arrays.

A hypothesis of a pattern says which open answers are equal to the forum's (a *grouping*), and which of the groups is
right, or that none is. Memory grows with the number of different patterns: about 200 bytes for each of their
hypotheses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.synthesis.answers.votes import (
    CLOSED,
    FORUM,
    JUDGED_EQUAL,
    JUDGED_NOT_EQUAL,
    ProblemVotes,
    Source,
)

Pattern = tuple[tuple[tuple[tuple[Source, int], ...], str], ...]
"""(Votes, open mark) of each class of a problem, in their order."""
MAX_OPEN = 3
"""Most classes of a problem whose equality with the forum's answer is left open, those with most votes first; others
count as different."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pattern_of(votes: ProblemVotes) -> Pattern:
    """Return the pattern of a problem's votes. Its classes are in the same order."""
    return tuple((c.votes, c.open) for c in votes.classes)


@dataclass(frozen=True, eq=False)
class Table:
    """Patterns and their hypotheses. All rows of a pattern stand together.

    Sizes: P patterns, R hypotheses (rows), S sources, F families (models), C groups of groupings.
    """

    patterns: tuple[Pattern, ...]
    weights: Floats
    """[P] problems of each pattern."""
    sources: tuple[Source, ...]
    is_forum: NDArray[np.bool_]
    """[S]"""
    family: Ints
    """[S] the family of each source."""
    families: tuple[str, ...]
    """Sources whose wrong votes are alike: all modes of a model."""
    is_forum_family: NDArray[np.bool_]
    row_pattern: Ints
    """[R]"""
    first_row: Ints
    """[P]"""
    right: Floats
    """[R, S] votes for the true answer."""
    wrong: Floats
    """[R, S] other votes."""
    row_group: Ints
    """[R] the grouping of a hypothesis."""
    row_class: Ints
    """[R] the true group, an index of ``class_votes``; -1 where none is."""
    first_class: Ints
    """[groupings] the first group of each."""
    class_votes: Ints
    """[C, F] votes of each family for each group."""
    wrong_votes: Ints
    """[R, F]"""
    wrong_answers: Ints
    """[R] groups that are wrong."""
    judged: Floats
    """[R, 6] open pairs that are equal, that differ; of equal ones those judged equal, different; of different ones
    likewise."""
    answer_pattern: Ints
    """[A] the pattern of each answer, a class of a pattern."""
    first_answer: Ints
    """[P]"""
    member_row: Ints
    member_answer: Ints
    """Pairs: in this hypothesis this answer is right."""
    forum_answer: Ints
    """[P] the answer that the forum gives, the first one of several; -1 where it gives none."""
    known_equal: tuple[float, float]
    """Pairs that are equal by the grader: judged so, and not."""
    known_different: tuple[float, float]

    def place(self) -> Mapping[Pattern, int]:
        """Return the index of each pattern."""
        return {pattern: index for index, pattern in enumerate(self.patterns)}

    @staticmethod
    def build(problems: Iterable[ProblemVotes]) -> Table:
        """Count the patterns of problems; those without an answer are left out."""
        counts: Counter[Pattern] = Counter()
        known: Counter[tuple[bool, bool]] = Counter()
        for votes in problems:
            if votes.classes:
                counts[pattern_of(votes)] += 1
            for by_grader, by_judges, number in votes.judged:
                known[by_grader, by_judges] += number
        patterns = tuple(sorted(counts))
        return _Builder(patterns, np.array([counts[p] for p in patterns], float)).table(
            (known[True, True], known[True, False]), (known[False, False], known[False, True])
        )


class _Builder:
    """Collects the rows of a table."""

    def __init__(self, patterns: tuple[Pattern, ...], weights: Floats):
        self.patterns, self.weights = patterns, weights
        self.sources = tuple(sorted({source for p in patterns for votes, _ in p for source, _ in votes}))
        self._source = {source: i for i, source in enumerate(self.sources)}
        names = [f"{FORUM} {s[1]}" if s[0] == FORUM else s[0] for s in self.sources]
        self.families = tuple(sorted(set(names)))
        self._family = np.array([self.families.index(name) for name in names], int)

    def table(self, known_equal: tuple[float, float], known_different: tuple[float, float]) -> Table:
        row_pattern, row_group, row_class, wrong_answers = list[int](), list[int](), list[int](), list[int]()
        right, wrong, class_votes = list[Ints](), list[Ints](), list[Ints]()
        judged, members = list[tuple[int, ...]](), list[tuple[int, int]]()
        first_class, answer_pattern, forum_answer = list[int](), list[int](), list[int]()
        size, num_groups = len(self.sources), 0
        for index, pattern in enumerate(self.patterns):
            counts = np.zeros((len(pattern), size), np.int64)
            for k, (votes, _) in enumerate(pattern):
                for source, number in votes:
                    counts[k, self._source[source]] += number
            total, first_answer = counts.sum(0), len(answer_pattern)
            answer_pattern += [index] * len(pattern)
            home = _forum_class(pattern)
            forum_answer.append(-1 if home is None else first_answer + home)
            for groups, verdicts in _groupings(pattern):
                start, num_groups = num_groups, num_groups + len(groups)
                by_group = np.stack([counts[list(group)].sum(0) for group in groups])
                first_class.append(start)
                class_votes.append(by_group)
                for truth in range(-1, len(groups)):
                    own = by_group[truth] if truth >= 0 else np.zeros(size, np.int64)
                    if truth >= 0:
                        members += [(len(row_pattern), first_answer + k) for k in groups[truth]]
                    row_pattern.append(index)
                    right.append(own)
                    wrong.append(total - own)
                    row_group.append(len(first_class) - 1)
                    row_class.append(start + truth if truth >= 0 else -1)
                    wrong_answers.append(len(groups) - (truth >= 0))
                    judged.append(verdicts)
        of_family = np.eye(len(self.families), dtype=np.int64)[self._family]
        pairs = np.array(members, np.int64).reshape(-1, 2)
        wrongs = _stack(wrong, size)
        return Table(
            patterns=self.patterns,
            weights=self.weights,
            sources=self.sources,
            is_forum=np.array([s[0] == FORUM for s in self.sources], bool),
            family=self._family,
            families=self.families,
            is_forum_family=np.array([name.startswith(f"{FORUM} ") for name in self.families], bool),
            row_pattern=np.array(row_pattern, np.int64),
            first_row=np.unique(row_pattern, return_index=True)[1],
            right=_stack(right, size).astype(float),
            wrong=wrongs.astype(float),
            row_group=np.array(row_group, np.int64),
            row_class=np.array(row_class, np.int64),
            first_class=np.array(first_class, np.int64),
            class_votes=(np.concatenate(class_votes) if class_votes else np.zeros((0, size), np.int64)) @ of_family,
            wrong_votes=wrongs @ of_family,
            wrong_answers=np.array(wrong_answers, np.int64),
            judged=np.array(judged, float).reshape(-1, 6),
            answer_pattern=np.array(answer_pattern, np.int64),
            first_answer=np.unique(answer_pattern, return_index=True)[1],
            member_row=pairs[:, 0],
            member_answer=pairs[:, 1],
            forum_answer=np.array(forum_answer, np.int64),
            known_equal=known_equal,
            known_different=known_different,
        )


def _stack(rows: list[Ints], size: int) -> Ints:
    return np.array(rows, np.int64).reshape(len(rows), size)


def _forum_class(pattern: Pattern) -> int | None:
    """Return the class of the forum's answer, the one with most votes where the forum gives several."""
    return next((k for k, (votes, _) in enumerate(pattern) if any(s[0] == FORUM for s, _ in votes)), None)


def _groupings(pattern: Pattern) -> Iterator[tuple[list[tuple[int, ...]], tuple[int, ...]]]:
    """Yield each way to join open classes with the forum's: the groups, as indices of classes, and the counts of
    ``Table.judged``."""
    home = _forum_class(pattern)
    opened = [k for k, (_, mark) in enumerate(pattern) if mark != CLOSED and home is not None][:MAX_OPEN]
    for joined in product((False, True), repeat=len(opened)):
        equal = [k for k, join in zip(opened, joined, strict=True) if join]
        groups = [(k, *(equal if k == home else ())) for k in range(len(pattern)) if k not in equal]
        counts = [0] * 6
        for k, join in zip(opened, joined, strict=True):
            counts[0 if join else 1] += 1
            mark = pattern[k][1]
            if mark in (JUDGED_EQUAL, JUDGED_NOT_EQUAL):
                counts[(2 if join else 4) + (mark == JUDGED_NOT_EQUAL)] += 1
        yield groups, tuple(counts)
