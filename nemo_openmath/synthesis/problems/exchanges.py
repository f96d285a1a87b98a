"""Keep, of a seeded sample of units, what a model was asked, what it said and what came of it; and how far a second
model agrees.

For each outcome (``accepted``, a reason of drops, ``disagreement``) those units are kept whose keys are the smallest
under the seed. So the sample is a function of units, outcomes and seed alone: not of the order of the work, the number
of its jobs, or how often it was killed. A line is written only where its unit is among the smallest so far, some
``examples`` * ln(units / ``examples``) lines an outcome, and before the unit is committed: a unit that is done again
after a kill writes its line again, and the last one counts.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from nemo_openmath.core.engine import Engine
from nemo_openmath.core.grader import Vote
from nemo_openmath.core.records import Problem, Record
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import Result
from nemo_openmath.core.tokenizer import Tokenizer

ACCEPTED, DISAGREEMENT = "accepted", "disagreement"
SAMPLES, SECOND = "samples", "second"  # what the files are called: samples-JOB-of-JOBS.jsonl
LETTERS = 20_000  # of a text that is kept


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and the last reply to it."""

    fields: dict[str, object]
    """What the template was filled with."""
    reply: str

    def to_json(self) -> dict[str, Any]:
        """Return a row, with texts of at most ``LETTERS`` characters."""
        return {
            "fields": {name: shortened(str(value)) for name, value in self.fields.items()},
            "reply": shortened(self.reply),
        }


@dataclass(slots=True)
class Interview:
    """Whom the questions of a unit go to, and what was said so far."""

    engine: Engine
    tokenizer: Tokenizer
    exchanges: dict[str, Exchange] = field(default_factory=dict)
    """Key of a question -> the question and its reply. One that is asked again takes the place of the one before."""


_CURRENT: ContextVar[Interview | None] = ContextVar("interview", default=None)


def current_interview() -> Interview | None:
    """Return the interview of the unit that is being done; None outside of one."""
    return _CURRENT.get()


@contextlib.contextmanager
def interviewing(interview: Interview) -> Iterator[Interview]:
    """Let all questions of this task, and of tasks that it starts, belong to an interview."""
    token = _CURRENT.set(interview)
    try:
        yield interview
    finally:
        _CURRENT.reset(token)


def shortened(text: str) -> str:
    """Return a text of at most ``LETTERS`` characters that says what it lacks, without halves of surrogate pairs."""
    more = len(text) - LETTERS
    text = text[:LETTERS] + (f"\n[{more:,} more characters]" if more > 0 else "")
    return text.encode("utf-8", "replace").decode()


class LineJournal:
    """A file of JSON lines that is appended to, a write a line: a kill tears at most the last one, which is ended
    before the next is written."""

    def __init__(self, file: Path):
        self._file: BinaryIO = file.open("ab+", buffering=0)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def append(self, row: dict[str, Any]) -> None:
        """Write a row."""
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._file.close()


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a journal; a torn line is left out."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError):
                yield orjson.loads(line)


class SmallestKeys:
    """For each outcome, the ``keep`` smallest keys that were offered."""

    def __init__(self, keep: int, seed: int):
        self._keep, self._seed = keep, seed
        self._kept: dict[str, list[int]] = {}  # negative, so that the largest key stands first

    def rank(self, unit: str) -> int:
        """Return the key of a unit."""
        return unit_key(f"{self._seed}:{unit}")

    def offer(self, unit: str, outcome: str) -> bool:
        """Return whether a unit is among the smallest of an outcome, with those that were offered before."""
        kept, key = self._kept.setdefault(outcome, []), -self.rank(unit)
        if key in kept:
            return True
        if len(kept) < self._keep:
            heapq.heappush(kept, key)
            return True
        return bool(kept) and heapq.heappushpop(kept, key) != key


class SampleJournal:
    """Keeps the sample of one job in its file."""

    def __init__(self, file: Path, keep: int, seed: int):
        self._smallest = SmallestKeys(keep, seed)
        for row in read_lines(file) if file.exists() else ():
            for outcome in row["outcomes"]:
                self._smallest.offer(row["unit"], outcome)
        self._journal = LineJournal(file) if keep else None

    def takes(self, unit: str, outcomes: Iterable[str]) -> bool:
        """Return whether a unit is in the sample of one of its outcomes, so far: then its row is to be written."""
        offered = [self._smallest.offer(unit, outcome) for outcome in outcomes]  # to all of them
        return self._journal is not None and any(offered)

    def write(self, row: dict[str, Any]) -> None:
        """Write the row of a unit."""
        if self._journal is not None:
            self._journal.append(row)

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()


def read_samples(folder: Path, keep: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return outcome -> rows of a stage's sample, in the order of their keys: those of all jobs together."""
    rows = _last_of_units(folder, SAMPLES)
    smallest = SmallestKeys(keep, seed)
    by_outcome: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows.values(), key=lambda row: smallest.rank(row["unit"])):
        for outcome in row["outcomes"]:
            if len(kept := by_outcome.setdefault(outcome, [])) < keep:
                kept.append(row)
    return by_outcome


def read_second(folder: Path) -> dict[str, tuple[str, str, bool]]:
    """Return unit -> (outcome by the first model, outcome by the second, whether what they made is the same)."""
    return {unit: (row["first"], row["second"], row["same"]) for unit, row in _last_of_units(folder, SECOND).items()}


def _last_of_units(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob(f"{name}-*-of-*.jsonl"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    return {row["unit"]: row for file in files for row in read_lines(file)}


def outcomes_of(result: Result) -> list[str]:
    """Return under what a unit is kept: accepted, and the reasons of its drops."""
    return [*([ACCEPTED] if result.records else []), *dict.fromkeys(drop.reason for drop in result.drops)]


def side_of(interview: Interview, result: Result) -> dict[str, Any]:
    """Return what one model was asked and said, and what came of it."""
    return {
        "asked": [exchange.to_json() for exchange in interview.exchanges.values()],
        "records": [_shown(record) for record in result.records],
        "drops": [{"reason": drop.reason, "detail": shortened(drop.detail)} for drop in result.drops],
    }


def _shown(record: Record) -> dict[str, str]:
    names = ("id", "problem", "expected_answer", "category", "problem_type")
    values = {name: getattr(record, name, None) for name in names}
    return {name: shortened(value) for name, value in values.items() if isinstance(value, str)}


def made_the_same(first: Sequence[Record], second: Sequence[Record], vote: Vote) -> bool:
    """Return whether two models made the same problems, with answers of the same meaning."""
    answers, others = ({r.id: r.expected_answer for r in side if isinstance(r, Problem)} for side in (first, second))
    if answers.keys() != others.keys():
        return False
    return all(_same_answer(answers[name], others[name], vote) for name in answers)


def _same_answer(first: str | None, second: str | None, vote: Vote) -> bool:
    if first is None or second is None or first == second:
        return first == second
    return len(vote(sorted((first, second))).groups) == 1
