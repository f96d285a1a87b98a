"""Tell a reply that repeats a worked example of its prompt from one that is about what was asked.

A small model that does not know what to say copies from its prompt. Such a copy is well formed, and nothing else is
wrong with it but that it has nothing to do with the forum. Where the unit is about the example's problem itself, what
the model says of it is no copy: the mathematics stands in the unit's own text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from nemo_openmath.synthesis.problems.statement import Statement, Token, signs

_LINES = 6  # that a problem of an example has at most
_LABEL = re.compile(r"[^:\n]{0,40}:[\s*_]*")
_INSIDE = re.compile(r"[ \t]+(?=(?:Original problem|Problem|Answer|Reply|Discussion|Post)(?: \d+)?:)")
_NEAR = 0.8
_SHORT = 6  # tokens; a statement of fewer is an example's only as it stands there


@dataclass(frozen=True)
class WorkedExamples:
    """The texts of a prompt that may be an example's problem or answer: its lines in a row, without their labels."""

    statements: tuple[Statement, ...]
    answers: frozenset[tuple[str, ...]]

    @cached_property
    def _by_key(self) -> dict[tuple[str, ...], list[Statement]]:
        by_key: dict[tuple[str, ...], list[Statement]] = {}
        for statement in self.statements:
            by_key.setdefault(statement.key, []).append(statement)
        return by_key

    @cached_property
    def _counted(self) -> list[Counter[Token]]:
        return [Counter(statement.tokens) for statement in self.statements]

    @cached_property
    def _rows(self) -> dict[Token, int]:
        return {token: row for row, token in enumerate(dict.fromkeys(itertools.chain(*self._counted)))}

    @cached_property
    def _table(self) -> np.ndarray:
        """How often each token (a row) stands in each statement (a column)."""
        table = np.zeros((len(self._rows), len(self.statements)), np.int32)
        for column, counted in enumerate(self._counted):
            for token, count in counted.items():
                table[self._rows[token], column] = count
        return table

    @cached_property
    def _totals(self) -> np.ndarray:
        return self._table.sum(0)

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, prompt: str) -> WorkedExamples:
        """Return the texts of a prompt, given with its places empty."""
        lines = [line.strip() for line in _INSIDE.sub("\n", prompt).splitlines() if line.strip()]
        runs = ["\n".join(lines[at : at + number]) for at in range(len(lines)) for number in range(1, _LINES + 1)]
        texts = {text for run in runs for text in (run, _LABEL.sub("", run, count=1))}
        statements = {statement for text in texts if (statement := Statement.of(text)).tokens}
        bare = {_LABEL.sub("", line, count=1) for line in lines}
        return cls(tuple(statements), frozenset(tuple(signs(text.rstrip("."))) for text in bare))

    def state(self, text: str) -> bool:
        """Return whether an example states the same as a text (statement.py)."""
        return self._states(Statement.of(text))

    def _states(self, problem: Statement) -> bool:
        return any(
            len(statement.tokens) <= 2 * len(problem.tokens) <= 4 * len(statement.tokens)
            and (statement.states(problem) or problem.states(statement))
            for statement in self._by_key.get(problem.key, ())
        )

    def are_repeated(self, text: str, own: str) -> bool:
        """Return whether a text is an example's as it stands there, or but for a fifth of its signs and words, none of
        which stands in ``own``."""
        problem = Statement.of(text)
        if self._states(problem):
            return True
        if len(problem.tokens) < _SHORT:
            return False
        counted = Counter(problem.tokens)
        near = [self._counted[column] for column in self._near(counted, len(problem.tokens))]
        if not near:
            return False
        own_tokens = set(Statement.of(own).tokens)
        return any(not (counted - count).keys() & own_tokens for count in near)

    def _near(self, counted: Counter[Token], total: int) -> list[int]:
        """The statements that share so many tokens with a text of ``total`` tokens."""
        common = [(self._rows[token], count) for token, count in counted.items() if token in self._rows]
        if not common:
            return []
        rows, counts = (np.array(values) for values in zip(*common, strict=True))
        shared = np.minimum(self._table[rows], counts[:, None]).sum(0)
        return np.flatnonzero(shared >= _NEAR * np.maximum(total, self._totals)).tolist()


def repeats_example(prompt: str, own: str, problem: str, answer: str = "", discussion: str = "") -> bool:
    """Return whether a problem, or an answer of two signs or more, is a worked example's of the prompt.

    - ``prompt``: what was asked, its places empty.
    - ``own``: the text that the unit is about. Where all the mathematics of the problem stands there, and the answer
      there or in the discussion, it is the unit's, and so it is where the prompt has the own text for an example.
    """
    examples, bare = WorkedExamples.of(prompt), tuple(signs(answer))
    repeats_answer = len(bare) > 1 and bare in examples.answers
    repeats_problem = examples.are_repeated(problem, own)
    if not repeats_answer and not repeats_problem:
        return False
    answered = not answer or _stands_in(answer, f"{own}\n{discussion}")
    if answered and not repeats_problem:
        return False
    return not examples.state(own) and not (answered and not _mathematics(problem) - _mathematics(own))


def _mathematics(text: str) -> Counter[str]:
    return Counter(token for token, mathematics in Statement.of(text).tokens if mathematics and token not in ",")


def _stands_in(answer: str, text: str) -> bool:
    part, whole = signs(answer), signs(text)
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
