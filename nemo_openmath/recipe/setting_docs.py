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
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson

from nemo_openmath.core.bounds import Bounds
from nemo_openmath.core.build import default_of


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


def settings(
    config: type, prefix: str = "", types: Mapping[type, type] | None = None, default: Any = None
) -> Iterator[Setting]:
    """Yield every setting of a dataclass, those of nested ones under their dotted names.

    ``types``: type of a field -> the type that it stands for, as in :class:`nemo_openmath.core.build.Builder`.
    ``default``: an instance of ``config`` whose values are the defaults; None: those of the class.
    """
    types = types or {}
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        if not field.init:
            continue
        name, hint = prefix + field.name, hints[field.name]
        hint = types.get(hint, hint) if isinstance(hint, type) else hint
        nested = next((t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)), None)
        value = default_of(field) if default is None else getattr(default, field.name)
        if nested is not None and get_origin(hint) not in (tuple, list, dict):
            yield from settings(nested, f"{name}.", types, value if isinstance(value, nested) else None)
        else:
            shown = None if value is MISSING else orjson.dumps(value, default=str).decode()
            yield Setting(name, type_name(hint), shown, meaning(config, field.name))


def type_name(hint: Any) -> str:
    """Return a type in the words of a user: what to write, and in which range."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([type_name(args[0]), *(str(limit) for limit in args[1:] if limit != Bounds())])
    if origin in (Union, UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (tuple, list):
        return f"list ({type_name(args[0])})"
    if origin is dict:
        return f"mapping, such as {{NAME: {_EXAMPLES.get(_plain(args[1]), 'VALUE')}}} ({type_name(args[1])})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(member.value) for member in hint)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


_EXAMPLES: dict[Any, str] = {str: "text", int: "1", float: "0.5", bool: "true", Path: "./file"}


def _plain(hint: Any) -> Any:
    """Return a type without its range."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def meaning(config: type, name: str) -> str:
    """Return the docstring under a field, of the class or of the one that it inherits the field from; "" for none."""
    return next((docs[name] for cls in config.__mro__[:-1] if name in (docs := field_docs(cls))), "")


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


@cache
def class_body(cls: type) -> list[ast.stmt]:
    """Return the statements of a class as they are written; none where its source is not at hand."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    return ast.parse(source).body[0].body  # type: ignore[attr-defined]


def one_line(text: str | None) -> str:
    """Return a text with its line breaks and indentation replaced by single spaces."""
    return " ".join((text or "").split())


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraph = one_line((text or "").strip().split("\n\n", 1)[0])
    return re.split(r"(?<=[^.]\.) ", paragraph, maxsplit=1)[0]
