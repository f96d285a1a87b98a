"""What the files of verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nemo_openmath.errors import UserError


def verb(parent: Any, name: str, text: str, work: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    """A verb with its help and the function that does it."""
    parser: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text)
    parser.set_defaults(work=work)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Accept ``a.b=value`` anywhere on the line."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def numbers(text: str) -> list[float]:
    """An argparse type: ``0.3,0.7`` as a list."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of numbers: {text!r} (write 0.3,0.7)") from None


def shard_of(text: str) -> tuple[int, int]:
    """``I/N`` as (I, N)."""
    shard, _, shards = text.partition("/")
    if not (shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise UserError(f"not a shard: {text!r}", remedy="write I/N with I from 0 to N-1, such as 0/8")
    return int(shard), int(shards)


def at_least(low: int) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low`` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is out of range; choose {low} or more")
        return number

    return parse
