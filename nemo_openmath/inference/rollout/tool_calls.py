"""Calls of the tool ``python`` in the protocol of chat servers: which code they mean, and how they are given back."""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.core.engine import ToolCall

NAME, FIELD = "python", "code"
_NAME_CHARS = 80  # of a tool that there is not, as the model is told
_OPENING = re.compile(r"(`{3,}|~{3,})[ \t]*+(?:python|py)?[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PythonCall:
    """What a call asks for."""

    code: str | None
    """The program; None where the call means none."""
    text: str
    """The program, or the arguments as they were written: what the record has between its tags."""
    error: str
    """What the model is told where there is no program."""
    given_back: ToolCall
    """The call as servers take it back: its arguments are a JSON object."""


def read_call(call: ToolCall) -> PythonCall:
    """Return what a call of a tool asks for.

    Arguments are a JSON object with the one text ``code``. What models write besides is understood: line breaks within
    a JSON text, a JSON text instead of an object, and Python that is no JSON at all; the program may stand in a fence.
    A call of another tool means no program, whatever its arguments hold.
    """
    if not _is_python(call):
        return _no_program(call, f"there is no tool {call.name[:_NAME_CHARS]!r}")
    try:
        value = _loaded(call.arguments)
    except (ValueError, RecursionError):
        value = call.arguments
        if call.arguments.lstrip().startswith("{") and not _is_program(call.arguments):
            return _no_program(call, "the arguments are not JSON")
    if isinstance(value, dict):
        code = value.get(FIELD)
        if not isinstance(code, str):
            return _no_program(call, f"no text {FIELD!r}")
    else:
        code = value if isinstance(value, str) else call.arguments
    code = _without_fence(code.replace("\r\n", "\n")).strip("\n")
    if not code.strip():
        return _no_program(call, "the code is empty")
    return PythonCall(code, code, "", _given_back(call, value if isinstance(value, dict) else {FIELD: code}))


def begun(call: ToolCall) -> str:
    """Return the program of a call that was cut off, as far as it was written; of another tool, its arguments."""
    for ending in ("", '"}', "}", '\\"}') if _is_python(call) else ():
        try:
            value = _loaded(call.arguments + ending)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get(FIELD), str):
            return str(value[FIELD])
    return call.arguments


def _is_python(call: ToolCall) -> bool:
    """Tell whether a call is of the one tool that there is. Some servers write a namespace in front of its name, or
    leave it out."""
    return not call.name.strip() or call.name.rpartition(".")[2].strip().lower() == NAME


def _without_fence(code: str) -> str:
    """Return what stands in the fence that is the whole text; a text without one as it is."""
    lines = code.strip().split("\n")
    opening = _OPENING.fullmatch(lines[0])
    if opening is None or len(lines) < 2 or not lines[-1].endswith(opening[1]):
        return code
    return "\n".join([*lines[1:-1], lines[-1].removesuffix(opening[1]).rstrip(" \t")])


def _no_program(call: ToolCall, problem: str) -> PythonCall:
    error = f"Error: {problem}. Call {NAME} with {{{json.dumps(FIELD)}: a program}}."
    return PythonCall(None, call.arguments, error, _given_back(call, {FIELD: call.arguments}))


def _given_back(call: ToolCall, arguments: object) -> ToolCall:
    return replace(call, name=call.name or NAME, arguments=json.dumps(arguments, ensure_ascii=False))


def _loaded(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError for half a surrogate pair, too: no request and no record can
    hold it."""
    value = json.loads(text, strict=False)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_program(text: str) -> bool:
    """Tell whether a text that begins with a brace is Python. Arguments that are written as a dict of Python, and not
    as JSON, are no program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            first = next(iter(ast.parse(text).body), None)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Dict))
