"""Calls of tools in the protocol of chat servers: the tool that is offered, and calls as servers send them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.core.engine import ToolCall

PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python code in a session whose variables last from call to call, and returns what it "
        "prints and the value of its last expression. sympy and numpy are installed.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The code to run."}},
            "required": ["code"],
        },
    },
}


@dataclass(slots=True)
class CallPart:
    """A call, or what one event of a stream adds to it."""

    index: int | None
    id: str
    name: str
    arguments: str


def read_calls(message: Mapping[str, Any]) -> list[CallPart]:
    """Return the calls in a message or in the delta of a stream, in either of the protocol's two forms. Raises
    ValueError, TypeError or AttributeError where they are none."""
    listed = message.get("tool_calls") or ()
    if not listed and message.get("function_call"):
        listed = [{"index": 0, "function": message["function_call"]}]
    calls = []
    for call in listed:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if arguments is None or isinstance(arguments, Mapping):  # some servers send the object itself
            arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        names = (call.get("id") or "", function.get("name") or "", arguments)
        if not all(isinstance(text, str) for text in names):
            raise ValueError(f"a call of a tool was expected, not {call!r:.80}")
        calls.append(CallPart(call.get("index"), *names))
    return calls


def add_calls(calls: list[CallPart], parts: Iterable[CallPart]) -> None:
    """Add what an event of a stream brings to the calls so far.

    A part belongs to the call of its index. Some servers give none, and then it goes on with the last call unless it
    names one; some give all calls the same index, and then another id is another call.
    """
    for part in parts:
        if part.index is None:
            known = calls[-1] if calls and not part.id and not part.name else None
        else:
            known = next((call for call in reversed(calls) if call.index == part.index), None)
        if known is None or (part.id and known.id and part.id != known.id):
            calls.append(replace(part))
        else:
            known.id, known.name = known.id or part.id, known.name or part.name
            known.arguments += part.arguments


def whole_calls(calls: Iterable[CallPart], number: int) -> tuple[ToolCall, ...]:
    """Return finished calls. One without an id is given one, of nine letters and digits, as the strictest server wants
    it. ``number``: of the turns before, so that no two calls of a conversation share it."""
    return tuple(
        ToolCall(call.id or f"call{number:03}{i:02}", call.name, call.arguments) for i, call in enumerate(calls)
    )
