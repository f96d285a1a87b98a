"""The routes, in one table: the server is wired from it, and its OpenAPI description is written from it."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from nemo_openmath.core.sandbox import Execution, Limits
from nemo_openmath.sandbox.service.wire import (
    Description,
    Failure,
    Health,
    NewExecution,
    NewReset,
    NewSession,
    SessionState,
)


@dataclass(frozen=True)
class Route:
    """One path of the service."""

    method: str
    path: str
    handler: str
    """Name of a method of `SandboxService`."""
    summary: str
    status: int
    answer: type | str | None
    """Type of the body on success, a media type, or None."""
    body: type | None = None
    failures: tuple[int, ...] = ()


_SESSION = "/v1/sessions/{session}"
ROUTES = (
    Route("GET", "/v1", "describe", "What this service is and how much it grants", 200, Description),
    Route("PUT", _SESSION, "open", "Make a session under an id of your choice (32 hexadecimal digits); again: no "
          "change", 200, SessionState, NewSession, (400, 409, 413, 429, 503)),
    Route("POST", _SESSION + "/executions", "execute", "Run a block; the same number again waits for the first result "
          "or returns it", 200, Execution, NewExecution, (400, 404, 409, 410, 413, 429, 503)),
    Route("DELETE", _SESSION + "/executions/{number}", "cancel", "Kill what runs, or refuse what has not come yet",
          204, None, None, (400, 404)),
    Route("POST", _SESSION + "/reset", "reset", "Forget all variables and files", 204, None, NewReset,
          (400, 404, 409, 410, 413, 429, 503)),
    Route("DELETE", _SESSION, "close_session", "End a session; it need not be there", 204, None, None, (400,)),
    Route("GET", "/health", "health", "Whether it serves; needs no token", 200, Health, None, (503,)),
    Route("GET", "/metrics", "metrics", "Prometheus text format", 200, "text/plain"),
    Route("GET", "/openapi.json", "openapi", "This description", 200, "application/json"),
)  # fmt: skip
OPEN_TO_ALL = ("/health",)  # without a token
_FAILURES = {
    400: "A wrong body, id or limit",
    401: "The bearer token is missing or wrong",
    404: "No such session: it was closed, it expired, or the service was restarted",
    409: "The session is busy or has other limits, or the execution was cancelled",
    410: "The number was used and its result is no longer kept; nothing was run",
    413: "The body is too long",
    429: "Too many sessions or executions; try again after Retry-After seconds",
    500: "A defect of the service",
    503: "Draining, or the sandbox is being restarted; try again after Retry-After seconds",
}


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description."""
    kinds = {kind for route in ROUTES for kind in (route.body, route.answer) if isinstance(kind, type)}
    kinds |= {Failure, Limits}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "openmath sandbox", "version": version("nemo-openmath")},
        "paths": paths,
        "components": {
            "schemas": {kind.__name__: _object(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if isinstance(route.answer, str):
        success["content"] = {route.answer: {}}
    elif route.answer is not None:
        success["content"] = _json(route.answer)
    guarded = route.path not in OPEN_TO_ALL
    failures = sorted({*route.failures, 500, *([401] if guarded else [])})
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "security": [{"token": []}] if guarded else [],
        "responses": {str(route.status): success}
        | {str(status): {"description": _FAILURES[status], "content": _json(Failure)} for status in failures},
    }
    if route.handler == "health":
        operation["responses"]["503"]["content"] = _json(Health)
    if names := re.findall(r"{(\w+)}", route.path):
        operation["parameters"] = [{"name": n, "in": "path", "required": True, "schema": _PARAMETERS[n]} for n in names]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(route.body)}
    return operation


_PARAMETERS = {"session": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "number": {"type": "integer", "minimum": 1}}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _object(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a dataclass of the wire."""
    hints = typing.get_type_hints(kind)
    named = fields(kind)
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": {
            field.name: _schema(hints[field.name]) | ({} if field.default is MISSING else {"default": field.default})
            for field in named
        },
        "required": [field.name for field in named if field.default is MISSING],
    }


def _schema(hint: Any) -> dict[str, Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument) for argument in arguments]}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if hint is type(None):
        return {"type": "null"}
    if isinstance(hint, type) and is_dataclass(hint):
        return {"$ref": f"#/components/schemas/{hint.__name__}"}
    if issubclass(hint, Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    return {"type": _PLAIN[hint]}
