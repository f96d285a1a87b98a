"""What ``extra["answer"]`` of a problem says: where its expected answer is from. Nothing else writes this key.

{"from": "majority", "forum": "7", "votes": [["9", 6], ["7", 1]], "why": "6 of 7 solutions agree"}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nemo_openmath.core.records.types import Problem

KEY = "answer"
FOREIGN = "answer_of_file"
"""Where a foreign value of the same key goes, such as a column ``answer`` of a user's file."""
SHOWN = 8
"""Most groups of answers that a note lists."""


class AnswerOrigin(StrEnum):
    """Where an expected answer is from."""

    FORUM = "forum"  # the answer that the problem came with
    MAJORITY = "majority"  # the most common answer of its solutions
    REPAIRED = "repaired"  # likewise, for no solution reaches the one that it came with
    CALIBRATED = "calibrated"  # the most probable one of all that were given


@dataclass(frozen=True, slots=True)
class AnswerNote:
    """Where the expected answer of a problem is from."""

    origin: AnswerOrigin
    forum: str | None
    """The answer that the problem came with, before any stage replaced it."""
    votes: Sequence[tuple[str, int]] = ()
    """(Answer, solutions that give it), the most common first."""
    why: str = ""
    p: float | None = None
    """Probability that the answer is right, where a model of the answers gave it."""

    def put(self, problem: Problem, answer: str) -> Problem:
        """Return the problem with this answer and this note."""
        note: dict[str, Any] = {"from": str(self.origin), "forum": self.forum}
        if self.p is not None:
            note["p"] = round(self.p, 4)
        if self.votes:
            note["votes"] = [list(vote) for vote in self.votes[:SHOWN]]
        if self.why:
            note["why"] = self.why
        extra = dict(problem.extra)
        if KEY in extra and _note(problem) is None:
            extra[FOREIGN] = extra[KEY]
        return problem.with_(expected_answer=answer, extra=extra | {KEY: note})


def origin_of(problem: Problem) -> AnswerOrigin:
    """Return where the expected answer of a problem is from; the forum where no stage says otherwise."""
    note = _note(problem)
    return AnswerOrigin.FORUM if note is None else AnswerOrigin(note["from"])


def forum_answer(problem: Problem) -> str | None:
    """Return the answer that a problem came with, whatever stages have made of it since."""
    note = _note(problem)
    return problem.expected_answer if note is None else note.get("forum")


def extra_for_solutions(problem: Problem) -> dict[str, Any]:
    """Return what solutions of a problem take over of its ``extra``: all but the note, which a problem says once."""
    return {key: value for key, value in problem.extra.items() if key != KEY or _note(problem) is None}


def _note(problem: Problem) -> dict[str, Any] | None:
    note = problem.extra.get(KEY)
    return note if isinstance(note, dict) and note.get("from") in set(AnswerOrigin) else None
