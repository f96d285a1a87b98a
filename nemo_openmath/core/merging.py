"""Equal records are one record, wherever they come from twice. Here, and nowhere else, they become one.

A stage may store the same record for several of its units: a problem that two threads pose, a proof and a problem that
turn out to be the same, a row that two files hold. Whoever reads records (``StageContext.read``) gets each id once,
with the parents of all its versions joined. So no stage can see another version than the next one does.

Versions of a problem may name different expected answers. The rule:

- Every version that names an answer has a vote.
- Votes are counted by meaning (``vote``), and the answer with the most votes holds.
- Where two answers have as many votes, the problem has no expected answer.
- Either way ``extra["answers_given"]`` keeps what was said: answer -> votes.

Versions of a training row have one text. What they tell of its problem (expected answer, source, pass rate) may differ:
what is told holds where another version tells nothing, and of two that tell it differently the first one in the order
of their contents.

Versions of anything else that differ in more than parents and ``extra`` are refused: nobody can say which one is meant.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Vote
from nemo_openmath.core.records import EncodedRecord, Problem, Record, SftRow, read_manifest
from nemo_openmath.core.records.encoding import id_of_line, parse_record
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.store import Partition, folder_sums, record_lines

ANSWERS = "answers_given"
_TOLD_OF_PROBLEM = ("expected_answer", "problem_source", "pass_rate")  # fields of a row
R = TypeVar("R", bound=Record)


def read_merged(folders: Sequence[Path], kind: type[R], vote: Vote, of: Partition | None = None) -> Iterator[R]:
    """Yield the records of finished stages, each id once, at the place where it is first seen.

    ``of``: only those of this partition; versions of a record belong to the same one. Streamed: eight bytes a record
    are kept, and whole records only where an id comes twice. Raises UserError naming file and row of a broken line, or
    the record whose versions contradict each other.
    """
    folders = list({os.path.realpath(folder): folder for folder in folders}.values())
    repeated = set[int]() if _known_apart(folders) else _repeated(folders, kind, of)
    versions: dict[str, list[R]] = {}
    if repeated:
        for file, row, line in record_lines(folders, kind, of):
            if unit_key(name := id_of_line(line)) in repeated:
                versions.setdefault(name, []).append(parse_record(line, kind, file, row))
    for file, row, line in record_lines(folders, kind, of):
        if not repeated or unit_key(name := id_of_line(line)) not in repeated:
            yield parse_record(line, kind, file, row)
        elif (same := versions.pop(name, None)) is not None:
            yield merge(same, vote)


def merge(versions: Sequence[R], vote: Vote) -> R:
    """Return one record of several with the same id. Their order does not matter. Raises UserError where they
    contradict each other."""
    versions = sorted(versions, key=lambda version: EncodedRecord.of(version).content())
    if isinstance(versions[0], Problem):
        return _merge_problems(versions, vote)  # type: ignore[arg-type,return-value]
    first = versions[0]
    told = {
        name: next((value for v in versions if (value := getattr(v, name)) not in (None, "")), getattr(first, name))
        for name in (_TOLD_OF_PROBLEM if isinstance(first, SftRow) else ())
    }
    free = {"parents", "extra", *told}
    for version in versions[1:]:
        for field in fields(first):
            if field.name not in free and getattr(first, field.name) != getattr(version, field.name):
                raise UserError(
                    f"{type(first).__name__} {first.id} is there in versions that differ in {field.name!r}",
                    remedy="name only one of the folders that hold it",
                )
    return replace(first, parents=_parents(versions), extra=_extra(versions), **told)


def _merge_problems(versions: Sequence[Problem], vote: Vote) -> Problem:
    answer, votes = agreed_answer(versions, vote)
    best = next((v for v in versions if v.expected_answer == answer), versions[0])
    ordered = [best, *(v for v in versions if v is not best)]
    known: dict[str, Any] = {
        name: next((value for v in ordered if (value := getattr(v, name)) not in (None, "")), getattr(best, name))
        for name in ("problem_type", "category", "source", "pass_rate")
    }
    extra = _extra(ordered)
    if len(votes) > 1:
        extra[ANSWERS] = votes
        if answer is None:
            known["problem_type"] = "no_answer_extracted"
    return replace(best, parents=_parents(versions), extra=extra, expected_answer=answer, **known)


def agreed_answer(versions: Sequence[Problem], vote: Vote) -> tuple[str | None, dict[str, int]]:
    """Return the answer that most versions name (None where there is none, or a tie), and the votes of each meaning."""
    votes: list[str] = []
    for version in versions:
        if version.extra.get(ANSWERS):  # what earlier votes said counts on
            votes += [a for a, n in version.extra[ANSWERS].items() for _ in range(n)]
        elif version.expected_answer is not None:
            votes.append(version.expected_answer)
    if len(set(votes)) <= 1:
        return (votes[0] if votes else None), Counter(votes)
    counted = vote(sorted(votes))
    return (None if counted.tie else counted.answer), dict(sorted(counted.groups))


def _parents(versions: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parent for version in versions for parent in version.parents))


def _extra(versions: Sequence[Record]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    for version in reversed(versions):
        extra |= version.extra
    return extra


def count_records(folder: Path, vote: Vote, kind: type[Record] | None = None) -> dict[str, int]:
    """Count what lies in the folder of a stage. ``kind``: the type of its records, where it is known.

    - ``records``: each id once.
    - ``merged``: further versions of them.
    - ``disagreeing``: problems whose versions name different answers.
    - ``undecided``: those of them without a majority.
    """
    if kind not in (None, Problem):
        sums = folder_sums(folder)
        if sums.single and sums.aligned:  # nothing is there twice
            return {"records": sums.records, "merged": 0}
    seen, repeated, lines, marked = KeySet(), set[int](), 0, False
    for _, _, line in record_lines([folder]):
        lines += 1
        if not seen.add(key := unit_key(name := id_of_line(line))):
            repeated.add(key)
        marked = marked or (name.startswith(_PROBLEM) and ANSWERS.encode() in line)
    counts = {"records": lines, "merged": 0}
    if not (repeated or marked):
        return counts
    versions: dict[str, list[Problem]] = {}
    disagreeing: Counter[str] = Counter()
    for file, row, line in record_lines([folder]):
        name = id_of_line(line)
        problem = name.startswith(_PROBLEM)
        if unit_key(name) in repeated:
            counts["merged"] += name in versions
            versions.setdefault(name, [])
            if problem:
                versions[name].append(parse_record(line, Problem, file, row))
        elif problem and ANSWERS.encode() in line:
            disagreeing[_state(parse_record(line, Problem, file, row))] += 1
    counts["records"] -= counts["merged"]
    for same in versions.values():
        if same:
            disagreeing[_state(merge(same, vote))] += 1
    del disagreeing[""]
    if disagreeing:
        counts |= {"disagreeing": disagreeing.total(), "undecided": disagreeing["undecided"]}
    return counts


_PROBLEM = "problem-"  # what the id of a problem begins with


def _state(problem: Problem) -> str:
    if ANSWERS not in problem.extra:
        return ""
    return "undecided" if problem.expected_answer is None else "decided"


def _known_apart(folders: Sequence[Path]) -> bool:
    """Return whether a finished stage has said that it holds nothing twice."""
    if len(folders) != 1:
        return not folders
    manifest = read_manifest(folders[0])
    return manifest is not None and manifest.counts.get("merged") == 0


def _repeated(folders: Sequence[Path], kind: type[Record], of: Partition | None) -> set[int]:
    """Return the keys of the ids that stand in more than one line."""
    seen, repeated = KeySet(), set[int]()
    for _, _, line in record_lines(folders, kind, of):
        if not seen.add(key := unit_key(id_of_line(line))):
            repeated.add(key)
    return repeated
