"""Why a kind of stage drops a unit, as far as its source says it in plain words."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator

from nemo_openmath.core.errors import Refused
from nemo_openmath.core.stage import Stage, UnitStage
from nemo_openmath.recipe.setting_docs import class_body


def drop_reasons(stage: type[Stage]) -> list[str]:
    """Return the reasons that the classes of a stage name; ``...`` stands for what only a run knows.

    Read are the first arguments of ``Drop`` and ``Reject`` and what the methods return that choose a reason. Reasons
    that a stage takes from elsewhere, such as a model's answer, are not among them.
    """
    reasons: dict[str, None] = {}
    for cls in stage.__mro__:
        if cls not in (Stage, UnitStage) and cls.__module__.startswith("nemo_openmath."):
            for statement in class_body(cls):
                reasons |= dict.fromkeys(_reasons(statement, _constants(cls.__module__)))
    if issubclass(stage, UnitStage) and stage.engines is not Stage.engines and stage.refused is UnitStage.refused:
        reasons[Refused.reason] = None
    return list(reasons)


def _reasons(statement: ast.stmt, constants: dict[str, ast.expr]) -> Iterator[str]:
    chooses = isinstance(statement, ast.FunctionDef) and any(w in statement.name for w in ("reason", "reject"))
    for node in ast.walk(statement):
        match node:
            case ast.Call(func=ast.Name(id="Drop" | "Reject"), args=[value, *_]):
                yield from _texts(value, constants)
            case ast.Assign(targets=[ast.Name(id="reason")], value=value):
                yield from _texts(value, constants)
            case ast.Return(value=ast.expr() as value) if chooses:
                yield from _texts(value, constants)


def _texts(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """Yield the texts that an expression can be."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
        case ast.IfExp(body=first, orelse=second):
            yield from _texts(first, constants)
            yield from _texts(second, constants)
        case ast.BoolOp(values=parts):
            for part in parts:
                yield from _texts(part, constants)
        case ast.Dict(values=parts):
            for part in parts:
                yield from _texts(part, constants)
        case ast.Name(id=name) if name in constants:
            yield from _texts(constants[name], {})
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[_, *default]) if name in constants:
            yield from _texts(constants[name], {})
            for part in default:
                yield from _texts(part, constants)


def _constants(module: str) -> dict[str, ast.expr]:
    """Return the module's own constants: name -> value."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    return {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
