"""The settings of a dataclass that a YAML file fills: name, type, default and meaning of each, read from the class.

What a setting means is the docstring under its field, so that code, command line and reference pages say the same.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a file."""

    name: str
    """Dotted, as on the command line."""
    type: str
    """What to write, in words: ``whole number, 1 or more``."""
    default: str | None
    """As JSON; None where the setting is required."""
    meaning: str
    """The docstring under the field, on one line."""

    @property
    def paper(self) -> str:
        """The source of the number: the sentences of the meaning that begin with "Paper", without that word."""
        return "; ".join(
            s.removeprefix("Paper ").rstrip(".") for s in _sentences(self.meaning) if s.startswith("Paper ")
        )

    @property
    def plain_meaning(self) -> str:
        """The meaning without the sentences of :attr:`paper`."""
        return " ".join(s for s in _sentences(self.meaning) if not s.startswith("Paper "))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.;!?)]) (?=[A-Z`])", text) if text else []


def settings(config: type, prefix: str = "", types: Mapping[type, type] | None = None) -> Iterator[Setting]:
    """Yield every setting of a dataclass, those of nested ones under their dotted names.

    ``types``: type of a field -> the type that it stands for, as in :class:`nemo_openmath.core.build.Builder`.
    """
    types = types or {}
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        if not field.init:
            continue
        name, hint = prefix + field.name, hints[field.name]
        hint = types.get(hint, hint) if isinstance(hint, type) else hint
        nested = next((t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)), None)
        if nested is not None and get_origin(hint) not in (tuple, list, dict):
            yield from settings(nested, f"{name}.", types)
        else:
            yield Setting(name, type_name(hint), _default(field), meaning(config, field.name))


def type_name(hint: Any) -> str:
    """Return a type in the words of a user: what to write, and in which range."""
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
    found = re.search(
        rf"``{name}``(?:, ``\w+``| and ``\w+``)*:\s*(.*?)(?=(?:``\w+``(?:,| and)? ?)+:|\Z)", one_line(text)
    )
    if found is None:  # a sentence that names it
        found = re.search(rf"((?:^|(?<=[.;] ))[^.;]*``{name}``.*?(?:[.;](?= |$)|$))", one_line(text))
    return found[1].strip().rstrip(";") if found else ""


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class: field -> text on one line, paragraphs joined.

    A field that only a base class declares is not among them.
    """
    docs = {}
    for field, below in pairwise(class_body(cls)):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = one_line(text)
    return docs


def class_body(cls: type) -> list[ast.stmt]:
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


def one_line(text: str | None) -> str:
    """Return a text with its line breaks and indentation replaced by single spaces."""
    return " ".join((text or "").split())


def _default(field: Field[Any]) -> str | None:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return None
    return orjson.dumps(value, default=str).decode()


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraph = one_line((text or "").strip().split("\n\n", 1)[0])
    return re.split(r"(?<=[^.]\.) ", paragraph, maxsplit=1)[0]
