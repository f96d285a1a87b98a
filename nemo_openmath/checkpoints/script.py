"""What the scripts of ``conversion/`` share: one line per result, one line per error, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nemo_openmath.errors import OpenMathError

N = TypeVar("N", int, float)


def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call ``function`` and print what it wrote (a path, or several, each as it is finished); exit with our codes."""
    try:
        made = function(*arguments, **options)
        for path in made if isinstance(made, Iterator) else [made]:
            print(
                f"wrote {path}" if not isinstance(path, tuple) else f"wrote {path[1]} (ratio {path[0]:g})", flush=True
            )
    except OpenMathError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))


def numbers(kind: type[N]) -> Callable[[str], list[N]]:
    """An argparse type: ``1,2,3`` -> [1, 2, 3]."""

    def parse(text: str) -> list[N]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"{kind.__name__},{kind.__name__},..."
    return parse
