"""Records with their transcripts in one file: JSON Lines, also compressed, or Parquet. It appears whole or not at all.

Parquet has the types of the records' fields; a batch of rows is in memory at once. What has no type of its own is JSON:

    extra        string, JSON of the fields that we do not know
    transcript   struct<messages: list<struct<role, content>>, pieces: list<struct<author, text, ids: list<int32>>>,
                 ended: bool, tokenizer: string>
"""

from __future__ import annotations

import contextlib
import errno
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO

from nemo_openmath.chat.token_ids import TokenIds
from nemo_openmath.core.errors import UserError, no_space, refuse_special
from nemo_openmath.core.grader import Vote
from nemo_openmath.core.locks import is_open_file, try_lock
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.outputs import REMEDY
from nemo_openmath.core.records import Record, exact_json
from nemo_openmath.core.records.bodies import loaded
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.data.records.stored import Condition, RecordFolder, check_fields

_FORMATS = (".jsonl", ".jsonl.zst", ".parquet")
_BATCH_BYTES = 1 << 25  # of JSON, in a row group
_BATCH_ROWS = 4096


def export(
    folder: RecordFolder, output: Path, vote: Vote, *, where: Sequence[Condition] = (), replace: bool = False
) -> int:
    """Write the records of a folder for which all conditions hold, each id once (``core.merging``), and return their
    number.

    ``replace``: take the place of a file that is there. Raises UserError where the output is no place for them, where
    there is nothing to write, and for a transcript that is not there; SystemFailure where the disk is full.
    """
    _check_output(output, replace=replace)
    write = _writer(output)
    if (kind := folder.kind) is None:
        raise UserError("there is no record in it", file=folder.path, remedy="see why in its drops-*.jsonl")
    check_fields(where, kind)
    lines = _joined(folder, kind, where, vote)
    with _whole(output) as file:
        number = write(file, lines, kind)
        if not number:
            raise UserError("no record of it meets the conditions", file=folder.path, remedy="ask for others")
    return number


def _writer(output: Path) -> Callable[[BinaryIO, Iterable[bytes], type[Record]], int]:
    name = output.name.lower()
    if name.endswith(".parquet"):
        return _write_parquet
    if name.endswith(".jsonl"):
        return _write_lines
    if name.endswith(".jsonl.zst"):
        return _write_compressed
    raise UserError("a format that is not written", file=output, remedy=f"end its name in {', '.join(_FORMATS)}")


def _check_output(output: Path, *, replace: bool) -> None:
    refuse_inside_stage(output)
    refuse_special(output, "give the name of a file")
    if output.exists() and not replace:
        raise UserError("is there already", file=output, remedy=f"{REMEDY}, or add --replace")


def _joined(folder: RecordFolder, kind: type[Record], where: Sequence[Condition], vote: Vote) -> Iterator[bytes]:
    """Yield a line of JSON for each record."""
    once = folder.manifest is not None and folder.manifest.counts.get("merged") == 0
    if once or folder.unfinished:
        for stored in folder.records(where):
            yield stored.joined()
        return
    for record in read_merged([folder.path], kind, vote):
        row = {field.name: getattr(record, field.name) for field in fields(record)}
        if all(condition.holds(row) for condition in where):
            if "transcript" in row:
                row["transcript"] = loaded(row["transcript"])
            yield exact_json.dumps(row) + b"\n"


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the name ``output`` at the end. Nothing stays of it after an error; what a kill left is
    written over by the next one."""
    output = Path(os.path.realpath(output))  # a link stays one
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            _lock(file, partial)
            try:
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(output)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise no_space(output, error.strerror or str(error), "nothing was written") from error


def _lock(file: BinaryIO, partial: Path) -> None:
    """Raise UserError where another process writes the file, or has just given it its name."""
    # Where there are no locks (None), nothing tells of another process.
    if try_lock(file.fileno()) is not False and is_open_file(partial, file.fileno()):
        return
    raise UserError("another process is writing it", file=partial, remedy="wait for it or stop it")


def _write_lines(file: BinaryIO, lines: Iterable[bytes], _kind: type[Record]) -> int:
    number = 0
    for number, line in enumerate(lines, 1):  # noqa: B007
        file.write(line)
    return number


def _write_compressed(file: BinaryIO, lines: Iterable[bytes], kind: type[Record]) -> int:
    import zstandard

    with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed:
        return _write_lines(packed, lines, kind)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _write_parquet(file: BinaryIO, lines: Iterable[bytes], kind: type[Record]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    schema = schema_of(kind)
    number = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in _batches(lines):
            rows = [_row(exact_json.loads(line), kind) for line in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            number += len(rows)
    return number


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def schema_of(kind: type[Record]) -> Any:
    """Return the ``pyarrow.Schema`` of a type of records."""
    import pyarrow as pa

    hints = typing.get_type_hints(kind)
    return pa.schema([(field.name, _arrow(field.name, hints[field.name])) for field in fields(kind)])


def _arrow(name: str, hint: Any) -> Any:
    import pyarrow as pa

    if name == "transcript":
        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        piece = pa.struct([("author", pa.string()), ("text", pa.string()), ("ids", pa.list_(pa.int32()))])
        return pa.struct(
            [
                ("messages", pa.list_(message)),
                ("pieces", pa.list_(piece)),
                ("ended", pa.bool_()),
                ("tokenizer", pa.string()),
            ]
        )
    plain = _without_none(hint)
    if typing.get_origin(plain) is tuple:
        return pa.list_(_arrow("", typing.get_args(plain)[0]))
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(plain, pa.string())


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) not in (UnionType, typing.Union):
        return hint
    (plain,) = (part for part in typing.get_args(hint) if part is not NoneType)
    return plain


def _row(values: dict[str, Any], kind: type[Record]) -> dict[str, Any]:
    """Return a parsed line as Arrow takes it."""
    row = {field.name: values.get(field.name) for field in fields(kind)}
    row["extra"] = exact_json.dumps(values.get("extra") or {}).decode()
    if (transcript := row.get("transcript")) is not None:
        pieces = [{**piece, "ids": _ids(piece.get("ids"))} for piece in transcript.get("pieces", ())]
        row["transcript"] = {"ended": True, **transcript, "pieces": pieces}
    return {name: str(value) if isinstance(value, exact_json.Number) else value for name, value in row.items()}


def _ids(ids: str | list[int] | None) -> Sequence[int] | None:
    return list(TokenIds.from_text(ids)) if isinstance(ids, str) else ids
