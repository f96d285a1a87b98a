"""Rows of any file become problems with answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.benchmarks.known import SUBSET
from nemo_openmath.grading import extract_answer

FROM_SOLUTION = "solution"
"""As the column of the answer: it is the last box of the solution, as in MATH."""
_WANTED = ("problem", "expected_answer", "id", SUBSET)
_USUAL = {
    "problem": ("problem", "question", "Problem", "Question", "prompt"),
    "expected_answer": ("expected_answer", "answer", "Answer", "final_answer", "target", "gold"),
    "id": ("id", "unique_id", "problem_idx", "problem_id", "ID"),
    SUBSET: (SUBSET, "subset"),
}
_SOLUTIONS = ("solution", "Solution", "reference_solution")


@dataclass(frozen=True, slots=True)
class BenchmarkColumns:
    """Which column of the rows holds what."""

    problem: str
    answer: str
    """Of the answer; where ``boxed``, of a solution whose last box is the answer."""
    boxed: bool = False
    id: str | None = None
    subset: str | None = None

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], given: Mapping[str, str]) -> BenchmarkColumns:
        """Return the columns by name (``given``), the others by what such columns are usually called.

        Raises UserError naming what no column holds, and the columns that there are.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        if unknown := given.keys() - {*_WANTED, FROM_SOLUTION}:
            raise UserError(f"--columns {min(unknown)}: no such value", remedy=f"name {', '.join(_WANTED)}, solution")
        if missing := [column for column in given.values() if column not in names]:
            raise UserError(f"no column {missing[0]!r}; there are {', '.join(names)}", remedy="change --columns")
        problem = given.get("problem") or _first("problem", names)
        answer = given.get("expected_answer") or (None if FROM_SOLUTION in given else _first("expected_answer", names))
        solution = given.get(FROM_SOLUTION) or next((name for name in _SOLUTIONS if name in names), None)
        for what, column in (("problem", problem), ("expected_answer", answer or solution)):
            if column is None:
                raise UserError(
                    f"no column holds the {what}; there are {', '.join(names)}",
                    remedy=f"write --columns {what}=COLUMN",
                )
        return cls(
            str(problem),
            str(answer or solution),
            answer is None,
            given.get("id") or _first("id", names),
            given.get(SUBSET) or _first(SUBSET, names),
        )

    def row(self, fields: Mapping[str, Any], number: int) -> dict[str, Any] | str:
        """Return the row of the benchmark's file, or what is wrong with this one."""
        problem, answer = fields.get(self.problem), fields.get(self.answer)
        if not isinstance(problem, str) or not problem.strip():
            return f"{self.problem!r} holds no problem"
        if self.boxed:
            answer = extract_answer(answer).answer if isinstance(answer, str) else None
            if answer is None:
                return f"{self.answer!r} ends with no answer in a box"
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            return f"{self.answer!r} holds no answer"
        name = fields.get(self.id) if self.id is not None else None
        row: dict[str, Any] = {"id": str(number if name is None else name)}
        if self.subset is not None and fields.get(self.subset) is not None:
            row[SUBSET] = str(fields[self.subset])
        row |= {"problem": problem, "expected_answer": _text(answer)}
        taken = {self.problem, self.answer, self.id, self.subset}
        return row | {k: v for k, v in fields.items() if k not in taken and k not in row and _is_plain(v)}


def _first(what: str, names: Mapping[str, Any]) -> str | None:
    return next((name for name in _USUAL[what] if name in names), None)


def _text(answer: str | float) -> str:
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()


def _is_plain(value: Any) -> bool:
    """Return whether a value can be written as JSON: pictures of a dataset cannot."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | bool)
