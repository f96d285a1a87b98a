"""Keep one of the problems that state the same. statement.py has the rule by which they do.

Only problems with the same mathematics and the same set of words, spelling aside, can be the same, so a hash of both
finds all that have to be compared. MinHash would find a part of them by chance, and would offer the many that differ in
a constant.

Memory: 13 bytes for each problem, 0.3 kB more for each that is dropped, 2 kB for each that is kept in place of others.
Texts that have to be compared are held in portions of ``PORTION`` bytes; each portion reads the problems once more.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.problems.statement import Statement

PORTION = 256 << 20
_RECORD = 2000  # bytes of a problem beside four for each of its characters


@dataclass(frozen=True)
class NearDuplicatesConfig:
    """Settings of ``problems.near_duplicates``: there is none."""


class NearDuplicates(UnitStage[NearDuplicatesConfig, Problem]):
    """Keep one of the problems that are equal but for their form, or nearly equal.

    - Two problems are the same where their numbers, signs and letters are the same in the same order, and their words
      are, too, but for those that only ask or connect, for spelling, and for words that are said twice. Whatever else
      differs, both are kept.
    - The one that states most is kept, and of several the one with the smallest id. A problem that is dropped is the
      same as the one that its drop names.
    - The one that is kept gets the parents of all of them, and the answer that most of them name, as equal problems do.

    Nothing is drawn. All problems are compared, so each job of an array reads them all: one job is enough.
    """

    kind = "problems.near_duplicates"
    Config = NearDuplicatesConfig
    ports = {"problems": "problems"}
    takes = {"problems": "Problem"}
    record = Problem
    concurrency = 1

    async def prepare(self, context: StageContext) -> None:
        self._merged: dict[str, Problem] = {}
        self._dropped: dict[str, tuple[str, bool]] = {}
        """Id of a problem that is dropped -> id of the one that is kept, and whether they differ in form alone."""
        for group in _groups(context):
            self._compare(group, context)

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        if (duplicate := self._dropped.get(unit.id)) is None:
            return Result([self._merged.get(unit.id, unit)])
        keeper, in_form_alone = duplicate
        detail = f"{keeper}: {unit.problem}"
        if in_form_alone:
            return Result(drops=[Drop("the same problem in another form", detail)])
        return Result(drops=[Drop("nearly the same problem", detail)])

    def _compare(self, group: list[Problem], context: StageContext) -> None:
        """Choose, among problems with one key, those that are kept."""
        statements = {problem.id: Statement.of(problem.problem) for problem in group}
        keepers: dict[str, list[Problem]] = {}
        for problem in sorted(group, key=lambda p: (-len(statements[p.id].tokens), p.id)):
            own = statements[problem.id]
            keeper = next((name for name in keepers if statements[name].states(own)), problem.id)
            keepers.setdefault(keeper, []).append(problem)
            if keeper != problem.id:
                self._dropped[problem.id] = (keeper, statements[keeper] == own)
        for name, problems in keepers.items():
            if len(problems) > 1:
                versions = [problem.with_(id=name, problem=problems[0].problem) for problem in problems]
                self._merged[name] = merge(versions, context.services.vote)


def _groups(context: StageContext) -> Iterator[list[Problem]]:
    """Yield the problems that have a key in common with another one, together."""
    keys, sizes = array("Q"), array("I")
    for problem in context.read("problems", Problem):
        keys.append(_key(problem))
        sizes.append(min(4 * len(problem.problem) + _RECORD, 2**32 - 1))
    _, where, counts = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True, return_counts=True)
    repeated = counts[where] > 1
    portions = 1 + int(np.frombuffer(sizes, np.uint32)[repeated].sum(dtype=np.int64)) // PORTION
    del sizes, where, counts
    for portion in range(portions if repeated.any() else 0):
        groups: dict[int, list[Problem]] = defaultdict(list)
        for number, problem in enumerate(context.read("problems", Problem)):  # in the same order every time
            if repeated[number] and keys[number] % portions == portion:
                groups[keys[number]].append(problem)
        yield from groups.values()


def _key(problem: Problem) -> int:
    return unit_key("\0".join(Statement.of(problem.problem).key))
