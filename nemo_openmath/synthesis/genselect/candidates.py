"""What may stand in a group: the solutions of one problem and one mode, with the text that is shown of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nemo_openmath.chat import Transcript
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode


@dataclass(frozen=True, slots=True)
class GroupCandidate:
    """A solution that can be chosen, and the text by which it is judged."""

    generation: Generation
    text: str

    @property
    def key(self) -> str:
        """What tells texts apart: two that differ in white space alone are one."""
        return " ".join(self.text.split())


@dataclass(frozen=True, slots=True)
class Pool:
    """The different texts of the decided solutions of a problem, by class: what training groups are drawn from."""

    right: Sequence[GroupCandidate]
    wrong: Sequence[GroupCandidate]
    ambiguous: int = 0
    """Texts that stand for a right and for a wrong solution. They are in neither class."""
    undecided: int = 0
    """Solutions whose verdict is neither equal nor not_equal. They are in neither class."""

    @classmethod
    def of(cls, candidates: Iterable[GroupCandidate]) -> Pool:
        """Divide candidates by their verdict. Of equal texts the one with the smallest id stays."""
        by_text: dict[str, list[GroupCandidate]] = {}
        undecided = 0
        for candidate in sorted(candidates, key=lambda c: c.generation.id):
            if candidate.generation.verdict not in (Verdict.EQUAL, Verdict.NOT_EQUAL):
                undecided += 1
                continue
            by_text.setdefault(candidate.key, []).append(candidate)
        clear = [same[0] for same in by_text.values() if len({c.generation.correct for c in same}) == 1]
        right = [c for c in clear if c.generation.correct]
        wrong = [c for c in clear if not c.generation.correct]
        return cls(right, wrong, len(by_text) - len(clear), undecided)


@dataclass(frozen=True, slots=True)
class Solved:
    """The solutions of a problem by mode, in the order of their ids."""

    by_mode: dict[Mode, list[Generation]] = field(default_factory=dict)

    @classmethod
    def of(cls, generations: Iterable[Generation]) -> Solved:
        """Sort solutions by mode and id: the order in which they were read changes nothing."""
        by_mode: dict[Mode, list[Generation]] = {}
        for generation in sorted(generations, key=lambda g: g.id):
            by_mode.setdefault(generation.mode, []).append(generation)
        return cls(dict(sorted(by_mode.items())))


def candidates_of(solutions: Iterable[Generation], max_chars: int) -> list[GroupCandidate]:
    """Return the solutions that have an answer and a summary, each with its summary, cut to ``max_chars``."""
    return [
        GroupCandidate(generation, cut(text, max_chars))
        for generation in solutions
        if generation.predicted_answer is not None and (text := summary_of(generation))
    ]


def summary_of(generation: Generation) -> str | None:
    """Return the text after the reasoning; None where there is none."""
    return Transcript.from_json(generation.transcript, ids=False).summary


def cut(text: str, max_chars: int) -> str:
    """Return at most so many characters from the end of a text, where its answer stands, from the beginning of a
    paragraph where one begins in the first half of them."""
    if len(text) <= max_chars:
        return text
    tail = text[-max_chars:]
    break_at = tail.find("\n\n", 0, max_chars // 2)
    return tail if break_at < 0 else tail[break_at:].lstrip("\n")


def fitted(texts: Sequence[str], max_chars: int) -> list[str]:
    """Return the texts cut so that they have at most ``max_chars`` characters together: the longest are cut to one
    length, the others stay."""
    if sum(map(len, texts)) <= max_chars:
        return list(texts)
    left, bound = max_chars, 0
    for number, length in enumerate(sorted(map(len, texts))):
        bound = left // (len(texts) - number)
        if length > bound:
            break
        left -= length
    return [cut(text, max(1, bound)) for text in texts]
