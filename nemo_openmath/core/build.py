"""Plain data -> typed dataclasses, with every value's origin remembered and every mistake named.

Types understood in a configuration: str, int, float, bool, Literal, enums, Path, ``X | None``, tuple/list of X,
dict[str, X], nested dataclasses, and ranges of these (``bounds.py``). Nothing is guessed: "3" is no int, 1 is no str;
an int is a float.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from nemo_openmath.core.bounds import Bounds, Length
from nemo_openmath.core.errors import UserError

T = TypeVar("T")
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: ``default``, ``override``, an option of the command line, or a file and its line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def error(self, name: str, problem: str, remedy: str = "") -> UserError:
        """Return an error about what was written here. ``name``: what files call it; an option has a name of its
        own."""
        whole = problem if self.file.startswith("--") else f"{name}: {problem}"
        return UserError(whole, file=self.file, row=self.line, remedy=remedy)


DEFAULT = Origin("default")
OVERRIDE = Origin("override")


@dataclass(frozen=True, slots=True)
class Value:
    """A resolved setting and where it came from, for ``recipe show``."""

    key: Key
    value: Any
    origin: Origin


class Builder:
    """Builds dataclasses from nested dicts, and names every mistake with its file and line.

    A dataclass may say in a class variable ``retired`` what to write instead of settings that it once had.

    - ``origin(key)`` says where the value at ``key`` was written.
    - Relative paths are relative to the file that they are written in, those of overrides to the working directory
      ``here``. Without ``folder`` they stay as they are.
    - ``types``: type of a field -> the type that it stands for, for settings of which only the caller knows the class.
    - ``written(key)`` is the key by which errors name a setting: where one setting of a file stands for several.
    - ``taken_out(key)`` says of a setting that ``data`` leaves out whether somebody wrote ``null`` over it.
    """

    def __init__(
        self,
        origin: Callable[[Key], Origin],
        folder: Path | None = None,
        here: Path = Path(),
        types: Mapping[type, type] | None = None,
        taken_out: Callable[[Key], bool] = lambda key: False,
    ):
        self.origin = origin
        self.folder = folder
        self.here = here
        self.types = types or {}
        self.written: Callable[[Key], Key] = lambda key: key
        self.taken_out = taken_out
        self.values: list[Value] = []

    def build(self, kind: type[T], data: Any, key: Key = (), default: T | None = None) -> T:
        """Return an instance of the dataclass ``kind``. What ``data`` leaves out is taken from ``default``, where the
        settings around it have one of their own, else from the class. Raises UserError with file, line, key and remedy.
        """
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise self.error(key, f"expected settings of {kind.__name__}, got {_show(data)}")
        hints = typing.get_type_hints(kind, include_extras=True)
        known = {f.name: f for f in fields(kind) if f.init}  # type: ignore[arg-type]
        retired: Mapping[str, str] = getattr(kind, "retired", {})
        for name in data:
            if name in retired:
                raise self.error((*key, name), "there is no such setting any more", retired[name])
            if name not in known:
                raise self.unknown((*key, str(name)), list(known))
        made: dict[str, Any] = {}
        for name, spec in known.items():
            at = (*key, name)
            value = default_of(spec) if default is None else getattr(default, name)
            if name in data and type(value) is hints[name] and is_dataclass(value):
                made[name] = self.build(type(value), data[name], at, value)
            elif name in data:
                made[name] = self.convert(hints[name], data[name], at)
            elif value is not None and _may_be_null(hints[name]) and self.taken_out(at):
                made[name] = self.convert(hints[name], None, at)
            elif value is MISSING:
                raise self.error(at, "this setting is required")
            else:
                made[name] = value
                self._record_default(at, value)
        try:
            return kind(**made)
        except (ValueError, UserError) as error:  # a dataclass's own check in __post_init__
            raise self.error(key, str(error)) from error

    def base(self, key: Key) -> Path:
        """Return the folder that a relative path at ``key`` is relative to: its file's, or for an override the working
        directory."""
        origin = self.origin(key)
        return self.here if origin is OVERRIDE else Path(origin.file).parent

    def convert(self, hint: Any, value: Any, key: Key) -> Any:
        """Return ``value`` as the type ``hint``. Raises UserError."""
        if isinstance(hint, type):
            hint = self.types.get(hint, hint)
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._within(self.convert(args[0], value, key), args[1:], key)
        if is_dataclass(hint):
            return self.build(typing.cast(type, hint), value, key)
        if origin in (Union, types.UnionType):
            return self._convert_union(args, value, key)
        if origin in (tuple, list):
            if not isinstance(value, list):
                raise self.error(key, f"expected a list, got {_show(value)}")
            converted = [self.convert(args[0], v, (*key, str(i))) for i, v in enumerate(value)]
            return tuple(converted) if origin is tuple else converted
        if origin is dict:
            if not isinstance(value, dict):
                raise self.error(key, f"expected a mapping such as {{name: value}}, got {_show(value)}")
            return {str(k): self.convert(args[1], v, (*key, str(k))) for k, v in value.items()}
        converted = self._convert_plain(hint, origin, args, value, key)
        self.values.append(Value(key, converted, self.origin(key)))
        return converted

    def _within(self, made: Any, limits: Sequence[Any], key: Key) -> Any:
        for limit in limits:
            if isinstance(limit, Bounds | Length) and (problem := limit.problem(made)):
                raise self.error(key, problem)
        return made

    def _convert_plain(self, hint: Any, origin: Any, args: tuple[Any, ...], value: Any, key: Key) -> Any:
        if isinstance(value, int) and not -_WORD <= value < _WORD:
            raise self.error(key, f"{_show(value)} is beyond 64 bits", "choose a smaller number")
        if hint is Any:
            return value
        if origin is Literal:
            if value not in args:
                raise self.choice(key, value, [str(a) for a in args])
            return next(a for a in args if a == value)
        if isinstance(hint, type) and issubclass(hint, Enum):
            names = [str(member.value) for member in hint]
            if value not in names:
                raise self.choice(key, value, names)
            return hint(value)
        if hint is Path and isinstance(value, str):
            return Path(value) if self.folder is None else self.base(key) / value
        if hint is float and isinstance(value, str):  # YAML reads 1e-4 as a string
            try:
                return float(value)
            except ValueError:
                pass
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if hint in (str, int, float, bool) and type(value) is hint:
            return value
        name = getattr(hint, "__name__", str(hint))
        quotes = hint is str and isinstance(value, int | float) and not isinstance(value, bool)
        remedy = "write it in quotes" if quotes else ""
        raise self.error(key, f"expected {_NAMES.get(name, name)}, got {_show(value)}", remedy)

    def _convert_union(self, args: Sequence[Any], value: Any, key: Key) -> Any:
        if value is None and type(None) in args:
            self.values.append(Value(key, None, self.origin(key)))
            return None
        options = [a for a in args if a is not type(None)]
        for i, option in enumerate(options):
            mark = len(self.values)
            try:
                return self.convert(option, value, key)
            except UserError:
                del self.values[mark:]
                if i == len(options) - 1:
                    raise
        raise AssertionError("a union has members")

    def _record_default(self, key: Key, value: Any) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            for spec in fields(value):
                self._record_default((*key, spec.name), getattr(value, spec.name))
        else:
            self.values.append(Value(key, value, DEFAULT))

    def error(self, key: Key, problem: str, remedy: str = "") -> UserError:
        """Return a UserError that names the file, the line and the setting; of a section, what overrides changed in it,
        too."""
        origin = self.origin(key)
        name = ".".join(self.written(key)) or "recipe"
        if origin is not OVERRIDE and key and (overridden := self.overridden(key)):
            name += f" (with override {', '.join(overridden)})"
        return origin.error(name, problem, remedy)

    def overridden(self, key: Key) -> tuple[str, ...]:
        """Return the settings below ``key`` that overrides gave, as far as they have been read."""
        below = (v.key[len(key) :] for v in self.values if v.key[: len(key)] == key and v.origin is OVERRIDE)
        return tuple(".".join(names) for names in below if names)

    def unknown(self, key: Key, known: Sequence[str]) -> UserError:
        """Return the error of a setting that nobody knows."""
        return self.error(key, "unknown setting", nearest(key[-1], known))

    def choice(self, key: Key, value: Any, known: Sequence[str]) -> UserError:
        """Return the error of a value that is none of the known ones."""
        return self.error(key, f"{_show(value)} is not a choice", nearest(str(value), known))


def _may_be_null(hint: Any) -> bool:
    """Return whether None is a value of a setting."""
    if get_origin(hint) is Annotated:
        return _may_be_null(get_args(hint)[0])
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def default_of(field: Field[Any]) -> Any:
    """Return the value that a field has where none is given; ``MISSING`` where one must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


_WORD = 1 << 63  # what a whole number is stored in
_NAMES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "Path": "a path"}


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a remedy: the nearest known name, or the list of them."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
