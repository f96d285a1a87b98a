"""All that is known of one solution. It is read from the records when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.chat import Transcript
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.encoding import again
from nemo_openmath.data.records.shown import transcript_of
from nemo_openmath.evaluation.viewer.index import SolutionIndex

_MOST_SHOWN = 64
"""Most selections, and most members of a group, that a page names."""


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """One solution among those that a selection chose from."""

    id: str
    row: int | None
    """None where it is not in the index."""
    answer: str | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What a stage that judged says of the solution's answer."""

    stage: str
    verdict: str
    reason: str
    votes: list[bool | None]
    grader: str
    """The symbolic grader's verdict and its reason."""
    unreadable: str
    """A reply that could not be read as a vote; "" where there is none, or it is among the replies."""
    replies: list[tuple[bool | None, str]]
    """Each vote with what was said with it; empty where the judgement was made before replies were kept."""


@dataclass(frozen=True)
class ShownSolution:
    """One version of a solution, as a stage left it."""

    row: int
    stage: str
    fields: dict[str, Any]
    transcript: Transcript | None
    problem: str
    others: list[int]
    """Rows of its versions in other stages."""
    selections: list[int]
    """Rows of the selections that chose it."""
    candidates: list[ShownCandidate] = field(default_factory=list)
    """Of a selection: what it chose from."""
    judged: list[Judged] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.fields["id"])


def read_solution(index: SolutionIndex, row: int) -> ShownSolution:
    """Read a solution with all that stands elsewhere about it. Raises UserError where something of it is not there."""
    record = index.record(row)
    values = record.fields
    return ShownSolution(
        row=row,
        stage=index.stages[int(index.columns["stage"][row])],
        fields=values,
        transcript=transcript_of(record),
        problem=index.problems.text(int(index.columns["problem"][row])),
        others=[other for other in index.rows_of(record.id) if other != row],
        selections=index.selections_of(record.id)[:_MOST_SHOWN],
        candidates=_candidates(index, values),
        judged=_judged(index, record.id),
    )


def find_row(index: SolutionIndex, name: str) -> int:
    """Return the row of ``STAGE:ID``, or of the last version of ``ID``. Raises UserError where there is none."""
    for number, stage in enumerate(index.stages):
        if name.startswith(f"{stage}:"):
            rows = index.rows_of(name[len(stage) + 1 :])
            if of_stage := [row for row in rows if index.columns["stage"][row] == number]:
                return of_stage[-1]
    if rows := index.rows_of(name):
        return rows[-1]
    raise UserError(f"no solution {name[:200]!r}", remedy="take an id from a list of solutions")


def name_of(index: SolutionIndex, row: int, name: str) -> str:
    """Return ``STAGE:ID`` of a row."""
    return f"{index.stages[int(index.columns['stage'][row])]}:{name}"


def _candidates(index: SolutionIndex, values: dict[str, Any]) -> list[ShownCandidate]:
    extra = values.get("extra") or {}
    group = extra.get("group")
    if not isinstance(group, str) or not (places := index.groups.find(group)):
        return []
    file, _, _ = places[-1]
    try:
        row = orjson.loads(index.line(places[-1]))
        if row["id"] != group:
            return []
        pairs = list(zip(row["members"], row["answers"], strict=True))[:_MOST_SHOWN]
    except (ValueError, KeyError, TypeError) as error:
        path = index.files[file]
        raise UserError(f"group {group} is damaged ({error!r})", file=path, remedy=again(path)) from error
    chosen = extra.get("chosen")
    return [
        ShownCandidate(name, next(iter(index.rows_of(name)[-1:]), None), answer, name == chosen)
        for name, answer in pairs
    ]


def _judged(index: SolutionIndex, name: str) -> list[Judged]:
    judged: dict[Path, Judged] = {}
    for place in index.judgements.find(name):
        row = orjson.loads(index.line(place))
        if row.get("unit") != name:
            continue
        folder = index.files[place[0]].parent
        votes, replies = list(row["votes"]), list(row.get("replies") or ())
        judged[folder] = Judged(  # the last one of a stage counts
            stage=folder.name,
            verdict=str(row["judged"]),
            reason=str(row["judged_reason"]),
            votes=votes,
            grader=f"{row['symbolic']}: {row['symbolic_reason']}",
            unreadable="" if replies else str(row.get("invalid") or ""),
            replies=list(zip(votes, map(str, replies), strict=False)),
        )
    return list(judged.values())
