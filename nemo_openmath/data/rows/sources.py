"""Other people's data is read as it is: files and folders (JSON Lines, JSON, CSV, Parquet) or a `datasets` name.

Rows are streamed in blocks. A block is raw, so it is cheap to hand to another process, which parses it. Blocks depend
on the data alone, and not on how many jobs or processes share the work:

    of                                      a block is            a job of an array reads
    JSON Lines                              1 MiB of a file       ranges of files
    Parquet                                 256 rows              row groups
    compressed files, CSV, JSON documents   256 rows              whole files
    a dataset of the Hub                    256 rows              all of it, or nothing
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records.readers import (
    RowGroup,
    batch_rows,
    data_files,
    format_of,
    is_compressed,
    lines_between,
    lines_ratio,
    parse_line,
    raw_batches,
    raw_lines,
    read_file_rows,
    row_groups,
)

_ROWS = 256  # of a block at most,
_BYTES = 8 << 20  # and its lines take about this much at most
_RANGE = 1 << 20  # bytes of lines of a block


@dataclass(frozen=True, slots=True)
class LineRange:
    """The lines that begin in the bytes [start, end) of an uncompressed file."""

    file: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. In a file of lines it is known by its first byte: to number rows, all before it would have to
    be read."""

    source: str
    """The file, or dataset and split."""
    number: int
    """Of the row or its first byte, counted from 1."""
    is_byte: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{'byte ' * self.is_byte}{self.number}"


Row = tuple[Place, dict[str, Any] | str]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one file or split. ``begin`` is where its first row stands."""

    begin: Place
    raw: LineRange | list[bytes] | bytes | list[dict[str, Any]] | list[str]
    """Where the lines are, lines, an Arrow batch, fields, or what is wrong."""

    def rows(self) -> Iterator[Row]:
        """Yield (place, fields); for a row that cannot be used, (place, why). Empty lines are passed over."""
        source, first = self.begin.source, self.begin.number
        parsed: Any
        if isinstance(self.raw, LineRange):
            for at, line in lines_between(self.raw.file, self.raw.start, self.raw.end):
                if (row := parse_line(line)) is not None:
                    yield Place(source, at + 1, is_byte=True), row
            return
        if isinstance(self.raw, bytes):
            import pyarrow

            parsed = (row for batch in pyarrow.ipc.open_stream(self.raw) for row in batch_rows(batch))
        else:
            parsed = (parse_line(row) if isinstance(row, bytes) else row for row in self.raw)
        for number, row in enumerate(parsed, first):
            if row is not None:
                yield Place(source, number), row


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a source that one job of an array reads: the ``job``-th of ``jobs`` equal stretches of its bytes."""

    job: int = 0
    jobs: int = 1

    def has(self, begin: int, size: int) -> bool:
        """Return whether what begins at a byte, of ``size`` bytes in all, is of this part."""
        return self._job_at(begin, size) == self.job

    def overlaps(self, begin: int, end: int, size: int) -> bool:
        """Return whether anything that begins in the bytes [begin, end) may be of this part."""
        return self._job_at(begin, size) <= self.job <= self._job_at(max(begin, end - 1), size)

    def _job_at(self, begin: int, size: int) -> int:
        return min(begin * self.jobs // max(1, size), self.jobs - 1)


def read_blocks(source: str | Path, *, split: str | None = None, share: Share = Share()) -> Iterator[Block]:
    """Yield the rows of a local file or folder or, where there is none, of a dataset of the Hub.

    - ``split``: of the dataset (cot, tir, genselect), or of a folder whose files and subfolders are named after splits.
    - ``share``: the part that is read. The blocks of all shares are those of the whole.

    Raises UserError.
    """
    if not Path(source).exists() and _is_hub_name(str(source)):
        yield from _hub_blocks(str(source), split) if share.has(0, 1) else ()
        return
    files = files_of_split(Path(source), data_files(source), split)
    sizes = [file.stat().st_size for file in files]
    begin, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        if share.overlaps(begin, begin + size, total):
            yield from _file_blocks(name_in(source, file), file, begin, total, share)
        begin += size


def _file_blocks(name: str, file: Path, begin: int, total: int, share: Share) -> Iterator[Block]:
    """Yield the blocks of a file that are of a share. ``begin``: the file's first byte among ``total``."""
    kind = format_of(file)
    if kind == "parquet":
        yield from _parquet_blocks(name, file, begin, total, share)
    elif kind == "lines" and not is_compressed(file):
        size, step = file.stat().st_size, round(_RANGE / lines_ratio(file))
        for start in range(0, size, step):
            if share.has(begin + start, total):
                yield Block(Place(name, start + 1, is_byte=True), LineRange(file, start, min(size, start + step)))
    elif share.has(begin, total):
        yield from _line_blocks(name, file) if kind == "lines" else _row_blocks(name, file)


def _hub_blocks(name: str, split: str | None) -> Iterator[Block]:
    if split is None:
        raise UserError(f"dataset {name}: no split given", remedy="name one, as in split: cot")
    done = 0
    try:
        rows = _hub_rows(name, split)
        for first in count(1, _ROWS):
            block = []
            for fields in rows:
                block.append(fields)
                done += 1
                if len(block) == _ROWS:
                    break
            if block:
                yield Block(Place(f"{name}:{split}", first), block)
            if len(block) < _ROWS:
                return
    except (OSError, ValueError) as error:  # what datasets raises: no such name or split, no network, a broken file
        message = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise UserError(
            f"dataset {name}: {split}: cannot be read on ({message})",
            row=done + 1,
            remedy="check name, split and network, or download its files and name their folder",
        ) from error


# Words that name a split, as in the Hub's folders.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NO_SPLITS = ("part", "data", "shard", "chunk", "file")
_FORMAT = re.compile(r"(\.(jsonl|ndjson|json|csv|parquet|gz|zst))+\Z", re.IGNORECASE)
_SHARD_OF = re.compile(r"(.+)-\d{5}-of-\d{5}")
_SEPARATED = re.compile(r"[^A-Za-z0-9]+|(?<=[A-Za-z])(?=\d)")


def files_of_split(source: Path, files: Sequence[Path], split: str | None) -> list[Path]:
    """Return the ``files`` of a source that belong to a split; all of them where ``split`` is None.

    A file belongs to the split that its name names (train.jsonl, train-00000-of-00004.parquet, my_test_2.jsonl.gz),
    else to the one that the nearest folder does (data/train/part-0.parquet). Files that name none belong to train
    where no file names one. A file that was given by itself belongs to any split but another one that it is called
    after. Raises UserError naming the splits that are there where the one asked for is not, and a file that may be of
    two.
    """
    if split is None:
        return list(files)
    named = {file: _splits_of(file, source, split) for file in files}
    wanted = _split_of_word(split)
    for file, names in named.items():
        if len(both := sorted(names & _WORDS.keys())) > 1 and wanted in both:
            problem = f"its name names the splits {' and '.join(both)}"
            raise UserError(problem, file=file, remedy="rename it after the one that it belongs to")
    if source.is_file():
        chosen = [file for file in files if not named[file] or wanted in named[file]]
    elif not any(named.values()):
        chosen = list(files) if wanted == "train" else []
    else:
        chosen = [file for file in files if wanted in named[file]]
    if chosen:
        return chosen
    splits = ", ".join(sorted(set().union(*named.values()))) or "none that is named"
    raise UserError(
        f"no file of the split {split!r}; splits there: {splits}",
        file=source,
        remedy="name one of them, or leave split: out to read all (mode: says what rows are)",
    )


def _splits_of(file: Path, source: Path, split: str) -> set[str]:
    """Return the splits that a file is named after, by the name nearest to it that names any."""
    place = Path(name_in(source, file))
    for name in (_FORMAT.sub("", place.name), *reversed(place.parts[:-1])):
        words = [_split_of_word(word) for word in _SEPARATED.split(name)]
        known = {*_WORDS, "cot", "tir", "genselect", "additional_problems", split}
        splits = {word for word in words if word in known} | ({split} if split in (name, *_parts_of(name)) else set())
        if splits := splits or set(_parts_of(name)):
            return splits
    return set()


def _parts_of(name: str) -> list[str]:
    """Return the name of a shard without its number: a split may be of several words (additional_problems)."""
    sharded = _SHARD_OF.fullmatch(name)
    return [sharded[1]] if sharded and sharded[1] not in _NO_SPLITS else []


def _split_of_word(word: str) -> str:
    return next((split for split, words in _WORDS.items() if word.lower() in words), word)


def read_source(source: str | Path, *, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of :func:`read_blocks` one by one."""
    for block in read_blocks(source, split=split):
        yield from block.rows()


def _line_blocks(name: str, file: Path) -> Iterator[Block]:
    """Yield the blocks of a compressed file of lines."""
    lines: list[bytes] = []
    first = size = 0
    for row, line in enumerate(raw_lines(file), 1):
        if not lines:
            first, size = row, 0
        lines.append(line)
        size += len(line)
        if len(lines) == _ROWS or size >= _BYTES:
            yield Block(Place(name, first), lines)
            lines = []
    if lines:
        yield Block(Place(name, first), lines)


def _parquet_blocks(name: str, file: Path, begin: int, total: int, share: Share) -> Iterator[Block]:
    """Yield the blocks of the row groups of a file; see :func:`_file_blocks`."""
    import pyarrow

    own: list[RowGroup] = []
    for group in row_groups(file):
        if share.has(begin, total):
            own.append(group)
        begin += group.size
    if not own:
        return
    first = own[0].first  # they follow each other
    for batch in raw_batches(file, _ROWS, own):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        yield Block(Place(name, first), sink.getvalue().to_pybytes())
        first += batch.num_rows


def _row_blocks(name: str, file: Path) -> Iterator[Block]:
    """Yield the blocks of CSV and JSON documents, which are parsed here. An unusable row is a block of its own."""
    rows: list[dict[str, Any]] = []
    broken: list[tuple[int, str]] = []
    first = 1
    for _, row, fields in read_file_rows(file, lambda _, row, why: broken.append((row, why))):
        if rows and (row != first + len(rows) or len(rows) == _ROWS):
            yield Block(Place(name, first), rows)
            rows = []
        if not rows:
            first = row
        rows.append(fields)
    if rows:
        yield Block(Place(name, first), rows)
    for row, why in broken:
        yield Block(Place(name, row), [why])


def name_in(source: str | Path, file: Path) -> str:
    """Return what a file is called inside its source, the same on every machine."""
    return str(file.relative_to(source)) if file != Path(source) else file.name


def _is_hub_name(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and not source.startswith((".", "/", "~"))


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", "reading a dataset by name") from error
    return iter(load_dataset(name, split=split, streaming=True))
