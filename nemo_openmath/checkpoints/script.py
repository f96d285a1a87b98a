"""What the scripts of ``conversion/`` share: one line per result, one line per error, and the exit code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError
from nemo_openmath.core.records.readers import data_files, format_of, raw_lines, read_file_rows

if TYPE_CHECKING:
    from nemo_openmath.checkpoints.merge.combine import Candidate

_KEYS = (
    *("transcript", "messages", "pieces", "content", "input", "prompt", "problem"),
    *("generation", "generated_solution", "solution", "output", "text"),
)
N = TypeVar("N", int, float)


def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call ``function`` and print what it wrote (a path, or the candidates of a sweep, each as it is finished); exit
    with our codes."""
    try:
        result = function(*arguments, **options)
        if isinstance(result, Iterator):
            for candidate in result:
                print(shown(candidate), flush=True)
        else:
            print(f"wrote {result}", flush=True)
    except OpenMathError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(int(ExitCode.FAILURE))


def shown(candidate: Candidate) -> str:
    """Return a line about a candidate of a sweep."""
    return f"{'kept' if candidate.existed else 'wrote'} {candidate.path} (ratio {candidate.ratio:g})"


def numbers(kind: type[N]) -> Callable[[str], list[N]]:
    """Return an argparse type: ``1,2,3`` -> [1, 2, 3]."""

    def parse(text: str) -> list[N]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"{kind.__name__},{kind.__name__},..."
    return parse


def weights_and_sources(
    words: Sequence[str] | None, sources: Sequence[str | Path]
) -> tuple[list[float] | None, list[Path]]:
    """Read ``--weights 0.3 0.7 A B`` as people write it: numbers are weights, what follows them are sources.

    Raises UserError where there is neither a number nor a source.
    """
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
    """Parse ``0,0.1,...,1`` as 0, 0.1, 0.2 and so on up to 1 (an argparse type)."""
    values: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for at, part in enumerate(parts):
        if part not in ("...", "\u2026"):
            values.append(float(part))
            continue
        if len(values) < 2 or at + 1 == len(parts) or not (step := values[-1] - values[-2]) > 0:
            raise ValueError(text)
        start, last = values[-1], float(parts[at + 1])
        count = 1
        while start + step * count < last - step * 1e-6:
            values.append(round(start + step * count, 10))
            count += 1
    if not all(math.isfinite(ratio) for ratio in values):
        raise ValueError(text)
    return values


def texts(path: str | Path, count: int) -> list[str]:
    """Return the first ``count`` texts of a file or folder.

    Of a file they are its lines; of JSON Lines, JSON, CSV and Parquet the fields of prose of each row (else all its
    texts), joined. Of a folder: of all its data files, of a stage's its records. Raises UserError where there is no
    text.
    """
    if count < 1:
        raise UserError(f"{count} calibration texts", remedy="use 1 or more")
    selected = list(islice((text for file in data_files(path) for text in _texts_of(file) if text.strip()), count))
    if not selected:
        raise UserError("holds no text", file=path, remedy="give a .txt or .jsonl file, or a stage's folder")
    return selected


def _texts_of(file: Path) -> Iterator[str]:
    if format_of(file) != "lines":
        for _, _, row in read_file_rows(file):
            yield _prose(row)
        return
    json_lines = any(suffix in (".jsonl", ".ndjson", ".json") for suffix in file.suffixes)
    for number, line in enumerate(raw_lines(file), 1):
        try:
            text = line.decode().strip()
            if "\0" in text:
                raise UserError("is no text (a zero byte)", file=file, row=number, remedy="give a .txt or .jsonl file")
        except UnicodeDecodeError:
            raise UserError("is not UTF-8", file=file, row=number, remedy="give a .txt or .jsonl file") from None
        if not json_lines or not text:
            yield text
            continue
        try:
            yield _prose(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON ({error})", file=file, row=number, remedy="give one JSON value a line") from None


def _prose(value: Any) -> str:
    parts = _strings(value) or (value.values() if isinstance(value, dict) else ())
    return "\n".join(part for part in parts if isinstance(part, str))


def _strings(value: Any) -> list[str]:
    """The prose of a JSON value, however deep: strings, or what stands under ``_KEYS``, in its order."""
    if isinstance(value, str):
        return [value]
    parts = (
        value if isinstance(value, list) else [value[key] for key in _KEYS if isinstance(value, dict) and key in value]
    )
    return [text for part in parts for text in _strings(part)]
