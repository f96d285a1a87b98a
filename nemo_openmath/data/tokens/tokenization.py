"""SFT rows -> token files, at the speed of the tokenizers library.

The input (JSON Lines of :class:`SftRow`) is taken as one long stretch of bytes and cut into parts of equal size; a part
owns the lines that begin in it and becomes one shard. Parts depend on the input alone, so any number of workers, killed
and started again at any instant, makes the same bytes: a shard is there whole or is made again. Every worker is a
process with a tokenizer of its own; rows are streamed, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.chat import ChatTokenizer, Transcript, encode_many
from nemo_openmath.core.errors import DamagedFile, OpenMathError, UserError
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.encoding import again
from nemo_openmath.core.records.manifest import read_manifest
from nemo_openmath.core.records.readers import lines_between, lines_ratio, read_rows, row_at
from nemo_openmath.core.records.store import part_files
from nemo_openmath.core.records.types import SftRow
from nemo_openmath.data.rows.formatting import own_row
from nemo_openmath.data.tokens.token_file import MANIFEST, Shard, ShardWriter, TokenFolder, write_manifest
from nemo_openmath.data.workers import DIED, cores, pool_of

_VERSION = 3  # raised when the same row gives other tokens than before
NO_TARGET = "no trained token"
_SHARD_BYTES = 1 << 20  # of rows: a shard is never made of less,
_SHARDS = 256  # and there are about this many at most, for each shard is a mapping in every rank
_BATCH_CHARS = 1 << 20  # text handed to the tokenizer at once


@dataclass(frozen=True, slots=True)
class _LineRange:
    """Lines of a file that begin in the bytes [start, end); a compressed file is one range."""

    file: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _ShardTask:
    """One shard to make, and the lines that go into it. ``source``: digest of the whole input. ``vocab_size``: one more
    than the tokenizer's highest id."""

    shard: Path
    ranges: tuple[_LineRange, ...]
    source: str
    train_on_tool_output: bool
    vocab_size: int


def write_tokens(
    rows: str | Path,
    tokenizer: str | Path,
    folder: str | Path,
    *,
    train_on_tool_output: bool = False,
    workers: int | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> TokenFolder:
    """Tokenize the rows of a file (.jsonl, .gz, .zst) or of a stage's folder into ``folder``.

    - ``tokenizer``: a Hugging Face model folder.
    - ``train_on_tool_output``: the loss also counts what a tool wrote.
    - ``workers``: processes; None: one a core.
    - ``on_shard(done, all)`` is called as shards finish.

    Shards of an earlier run over the same input stay, those of another input or tokenizer are replaced. Rows without a
    target token, and rows that the tokenizer's chat template cannot have, are dropped and counted. Raises UserError
    naming file and row of a broken line.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chat = ChatTokenizer.load(tokenizer)
    tasks = _plan(_input_files(Path(rows)), folder, chat, train_on_tool_output)
    missing = [task for task in tasks if not _is_done(task)]
    names = [task.shard.name for task in tasks]
    if not missing and (folder / MANIFEST).is_file():
        return TokenFolder(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in [*folder.glob("*.tokens"), *folder.glob(".*.tokens.tmp")]:
        if file.name not in names:
            file.unlink()
    done = len(tasks) - len(missing)
    with closing(_write_shards(missing, chat, Path(tokenizer), min(workers or cores(), len(missing)))) as written:
        for _ in written:
            done += 1
            if on_shard:
                on_shard(done, len(tasks))
    return write_manifest(folder, names)


def _write_shards(
    tasks: Sequence[_ShardTask], chat: ChatTokenizer, tokenizer: Path, workers: int
) -> Generator[None, None, None]:
    """Write the shards, in this process or in several, and yield after each of them."""
    if workers <= 1:
        for task in tasks:
            _write_shard(task, chat)
            yield
        return
    with pool_of(workers, _start_worker, tokenizer) as pool:
        futures = [pool.submit(_work, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise OpenMathError(DIED) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _input_files(rows: Path) -> list[Path]:
    if not rows.exists():
        raise UserError("no such file or folder", file=rows, remedy="run the stage that writes the SFT rows")
    if rows.is_file():
        return [rows]
    files = part_files(rows) or sorted(p for s in ("jsonl", "jsonl.gz", "jsonl.zst") for p in rows.glob(f"*.{s}"))
    if not files:
        raise UserError("no .jsonl, .jsonl.gz or .jsonl.zst file in this folder", file=rows)
    return files


def _plan(files: Sequence[Path], folder: Path, chat: ChatTokenizer, train_on_tool_output: bool) -> list[_ShardTask]:
    sizes = [file.stat().st_size for file in files]
    source = _digest(files, sizes, f"{_VERSION} {chat.fingerprint} {train_on_tool_output}")
    vocab_size = _entries(chat)  # here, once: a large vocabulary takes a tenth of a second
    step = max(round(_SHARD_BYTES / max(map(lines_ratio, files))), -(-sum(sizes) // _SHARDS))
    count = max(1, -(-sum(sizes) // step))
    ranges: list[list[_LineRange]] = [[] for _ in range(count)]
    begin = 0  # of the file, in the stretch of all files
    for file, size in zip(files, sizes, strict=True):
        if file.suffix != ".jsonl":
            ranges[min(begin // step, count - 1)].append(_LineRange(file, 0, size))
        else:
            for shard in range(begin // step, -(-(begin + size) // step)):
                start, end = shard * step - begin, (shard + 1) * step - begin
                ranges[shard].append(_LineRange(file, max(0, start), min(size, end)))
        begin += size
    return [
        _ShardTask(folder / f"{i:05d}.tokens", tuple(part), source, train_on_tool_output, vocab_size)
        for i, part in enumerate(ranges)
    ]


def _digest(files: Sequence[Path], sizes: Sequence[int], options: str) -> str:
    """Return a digest that tells one input from another.

    A finished stage's rows go in by the digest of its manifest, other files by their whole content or, above 2 GiB in
    all, by their sizes and 64 KiB at each of 256 places.
    """
    digest = hashlib.sha256(options.encode())
    for folder in sorted({file.parent for file in files}):
        manifest = read_manifest(folder) if part_files(folder) else None
        digest.update(b"\0" if manifest is None else f"\0{manifest.digest}\0".encode())
    whole = sum(sizes) <= 2 << 30
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"\0{file.name}\0{size}\0".encode())
        block = 1 << 20 if whole else 1 << 16
        with file.open("rb") as stream:
            for at in range(0, size, block if whole else max(block, size // 255)):
                stream.seek(min(at, max(0, size - block)))
                digest.update(stream.read(block))
    return digest.hexdigest()[:16]


def _is_done(task: _ShardTask) -> bool:
    if not task.shard.exists():
        return False
    try:
        return Shard(task.shard).meta["source"] == task.source
    except DamagedFile:
        return False


def _start_worker(tokenizer: Path) -> None:
    global _tokenizer
    # One core a worker, but a thread of the library's own: on a process's first thread, whose heap holds the vocabulary
    # in small blocks, it takes 2.7 times as long.
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "1"}
    _tokenizer = ChatTokenizer.load(tokenizer)


_tokenizer: ChatTokenizer  # of a worker process


def _work(task: _ShardTask) -> None:
    _write_shard(task, _tokenizer)


def _write_shard(task: _ShardTask, chat: ChatTokenizer) -> None:
    dropped: Counter[str] = Counter()
    writer = ShardWriter(task.shard, tokenizer=chat.fingerprint, vocab_size=task.vocab_size, source=task.source)
    with writer:
        for rows, transcripts in _batches(task.ranges):
            encodings = encode_many(transcripts, chat, train_on_tool_output=task.train_on_tool_output)
            for row, encoded in zip(rows, encodings, strict=True):
                if encoded.unfit is not None:
                    dropped[encoded.unfit] += 1
                    continue
                if True not in encoded.loss_mask:
                    dropped[NO_TARGET] += 1
                    continue
                try:
                    writer.add(row.id, row.mode, encoded.ids, encoded.loss_mask)
                except (ValueError, TypeError, OverflowError) as error:  # ids that a row brought itself
                    raise UserError(
                        f"{row.id} brings ids that are not the tokenizer's ({error})",
                        file=task.ranges[0].file,
                        remedy="remove the row, or its ids",
                    ) from error
        writer.finish(dropped)


def _entries(chat: ChatTokenizer) -> int:
    """Return one more than the highest id: a tokenizer may leave ids out."""
    return 1 + max(chat.backend.get_vocab(with_added_tokens=True).values())


def _batches(ranges: Sequence[_LineRange]) -> Iterator[tuple[list[SftRow], list[Transcript]]]:
    rows: list[SftRow] = []
    transcripts: list[Transcript] = []
    chars = 0
    for lines in ranges:
        for row, transcript in _rows(lines):
            rows.append(row)
            transcripts.append(transcript)
            chars += sum(len(p.text) for p in transcript.spans) + sum(len(m.content) for m in transcript.messages)
            if chars >= _BATCH_CHARS:
                yield rows, transcripts
                rows, transcripts, chars = [], [], 0
    if rows:
        yield rows, transcripts


def _rows(lines: _LineRange) -> Iterator[tuple[SftRow, Transcript]]:
    if lines.file.suffix != ".jsonl":
        for file, number, value in read_rows(lines.file):
            try:
                yield _parse(value)
            except ValueError as error:
                raise _broken(error, file, number) from error
        return
    for at, line in lines_between(lines.file, lines.start, lines.end):
        try:
            if line.strip():
                yield _parse(exact_json.loads(line))
        except ValueError as error:
            raise _broken(error, lines.file, row_at(lines.file, at)) from error


def _parse(value: Any) -> tuple[SftRow, Transcript]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return own_row(value)


def _broken(error: Exception, file: Path, row: int) -> UserError:
    return UserError(f"not an SFT row ({error})", file=file, row=row, remedy=again(file))
