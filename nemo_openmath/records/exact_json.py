"""JSON without loss: orjson wherever it is exact, Python's own parser for integers that 64 bits do not hold."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import orjson

_LONG = re.compile(rb"\d{19}")
_DIGITS = 4300  # Python makes no integer of a longer text


def loads(data: bytes) -> Any:
    """The value of a JSON text. Its integers are exact; those of more than 4300 digits are kept as text.

    Raises ValueError where it is not JSON (NaN and Infinity are not), with the reason in words.
    """
    if not _LONG.search(data):
        return orjson.loads(data)
    return json.loads(data.decode(), parse_int=_integer, parse_constant=_no_constant)


def dumps(value: Any) -> bytes:
    """Compact JSON text of plain data or of a dataclass, keys in their order, integers exact."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain).encode()


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _DIGITS else text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return orjson.loads(orjson.dumps(value))  # dates and times
