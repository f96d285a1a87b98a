"""Each sample of a run with its tokens, its problem, and what the filters did with it.

A stage of samples (``rollout.generate``) counts where a filter reads it, at once or through stages that grade and
judge. A sample is *accepted* where the last filters on its way keep it: one of them, where several read it. Otherwise
it is lost for the first reason that a filter gave. Samples that no filter has decided yet are counted apart.

Memory: nine bytes for each decided sample, and some forty for each sample of a part of the problems; large runs are
gone through part by part.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.encoding import again, id_of_line
from nemo_openmath.core.records.failed import read_failed
from nemo_openmath.core.records.ids import partition_of, unit_key
from nemo_openmath.core.records.manifest import DIVIDED
from nemo_openmath.core.records.store import part_files, partition_in
from nemo_openmath.core.records.types import Generation, Problem
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages

T = TypeVar("T")

GENERATE, FILTERS = "rollout.generate", ("solutions.filter", "solutions.novelty")
ENOUGH = "enough solutions of this problem"  # the filter's reason for good samples beyond a quota
ACCEPTED, UNDECIDED = "accepted", "not filtered yet"
OUTCOMES = 250
"""Most reasons that are told apart; the rest is one."""
_OTHERS = "other reasons"
PART = 1_000_000
"""Samples that are gone through at a time, about."""
CLASSES = ("problem_type", "category", "source", "pass rate")
VALUES = 100
"""Most values of a class that are told apart; the rest is one."""
UNKNOWN, OTHER = "unknown", "others"
BINS = ("0", "0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1", "1")


@dataclass(frozen=True, slots=True)
class SampleStage:
    """A stage of samples with the filters that decide about them."""

    stage: RunStage
    filters: list[RunStage]
    """All on the way, in the order of the stages."""
    last: list[RunStage]
    """Those of them whose records no other of them reads."""
    quota: int
    """Solutions of a problem that are wanted: what the filters keep at most, 1 where they keep all."""
    limited: bool
    """Whether the filters keep at most so many."""


def sample_stages(stages: RunStages) -> Iterator[SampleStage]:
    """Yield the stages of samples that a filter reads, in their order."""
    for stage in stages:
        if stage.kind == GENERATE and stage.begun:
            readers = _readers(stages, stage)
            filters = [reader for reader in readers if reader.kind in FILTERS and reader.begun]
            if any(reader.own for reader in filters):  # what another run made and kept is none of this one's
                folders = {reader.folder for reader in filters}
                inner = {f.folder for f in filters if any(r.folder in folders for r in _readers(stages, f))}
                quotas = [quota for reader in filters if (quota := _quota(reader.settings))]
                last = [reader for reader in filters if reader.folder not in inner]
                yield SampleStage(stage, filters, last, max(quotas, default=1), bool(quotas))


def _readers(stages: RunStages, stage: RunStage) -> list[RunStage]:
    """Return the stages behind one that pass its records on: they read them and hold generations themselves."""
    known = {stage.folder}
    out = []
    for reader in stages:  # each behind those that it reads
        kind = stage_kinds().get(reader.kind)
        made = (GENERATE, "genselect.select")  # what these hold is their own
        passes = reader.kind in FILTERS or (kind is not None and kind.record is Generation and reader.kind not in made)
        if passes and any(source.path in known for source in reader.inputs):
            known.add(reader.folder)
            out.append(reader)
    return out


def _quota(settings: Mapping[str, Any]) -> int:
    return max(int(settings.get("per_problem") or 0), int(settings.get("easy_per_problem") or 0))


class Outcomes:
    """What the filters did with each sample: 64-bit keys of ids and the number of an outcome, sorted by key."""

    def __init__(self, stages: Sequence[SampleStage]):
        self.names = [UNDECIDED, ACCEPTED]
        self._numbers = {name: number for number, name in enumerate(self.names)}
        keys, codes = array("Q"), bytearray()
        filters = {f.folder: f for stage in stages for f in stage.filters}
        last = {f.folder for stage in stages for f in stage.last}
        for stage in filters.values():
            if stage.folder in last:
                for key in _kept(stage):
                    keys.append(key)
                    codes.append(1)
        for stage in filters.values():  # the first reason counts
            for unit, reason in _dropped(stage.folder):
                keys.append(unit_key(unit))
                codes.append(self.number(reason))
        order = np.argsort(wide := np.frombuffer(keys, np.uint64), kind="stable") if keys else np.empty(0, np.int64)
        sorted_keys = wide[order] if keys else np.empty(0, np.uint64)
        first = np.ones(len(sorted_keys), bool)
        first[1:] = sorted_keys[1:] != sorted_keys[:-1]
        self._keys = sorted_keys[first]
        self._codes = np.frombuffer(bytes(codes), np.uint8)[order][first]

    def number(self, name: str) -> int:
        """Return the number of an outcome."""
        if name not in self._numbers:
            if len(self.names) >= OUTCOMES:
                name = _OTHERS
            if name not in self._numbers:
                self._numbers[name] = len(self.names)
                self.names.append(name)
        return self._numbers[name]

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the outcome of each sample, [n]."""
        if not len(self._keys):
            return np.zeros(len(keys), np.uint8)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._codes[at], 0).astype(np.uint8)


def _kept(stage: RunStage) -> Iterator[int]:
    yield from _each(stage, lambda line: unit_key(id_of_line(line)))


def _dropped(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (unit, reason). A last line that is being written is passed over."""
    for path in sorted(folder.glob("drops-*.jsonl")):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _parsed(line, _drop, path, number)
    for failed in read_failed(folder) if folder.is_dir() else ():
        yield failed.unit, failed.reason


def _drop(line: bytes) -> tuple[str, str]:
    row = orjson.loads(line)
    return row["unit"], row["reason"]


def _each(stage: RunStage, parse: Callable[[bytes], T], parts: Sequence[Path] | None = None) -> Iterator[T]:
    """Yield what the lines of a stage's records say. Raises UserError naming file and row of a broken one."""
    if part_files(stage.folder):
        for file, row, line in RecordFolder(stage.folder).lines(parts):
            yield _parsed(line, parse, file, row)


def _parsed(line: bytes, parse: Callable[[bytes], T], file: Path, row: int) -> T:
    try:
        return parse(line)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"is no such line ({error})", file=file, row=row, remedy=again(file)) from error


class ProblemClasses:
    """The classes of problems: for each of ``CLASSES`` the number of a value, by the 64-bit key of the problem's id."""

    def __init__(self, stages: Iterable[RunStage], used: Sequence[SampleStage]):
        self.values: list[list[str]] = [[UNKNOWN] for _ in CLASSES]
        self._numbers: list[dict[str, int]] = [{UNKNOWN: 0} for _ in CLASSES]
        asked = {source.path for sample in used for source in sample.stage.inputs}
        keys, codes = array("Q"), array("B")
        for stage in stages:
            kind = stage_kinds().get(stage.kind)
            if kind is None or kind.record is not Problem:
                continue
            if stage.folder in asked or stage.kind == "solutions.hardness":
                for key, texts in _each(stage, _class_texts):
                    keys.append(key)
                    codes.extend(self._number(at, text) for at, text in enumerate(texts))
        table = (
            np.frombuffer(codes, np.uint8).reshape(-1, len(CLASSES)) if keys else np.zeros((0, len(CLASSES)), np.uint8)
        )
        wide = np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)
        self._keys, at = np.unique(wide, return_inverse=True)
        self._codes = np.zeros((len(self._keys), len(CLASSES)), np.uint8)
        for column in range(len(CLASSES)):  # what a later stage knows holds
            told = np.flatnonzero(table[:, column])
            self._codes[at[told], column] = table[told, column]

    def _number(self, column: int, text: str | None) -> int:
        numbers, values = self._numbers[column], self.values[column]
        text = text or UNKNOWN
        if text not in numbers:
            if len(values) >= VALUES:
                text = OTHER
            if text not in numbers:
                numbers[text] = len(values)
                values.append(text)
        return numbers[text]

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the numbers of the classes of problems, [n, classes]; 0 is unknown."""
        if not len(self._keys):
            return np.zeros((len(keys), len(CLASSES)), np.uint8)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where((self._keys[at] == keys)[:, None], self._codes[at], 0).astype(np.uint8)


def _class_texts(line: bytes) -> tuple[int, tuple[str | None, ...]]:
    row = orjson.loads(line)
    return unit_key(row["id"]), (row.get("problem_type"), row.get("category"), row.get("source"), rate_bin(row))


def rate_bin(row: dict[str, Any]) -> str | None:
    """Return the bin of a problem's pass rate, which holds its upper end; 0 and 1 are bins of their own."""
    rate = row.get("pass_rate")
    if rate is None:
        return None
    return BINS[0] if rate <= 0 else BINS[5] if rate >= 1 else BINS[1 + int(np.searchsorted([0.25, 0.5, 0.75], rate))]


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """Samples of all stages, n of them, sorted by stage, model and mode; then by problem; then by number."""

    group: NDArray[np.uint16]
    """Which stage, model and mode: index into ``groups``."""
    problem: NDArray[np.uint64]
    """Key of the problem's id."""
    tokens: NDArray[np.int64]
    """Tokens that the model generated."""
    outcome: NDArray[np.uint8]
    """What the filters did: index into ``Outcomes.names``."""
    groups: list[SampleGroup]


@dataclass(frozen=True, slots=True, order=True)
class SampleGroup:
    """Which samples are counted together."""

    stage: int
    """Index into the stages of samples."""
    model: str
    mode: str


def read_samples(used: Sequence[SampleStage], outcomes: Outcomes) -> Iterator[SampleColumns]:
    """Yield the samples of all stages, each problem whole in one part. Equal records are one."""
    total = sum(_count(sample.stage) for sample in used)
    parts = max(1, -(-total // PART))
    for part in range(parts):
        groups: dict[SampleGroup, int] = {}
        columns = [array("H"), array("Q"), array("q"), array("q"), array("Q")]
        for number, sample in enumerate(used):
            for name, problem, model, mode, place, tokens in _each(
                sample.stage, _sample, _own_files(sample.stage, part, parts)
            ):
                if parts == 1 or partition_of(problem, parts) == part:
                    group = SampleGroup(number, model, mode)
                    columns[0].append(groups.setdefault(group, len(groups)))
                    columns[1].append(unit_key(problem))
                    columns[2].append(place)
                    columns[3].append(tokens)
                    columns[4].append(unit_key(name))
        if columns[0]:
            yield _sorted(columns, groups, outcomes)


def _sample(line: bytes) -> tuple[str, str, str, str, int, int]:
    row = orjson.loads(line)
    return row["id"], row["problem_id"], row["model"], row["mode"], row["sample"], row.get("completion_tokens", 0)


def _sorted(columns: list[array[int]], groups: dict[SampleGroup, int], outcomes: Outcomes) -> SampleColumns:
    ranks = {group: rank for rank, group in enumerate(sorted(groups))}
    renumbered = np.array([ranks[group] for group in groups], np.uint16)
    group = renumbered[np.frombuffer(columns[0], np.uint16)]
    problem, key = np.frombuffer(columns[1], np.uint64), np.frombuffer(columns[4], np.uint64)
    order = np.lexsort((key, np.frombuffer(columns[2], np.int64), problem, group))
    doubled = np.zeros(len(order), bool)
    doubled[1:] = (key[order][1:] == key[order][:-1]) & (group[order][1:] == group[order][:-1])
    order = order[~doubled]
    tokens = np.frombuffer(columns[3], np.int64)[order]
    return SampleColumns(group[order], problem[order], tokens, outcomes.of(key[order]), sorted(groups))


def _count(stage: RunStage) -> int:
    return sum(1 for _ in _each(stage, len)) if stage.manifest is None else stage.manifest.counts.get("records", 0)


def _own_files(stage: RunStage, part: int, parts: int) -> list[Path] | None:
    """Return the files that may hold problems of a part; None: all."""
    files = part_files(stage.folder)
    if parts == 1 or stage.manifest is None or not stage.manifest.metrics.get(DIVIDED):
        return None
    places = [(file, *partition_in(file)) for file in files]
    return [file for file, number, count in places if (number - part) % gcd(count, parts) == 0]
