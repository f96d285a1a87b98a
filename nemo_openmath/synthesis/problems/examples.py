"""Tell a reply that repeats a worked example of its prompt from one that is about what was asked.

A small model that does not know what to say copies from its prompt. Such a copy is well formed, and nothing else is
wrong with it but that it has nothing to do with the forum. Where the unit is about the example's problem itself, what
the model says of it is no copy: the mathematics stands in the unit's own text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

from nemo_openmath.synthesis.problems.statement import Statement, signs

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
    def _counted(self) -> list[Counter[tuple[str, bool]]]:
        return [Counter(statement.tokens) for statement in self.statements]

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
        problem = Statement.of(text)
        return any(
            statement.key == problem.key and (statement.states(problem) or problem.states(statement))
            for statement, count in zip(self.statements, self._counted, strict=True)
            if count.total() <= 2 * len(problem.tokens) <= 4 * count.total()
        )

    def are_repeated(self, text: str, own: str) -> bool:
        """Return whether a text is an example's as it stands there, or but for a fifth of its signs and words, none of
        which stands in ``own``."""
        if self.state(text):
            return True
        tokens = Statement.of(text).tokens
        if len(tokens) < _SHORT:
            return False
        counted, own_tokens = Counter(tokens), set(Statement.of(own).tokens)
        return any(
            (counted & count).total() >= _NEAR * max(len(tokens), count.total())
            and not (counted - count).keys() & own_tokens
            for count in self._counted
        )


def repeats_example(prompt: str, own: str, problem: str, answer: str = "", discussion: str = "") -> bool:
    """Return whether a problem, or an answer of two signs or more, is a worked example's of the prompt.

    - ``prompt``: what was asked, its places empty.
    - ``own``: the text that the unit is about. Where all the mathematics of the problem stands there, and the answer
      there or in the discussion, it is the unit's, and so it is where the prompt has the own text for an example.
    """
    examples, known = WorkedExamples.of(prompt), f"{own}\n{discussion}"
    answered = not answer or _stands_in(answer, known)
    copied = not answered and len(bare := tuple(signs(answer))) > 1 and bare in examples.answers
    if not copied and not examples.are_repeated(problem, own):
        return False
    return not examples.state(own) and not (answered and not _mathematics(problem) - _mathematics(own))


def _mathematics(text: str) -> Counter[str]:
    return Counter(token for token, mathematics in Statement.of(text).tokens if mathematics and token not in ",")


def _stands_in(answer: str, text: str) -> bool:
    part, whole = signs(answer), signs(text)
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
