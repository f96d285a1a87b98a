"""JSON without loss: orjson wherever it is exact, Python's own parser for numbers that 64 bits do not hold."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import orjson

ANSWERS = ("expected_answer", "predicted_answer", "answer")
"""Fields whose spelling matters: 0.10 has three digits, and 0.1 is another spelling of it."""

# More digits than 64 bits hold for certain, or an exponent beyond a double's.
_INEXACT = re.compile(rb"[0-9][0-9.]{17}|[0-9][eE][-+]?[0-9]{3}")
_DIGITS = 4300  # Python makes no integer of a longer text


class Number(float):
    """A JSON number as it is spelled: 0.10, 1e400, 12345678901234567890.5. Its value is the nearest double."""

    text: str
    __slots__ = ("text",)

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        return (self.text,)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def loads(data: bytes) -> Any:
    """Return the value of a JSON text, without loss.

    Integers are exact. A number that neither ``int`` nor ``float`` gives back as it is spelled is a :class:`Number`,
    and so are the fractions among the fields ``ANSWERS`` of an object.

    Raises ValueError where it is not JSON (NaN and Infinity are not), with the reason in words.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):  # 1e400 is JSON
            raise
    else:
        spelled = type(value) is dict and any(type(value.get(name)) is float for name in ANSWERS)
        if not spelled and not (_has_odd_float(value) and _INEXACT.search(data)):
            return value
    try:
        return json.loads(data.decode(), parse_int=_integer, parse_float=_fraction, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def repeated_key(data: bytes, value: Any) -> str | None:
    """Return a key that an object of a JSON text gives twice; None where there is none.

    ``value`` is what :func:`loads` made of the text, which holds the last one alone. As many ends of keys in the text
    as keys in the value settle it for nearly every text.
    """
    keys, ends = _keys(value), data.count(b'":') + data.count(b'" :')
    if ends == keys or ends - data.count(rb"\":") - data.count(rb"\" :") == keys:  # quotes in texts are escaped
        return None
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            repeated.extend(name for name in names if names.count(name) > 1)

    try:
        json.loads(data.decode(), object_pairs_hook=look)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return repeated[0] if repeated else None


def _keys(value: Any) -> int:
    """Count the keys of all objects in a value."""
    count, todo = 0, [value] if type(value) in (dict, list) else []
    while todo:
        entry = todo.pop()
        if type(entry) is dict:
            count += len(entry)
            entry = entry.values()
        if type(entry) is not list or not {dict, list}.isdisjoint(map(type, entry)):
            todo += [inner for inner in entry if type(inner) in (dict, list)]
    return count


def dumps(value: Any) -> bytes:
    """Return compact JSON of plain data or of a dataclass: keys in their order, numbers exact."""
    try:
        return orjson.dumps(value, default=_number)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return orjson.dumps(_spelled(value), default=_number)


def _has_odd_float(value: Any) -> bool:
    """Return whether orjson may have changed a number: what 64 bits do not hold becomes a float that is huge, tiny,
    zero or long. Looking at the values is several times faster than searching the text, which is mostly prose and token
    ids."""
    todo = [value]
    while todo:
        entry = todo.pop()
        entries = list(entry.values()) if type(entry) is dict else entry if type(entry) is list else [entry]
        kinds = set(map(type, entries))
        if float in kinds:
            for number in entries:
                if type(number) is float and (not 1e-300 < abs(number) < 2**53 or len(repr(number)) > 16):
                    return True
        if dict in kinds or list in kinds:
            todo += [inner for inner in entries if type(inner) in (dict, list)]
    return False


def _integer(text: str) -> int | Number:
    return int(text) if len(text) <= _DIGITS else Number(text)


def _fraction(text: str) -> float:
    value = float(text)
    return value if repr(value) == text else Number(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _number(value: Any) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _spelled(value: Any) -> Any:
    """Return the same value; integers that orjson refuses become the text that they have in JSON."""
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 64 else orjson.Fragment(str(value))
    if isinstance(value, dict):
        return {name: _spelled(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(entry) for entry in value]
    if is_dataclass(value):
        return {field.name: _spelled(getattr(value, field.name)) for field in fields(value)}
    return value
