"""Why a kind of stage drops a unit, as far as its source says it in plain words."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from nemo_openmath.chat import encode_many
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.stage import Stage, UnitStage
from nemo_openmath.data.packs import write
from nemo_openmath.data.rows import conversion, formatting
from nemo_openmath.data.rows.selection import Choice, FormatRules
from nemo_openmath.data.tokens.tokenization import NO_TARGET
from nemo_openmath.inference.asking import UNFINISHED
from nemo_openmath.recipe.setting_docs import class_body
from nemo_openmath.synthesis.problems import checks
from nemo_openmath.synthesis.problems.classify import CATEGORIES, NO_VERDICT
from nemo_openmath.synthesis.problems.prompted import PromptedStage
from nemo_openmath.synthesis.solutions import novelty
from nemo_openmath.synthesis.solutions.filters import RULES


def drop_reasons(stage: type[Stage]) -> list[str]:
    """Return the reasons that the classes of a stage name, and what they call; ``...`` stands for what only a run
    knows.

    Read are the first arguments of ``Drop``, ``Reject`` and ``drop``, and what functions return that choose a reason.
    """
    reasons: dict[str, None] = {}
    for cls in stage.__mro__:
        if cls not in (Stage, UnitStage) and cls.__module__.startswith("nemo_openmath."):
            for statement in class_body(cls):
                reasons |= dict.fromkeys(_reasons(statement, _constants(cls.__module__)))
            if issubclass(stage, PromptedStage):
                reasons |= dict.fromkeys(_rejections(cls.__module__))
    for source in _ELSEWHERE.get(getattr(stage, "kind", ""), ()):
        reasons |= dict.fromkeys([source] if isinstance(source, str) else _reasons_in(source))
    if issubclass(stage, PromptedStage):
        reasons[UNFINISHED.reason] = None
    if issubclass(stage, UnitStage) and stage.engines is not Stage.engines and stage.refused is UnitStage.refused:
        reasons[Refused.reason] = None
    return list(reasons)


_ELSEWHERE: dict[str, tuple[ModuleType | type | str, ...]] = {
    "problems.extract": tuple(check.reason for check in checks.OF_EXTRACTED),
    "problems.convert_proofs": tuple(check.reason for check in checks.OF_CONVERTED),
    "problems.extract_answers": tuple(check.reason for check in checks.OF_ANSWER),
    "problems.classify": CATEGORIES,  # the category is the reason
    "problems.decontaminate": (NO_VERDICT.reason,),
    "solutions.filter": tuple(reason for rule in RULES.values() for reason in rule.reasons),
    "solutions.read_generations": (
        "an error instead of a generation",
        "an output whose end is not known",
        "empty generation",
        "torn last line",
        "broken row",
    ),
    "solutions.novelty": (novelty,),
    "sft.read": (formatting, conversion, FormatRules),
    "sft.select": (Choice, FormatRules),
    "sft.tokenize": (sys.modules[encode_many.__module__], NO_TARGET),
    "sft.pack": (write,),
}
"""Kind of stage -> where reasons stand that its class takes from elsewhere: modules, classes, or the reasons."""


def _reasons_in(source: ModuleType | type) -> Iterator[str]:
    """Yield the reasons that the functions of a module or class name."""
    if isinstance(source, type):
        statements, module = class_body(source), source.__module__
    else:
        nodes = ast.walk(_parsed(source.__name__))
        statements, module = [node for node in nodes if isinstance(node, ast.FunctionDef)], source.__name__
    constants = _constants(module)
    for statement in statements:
        yield from _reasons(statement, constants)


def _rejections(module: str) -> Iterator[str]:
    """Yield the reasons for which the parsers of a module reject a reply."""
    for node in ast.walk(_parsed(module)):
        match node:
            case ast.Call(func=ast.Name(id="Rejected"), args=[value]):
                yield from _texts(value, {})


def _reasons(statement: ast.stmt, constants: dict[str, ast.expr]) -> Iterator[str]:
    chooses = isinstance(statement, ast.FunctionDef) and any(
        word in statement.name for word in ("reason", "reject", "unfit")
    )
    for node in ast.walk(statement):
        match node:
            case ast.Call(func=ast.Name(id="Drop" | "Reject"), args=[value, *_]):
                yield from _texts(value, constants)
            case ast.Call(func=ast.Attribute(attr="drop"), args=[value, *_]):
                yield from _texts(value, constants)
            case ast.Assign(targets=[ast.Name(id="reason" | "unfit")], value=value):
                yield from _texts(value, constants)
            case ast.Return(value=ast.expr() as value) if chooses:
                yield from _texts(value, constants)


def _texts(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """Yield the texts that an expression can be."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(_part(part, constants) for part in parts)
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


def _part(part: ast.expr, constants: dict[str, ast.expr]) -> str:
    """A part of a text that is put together: itself, the constant that it names, or ``...``."""
    match part:
        case ast.Constant(value=text):
            return str(text)
        case ast.FormattedValue(value=ast.Name(id=name)) if isinstance(value := constants.get(name), ast.Constant):
            return str(value.value)
    return "..."


@cache
def _constants(module: str) -> dict[str, ast.expr]:
    """Return the module's own constants: name -> value."""
    body = _parsed(module).body
    return {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))
