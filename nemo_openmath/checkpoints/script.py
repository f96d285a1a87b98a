"""What the scripts of ``conversion/`` share: one line per result, one line per error, and the exit code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_openmath.errors import ExitCode, OpenMathError, UserError

if TYPE_CHECKING:
    from nemo_openmath.checkpoints.combine import Candidate

_PROSE = (
    *("transcript", "messages", "pieces", "content", "input", "prompt", "problem"),
    *("generation", "generated_solution", "solution", "output", "text"),
)
N = TypeVar("N", int, float)


def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call ``function`` and print what it wrote (a path, or the candidates of a sweep, each as it is finished); exit
    with our codes."""
    try:
        made = function(*arguments, **options)
        if isinstance(made, Iterator):
            for candidate in made:
                print(shown(candidate), flush=True)
        else:
            print(f"wrote {made}", flush=True)
    except OpenMathError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(int(ExitCode.FAILURE))


def shown(candidate: Candidate) -> str:
    """A line about a candidate of a sweep."""
    return f"{'kept' if candidate.kept else 'wrote'} {candidate.path} (ratio {candidate.ratio:g})"


def numbers(kind: type[N]) -> Callable[[str], list[N]]:
    """An argparse type: ``1,2,3`` -> [1, 2, 3]."""

    def parse(text: str) -> list[N]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"{kind.__name__},{kind.__name__},..."
    return parse


def weights_and_sources(
    words: Sequence[str] | None, sources: Sequence[str | Path]
) -> tuple[list[float] | None, list[Path]]:
    """``--weights 0.3 0.7 A B`` as people write it: the numbers are weights, what follows them are sources. UserError
    where there is neither a number nor a source."""
    weights: list[float] = []
    for at, word in enumerate(words or ()):
        try:
            weights += numbers(float)(word)
        except ValueError:
            sources = [*sources, *(words or ())[at:]]
            break
    if words is not None and not weights:
        raise UserError(f"--weights {' '.join(words)}", remedy="write numbers, such as --weights 0.3 0.7 A B")
    return (None if words is None else weights), [Path(source) for source in sources]


def ratios(text: str) -> list[float]:
    """An argparse type: ``0,0.1,...,1`` -> 0, 0.1, 0.2 and so on up to 1."""
    found: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for at, part in enumerate(parts):
        if part not in ("...", "\u2026"):
            found.append(float(part))
            continue
        if len(found) < 2 or at + 1 == len(parts) or not (step := found[-1] - found[-2]) > 0:
            raise ValueError(text)
        start, last = found[-1], float(parts[at + 1])
        count = 1
        while start + step * count < last - step * 1e-6:
            found.append(round(start + step * count, 10))
            count += 1
    if not all(math.isfinite(ratio) for ratio in found):
        raise ValueError(text)
    return found


def texts(path: str | Path, count: int) -> list[str]:
    """The first ``count`` texts of a file: lines, or of JSON lines their fields of prose (else all strings), joined.
    Of a folder: of its part-*.jsonl (a stage's records), else of all its .jsonl files, in the order of their names."""
    if Path(path).is_dir():
        files = sorted(Path(path).glob("part-*.jsonl")) or sorted(Path(path).glob("[!.]*.jsonl"))
        if not files:
            raise UserError(
                "holds no .jsonl", file=path, remedy="give a file of texts, or the folder of a stage's records"
            )
        return [text for file in files for text in texts(file, count)][:count]
    found: list[str] = []
    try:
        with Path(path).open() as file:
            for number, line in enumerate(file, 1):
                if len(found) < count and line.strip():
                    found.append(_text(line, number, path) if str(path).endswith(".jsonl") else line.strip())
    except UnicodeDecodeError:
        raise UserError("is not text", file=path, remedy="give a .txt or .jsonl file") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path, remedy="give a file of texts") from None
    return found


def _text(line: str, number: int, path: str | Path) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error})", file=path, row=number, remedy="give one JSON value a line") from None
    found = _strings(value)
    return "\n".join(
        found or (part for part in (value.values() if isinstance(value, dict) else ()) if isinstance(part, str))
    )


def _strings(value: Any) -> list[str]:
    """The prose of a JSON value, however deep: strings, or what stands under ``_PROSE``, in its order."""
    if isinstance(value, str):
        return [value]
    parts = (
        value if isinstance(value, list) else [value[key] for key in _PROSE if isinstance(value, dict) and key in value]
    )
    return [text for part in parts for text in _strings(part)]
