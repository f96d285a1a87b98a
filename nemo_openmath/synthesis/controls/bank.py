"""Banks of known cases: the shipped one (cases/), or a file of the user's own.

A bank is a file of JSON lines, one case each: ``stage``, ``id``, optionally ``sort``, and the fields of the stage's
case (cases.py). A stage takes the lines of its kind.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.readers.lines import raw_lines
from nemo_openmath.synthesis.controls.cases import CASES, Case

_ID = re.compile(r"[A-Za-z0-9._-]{1,60}")


def load_bank(stage: str, file: Path | None = None) -> list[Case]:
    """Return the cases of a kind of stage, of the user's file or, without one, of the shipped bank.

    Raises UserError naming file and row of what is no case, and where a file has no case of the stage.
    """
    if file is None:
        with as_file(files(__package__) / "cases" / f"{stage}.jsonl") as path:
            return load_bank(stage, path)
    cases = [case for case in read_bank(file) if case.stage == stage]
    if not cases:
        raise UserError(f"has no case of {stage}", file=file, remedy=f'add lines with "stage": "{stage}"')
    return cases


def read_bank(file: Path) -> Iterator[Case]:
    """Yield the cases of a file, whatever stages they are for. Raises UserError naming file and row of what is no
    case."""
    names: set[tuple[str, str]] = set()
    for row, line in enumerate(raw_lines(file), 1):
        if not line.strip():
            continue
        try:
            case = parse_case(orjson.loads(line))
            if (case.stage, case.id) in names:
                raise ValueError(f"a second case {case.id!r} of {case.stage}")
        except ValueError as error:
            raise UserError(f"not a case: {error}", file=file, row=row, remedy="mend the line or remove it") from error
        names.add((case.stage, case.id))
        yield case


def parse_case(row: Any) -> Case:
    """Return the case of a line. Raises ValueError saying what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    kind = CASES.get(str(row.get("stage")))
    if kind is None:
        raise ValueError(f"stage {row.get('stage')!r} has no cases; those that have: {', '.join(CASES)}")
    values = {name: value for name, value in row.items() if name != "stage"}
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"unknown field {unknown[0]!r}; fields of {kind.stage}: {', '.join(known)}")
    if missing := [name for name, field in known.items() if name not in values and field.default is MISSING]:
        raise ValueError(f"no {missing[0]!r}")
    types = typing.get_type_hints(kind)
    for name, value in values.items():
        if problem := _mismatch(value, types[name]):
            raise ValueError(f"{name} is {value!r:.60}, {problem}")
        if isinstance(value, list):
            values[name] = tuple(value)
    if not _ID.fullmatch(values["id"]):
        raise ValueError(f"id {values['id']!r:.80} is not made of up to 60 letters, digits, dots, dashes")
    return kind(**values)


def _mismatch(value: Any, wanted: Any) -> str:
    """Return what a value should be; "" where it is that."""
    if wanted is bool:
        return "" if isinstance(value, bool) else "not true or false"
    if wanted == tuple[str, ...]:
        texts = isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)
        return "" if texts else "not a list of texts"
    if value is None:
        return "" if type(None) in typing.get_args(wanted) else "not a text"
    return "" if isinstance(value, str) and (value.strip() or wanted is not str) else "not a text, or an empty one"
