"""The filter of an address, and the rows of the index for which it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

import numpy as np

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.viewer.index import FINISHES, MODES, VERDICTS, SolutionIndex

ORDERS = ("stored", "longest", "shortest")
_KEPT = 8  # filters whose rows are kept: 4 bytes a row each


@dataclass(frozen=True, slots=True)
class RowFilter:
    """What is shown. Empty texts and None stand for all."""

    stage: str = ""
    mode: str = ""
    verdict: str = ""
    finish: str = ""
    problem: str = ""
    """Id of a problem."""
    text: str = ""
    """Text that the problem holds."""
    least: int | None = None
    """Fewest tokens."""
    most: int | None = None
    order: str = "stored"

    @classmethod
    def parse(cls, query: Mapping[str, str], index: SolutionIndex) -> RowFilter:
        """Read the fields of an address. Raises UserError naming what is unknown."""
        known = {"stage": index.stages, "mode": MODES, "verdict": VERDICTS, "finish": FINISHES, "order": ORDERS}
        values: dict[str, str | int | None] = {}
        for name in (field.name for field in fields(cls)):
            value = query.get(name, "").strip()
            if not value:
                continue
            if name in known and value not in known[name]:
                raise UserError(f"no {name} {value!r}", remedy=nearest(value, list(known[name])))
            values[name] = _number(name, value) if name in ("least", "most") else value
        return cls(**values)  # type: ignore[arg-type]

    def address(self, **changes: str | int) -> str:
        """Return the query of an address with this filter, beginning with ``?``; "" where it holds for all. ``page``
        may be among the changes."""
        page = changes.pop("page", None)
        changed = replace(self, **changes)  # type: ignore[arg-type]
        plain = RowFilter()
        pairs = {f.name: getattr(changed, f.name) for f in fields(RowFilter)}
        pairs = {name: value for name, value in pairs.items() if value != getattr(plain, name)}
        pairs |= {} if page in (None, 1) else {"page": page}
        return f"?{urlencode(pairs)}" if pairs else ""


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UserError(f"{name} is {value[:40]!r}", remedy="write a whole number of tokens")
    return int(value)


class FilteredRows:
    """Finds the rows of filters, and keeps those of the last ones."""

    def __init__(self, index: SolutionIndex):
        self._index = index
        self._kept: OrderedDict[RowFilter, np.ndarray] = OrderedDict()

    def rows(self, chosen: RowFilter) -> np.ndarray:
        """Return the rows for which a filter holds, in its order."""
        if chosen in self._kept:
            self._kept.move_to_end(chosen)
            return self._kept[chosen]
        rows = self._find(chosen)
        self._kept[chosen] = rows
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return rows

    def _find(self, chosen: RowFilter) -> np.ndarray:
        index, columns = self._index, self._index.columns
        keep = np.ones(len(index), bool)
        for name, names in _coded(index):
            if value := getattr(chosen, name):
                keep &= columns[name] == names.index(value)
        if chosen.problem:
            number = index.problems.number(chosen.problem)
            keep &= columns["problem"] == (-1 if number is None else number)
        if chosen.text and len(index):
            keep &= index.problems.search(chosen.text)[columns["problem"]]
        if chosen.least is not None:
            keep &= columns["tokens"] >= chosen.least
        if chosen.most is not None:
            keep &= columns["tokens"] <= chosen.most
        if chosen.order == "stored":
            return np.flatnonzero(keep).astype(np.int32)
        ordered = index.by_tokens if chosen.order == "shortest" else index.by_tokens[::-1]
        return ordered[keep[ordered]]


def _coded(index: SolutionIndex) -> tuple[tuple[str, Sequence[str]], ...]:
    return ("stage", index.stages), ("mode", MODES), ("verdict", VERDICTS), ("finish", FINISHES)


@dataclass(frozen=True, slots=True)
class ProblemCounts:
    """The solutions of each problem among some rows. Arrays of one length."""

    numbers: np.ndarray
    """Of the problems."""
    solutions: np.ndarray
    right: np.ndarray


def by_problem(index: SolutionIndex, rows: np.ndarray, hardest_first: bool) -> ProblemCounts:
    """Count the solutions of each problem, in the order of the share of right ones."""
    columns = index.columns
    problems = columns["problem"][rows]
    right = columns["verdict"][rows] == VERDICTS.index("equal")
    counts = np.bincount(problems, minlength=len(index.problems))
    hits = np.bincount(problems[right], minlength=len(index.problems))
    numbers = np.flatnonzero(counts)
    share = hits[numbers] / counts[numbers]
    order = np.argsort(share if hardest_first else -share, kind="stable")
    numbers = numbers[order]
    return ProblemCounts(numbers, counts[numbers], hits[numbers])
