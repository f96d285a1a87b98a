"""What a kind of stage takes, makes and can be told: read from its classes, so that it cannot differ from them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.stage import Stage, stage_kinds


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. ``name`` is dotted; ``default`` is None where the setting is required; ``meaning`` may be empty."""

    name: str
    type: str
    default: str | None
    meaning: str


def describe(kind: str) -> str:
    """Text about a kind of stage: what it does, its inputs, what it makes, an entry for a recipe, every setting.

    Raises UserError with the nearest kind where there is none of this name.
    """
    kinds = stage_kinds()
    if kind not in kinds:
        raise UserError(f"no kind of stage {kind!r}", remedy=nearest(kind, list(kinds)))
    cls = kinds[kind]
    lines = [kind, "", *textwrap.wrap(_prose(cls.__doc__), 100), ""]
    lines += ["inputs (from:)" if cls.ports else "inputs: none"]
    for port, text in cls.ports.items():
        lines.append(f"  {port.removesuffix('?')}: {text}{' (may be left out)' if '?' in port else ''}")
    lines += ["makes", f"  {_product(cls)}", "", "in a recipe", f"  {_entry(cls)}", "", "settings"]
    for setting in settings(cls.Config):
        default = "required" if setting.default is None else f"default {setting.default}"
        lines.append(f"  {setting.name}: {setting.type}; {default}")
        lines += textwrap.wrap(setting.meaning, 94, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def settings(config: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a dataclass, those of nested ones below their dotted names."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        if not field.init:
            continue
        name, hint = prefix + field.name, hints[field.name]
        nested = next((t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)), None)
        if nested is not None and get_origin(hint) not in (tuple, list, dict):
            yield from settings(nested, f"{name}.")
        else:
            yield Setting(name, type_name(hint), _default(field), meaning(config, field.name))


def type_name(hint: Any) -> str:
    """A type in the words of a user: what to write, and in which range."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([type_name(args[0]), *map(str, args[1:])])
    if origin in (Union, UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (tuple, list):
        return f"list ({type_name(args[0])})"
    if origin is dict:
        return f"settings by name ({type_name(args[1])})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(member.value) for member in hint)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def meaning(config: type, name: str) -> str:
    """What is said about a setting: in the docstring under its field, of its class or of one that it comes from."""
    for cls in config.__mro__[:-1]:
        if text := field_docs(cls).get(name) or _comments(cls).get(name) or _told(cls.__doc__ or "", name):
            return text
    return _COMMON.get(name, "")


_COMMON = {
    "engine": "what answers: teacher, the name of a stage that made a model, or a model folder",
    "prompt": "a template file of the user's own; null: ours",
    "temperature": "of sampling; 0: the likeliest token",
    "top_p": "sample from the likeliest tokens that have this share together; 1: from all",
    "top_k": "sample from this many likeliest tokens; 0: from all",
    "min_p": "leave out tokens below this share of the likeliest one's probability; 0: none",
    "max_tokens": "of an answer, at most",
    "attempts": "how often a question is asked until its answer can be read",
    "concurrency": "units in flight at once; changes speed alone",
    "workers": "processes; null: one a core; changes speed alone",
    "code_seconds": "time limit of one program, in seconds",
    "code_memory_mb": "memory of one program, in MiB",
    "seed": "of the random choices",
}


def _told(text: str, name: str) -> str:
    """The sentences of a docstring about a setting: from where it is named before a colon to where the next one is."""
    found = re.search(rf"``{name}``(?:, ``\w+``| and ``\w+``)*:\s*(.*?)(?=(?:``\w+``(?:,| and)? ?)+:|\Z)", _prose(text))
    if found is None:  # a sentence that names it
        found = re.search(rf"((?:^|(?<=[.;] ))[^.;]*``{name}``.*?(?:[.;](?= |$)|$))", _prose(text))
    return found[1].strip().rstrip(";") if found else ""


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class: field -> text on one line, paragraphs joined.

    A field that only a base class declares is not among them.
    """
    docs = {}
    for field, below in pairwise(_class_body(cls)):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = _prose(text)
    return docs


def _class_body(cls: type) -> list[ast.stmt]:
    """Return the statements of a class as they are written; none where its source is not at hand."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    return ast.parse(source).body[0].body  # type: ignore[attr-defined]


@cache
def _comments(cls: type) -> dict[str, str]:
    """Setting -> the comment beside it, or on the lines above it."""
    try:
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    except (OSError, TypeError):
        return {}
    out = {}
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, _, beside = lines[node.end_lineno - 1].partition("  # ")  # type: ignore[operator]
            above: list[str] = []
            at = node.lineno - 2
            while lines[at].strip().startswith("# "):
                above.insert(0, lines[at].strip()[2:])
                at -= 1
            out[node.target.id] = " ".join([*above, beside]).strip()
    return out


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: Field[Any]) -> str | None:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return None
    return orjson.dumps(value, default=str).decode()


def _product(cls: type[Stage]) -> str:
    return f"records ({cls.record.__name__})" if cls.record is not None else cls.makes


def _entry(cls: type[Stage]) -> str:
    ports = {p.removesuffix("?"): p for p in cls.ports}
    needed = [name for name, declared in ports.items() if name == declared] or list(ports)
    inputs = {1: ", from: STAGE"}.get(len(needed), f", from: {{{', '.join(f'{n}: STAGE' for n in needed)}}}")
    required = [f", {s.name}: ..." for s in settings(cls.Config) if s.default is None]
    return f"name: {{run: {cls.kind}{inputs if needed else ''}{''.join(required)}}}"
