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
    return parser


def overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Accept ``a.b=value`` anywhere on the line."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def numbers(text: str) -> list[float]:
    """``0.3,0.7`` as a list."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"not a list of numbers: {text!r}", remedy="write them as 0.3,0.7") from None
