"""Token files hold tokenized samples: written once, mapped by any number of ranks.

**The format (version 1) is a lasting contract.** A folder holds shards ``00000.tokens``, ``00001.tokens``, ... and
``tokens.json``, which appears last and lists them. A shard is a section file (``section_file.py``) of kind
"tokens" with these sections; n samples lie in the order of their rows:

    tokens   <u2 where the vocabulary has at most 65536 entries, else <i4: the ids of all samples, end to end
    runs     <u4: for each sample the lengths of its runs of tokens: no target, target, no target, ..., beginning with
             no target (0 where the first token is one); they add up to the sample's length
    ids      |u1: the samples' ids, UTF-8, end to end
    index    n records of 32 bytes:
               token_end <u8, run_end <u4, id_end <u4    where the sample's part of the sections above ends (it
                                                         begins where the one before ends)
               id_hash   <u8    blake2b (8 bytes, little-endian) of the id: finds doubled samples without reading ids
               crc32     <u4    of the sample's tokens, then its runs, then its id: checked at every read
               group     <u2    index into meta["groups"]: the row's mode (cot, tir, genselect)
               reserved  <u2    0

    meta     {"tokenizer": fingerprint of tokenizer and chat template, "vocab_size", "groups": [names],
              "samples", "tokens", "trained", "dropped": {reason: count}, "source": digest of the rows}

A target is a token whose prediction counts in the loss; "trained" counts them. Nothing is padded, shifted or cut here:
labels, padding and boundaries are made when a pack is laid out (``packs/pack.py``).

What is checked when: opening a folder checks every shard's length, contents and index, and the tokens themselves
as long as they are few (``VERIFY_BYTES``); every read checks its sample; ``verify()`` checks all. So damage is
always named before it is trained on, and opening terabytes takes no longer than reading their index.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records.manifest import write_json
from nemo_openmath.data.section_file import SectionFile, SectionWriter

MANIFEST = "tokens.json"
KIND = "tokens"
VERIFY_BYTES = 256 << 20  # tokens checked at opening: about 0.1 s
INDEX = np.dtype(
    [
        ("token_end", "<u8"),
        ("id_hash", "<u8"),
        ("run_end", "<u4"),
        ("id_end", "<u4"),
        ("crc32", "<u4"),
        ("group", "<u2"),
        ("reserved", "<u2"),
    ]
)
_INDEX = struct.Struct("<QQIIIHH")  # one record of it


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenized row of T tokens."""

    id: str
    group: str  # the row's mode
    tokens: NDArray  # [T], mapped, read-only
    loss_mask: NDArray[np.bool_]  # [T] whether a token is a target of the loss


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type of the format that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def runs_of(loss_mask: ArrayLike) -> NDArray[np.uint32]:
    """Return the run lengths of a loss mask [T], no targets first: the ``runs`` of a sample."""
    flags = np.asarray(loss_mask, np.bool_)
    changes = np.flatnonzero(np.diff(flags, prepend=False, append=not flags[-1]) if flags.size else flags)
    return np.diff(changes, prepend=0).astype(np.uint32)


class ShardWriter:
    """A shard that is being written, tokens straight to disk. Its file appears at ``finish``; else no trace is left."""

    def __init__(self, path: Path, *, tokenizer: str, vocab_size: int, source: str):
        self._meta: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size, "source": source}
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._groups: dict[str, int] = {}
        self._writer = SectionWriter(path, KIND)
        self._writer.begin("tokens", self._dtype)
        self._runs, self._ids, self._index = bytearray(), bytearray(), bytearray()  # about 100 bytes a sample
        self._ends = (0, 0, 0)
        self._num_target_tokens = 0

    def add(self, id: str, group: str, ids: ArrayLike, loss_mask: ArrayLike) -> None:
        """Append a sample of at least one token; ``loss_mask`` has one flag for each of ``ids``. Raises ValueError."""
        wide, runs = np.asarray(ids), runs_of(loss_mask)
        if not wide.size or int(runs.sum()) != wide.size:
            raise ValueError(f"sample {id}: {wide.size} tokens, {int(runs.sum())} flags")
        if wide.dtype.kind not in "iu" or wide.min() < 0 or wide.max() >= self._vocab_size:
            raise ValueError(f"sample {id}: not ids from 0 to {self._vocab_size - 1}")
        tokens = wide.astype(self._dtype)
        name = id.encode()
        parts = (tokens.tobytes(), runs.astype("<u4").tobytes(), name)
        crc = zlib.crc32(name, zlib.crc32(parts[1], zlib.crc32(parts[0])))
        hashed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        code = self._groups.setdefault(group, len(self._groups))
        self._writer.write(parts[0])
        self._runs += parts[1]
        self._ids += name
        self._num_target_tokens += int(runs[1::2].sum())
        self._ends = (self._ends[0] + tokens.size, self._ends[1] + runs.size, self._ends[2] + len(name))
        self._index += _INDEX.pack(self._ends[0], hashed, self._ends[1], self._ends[2], crc, code, 0)

    def finish(self, dropped: dict[str, int]) -> None:
        """Write index and checksums; the shard is whole from here on. ``dropped``: {reason: rows not written}."""
        writer = self._writer
        writer.begin("runs", "<u4")
        writer.write(self._runs)
        writer.begin("ids", "|u1")
        writer.write(self._ids)
        index = np.frombuffer(self._index, INDEX)
        writer.add("index", index)
        counts = {"samples": len(index), "tokens": self._ends[0], "trained": self._num_target_tokens}
        contents = {"groups": list(self._groups), "dropped": dict(sorted(dropped.items()))}
        writer.finish(self._meta | counts | contents)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, at)


class Shard:
    """One mapped shard of a token folder."""

    def __init__(self, path: Path):
        self.path = path
        self._file = SectionFile(path, KIND)
        self.meta = self._file.meta
        self.digest = self._file.digest
        self.index = self._file.section("index")
        self._tokens = self._file.section("tokens", verify=False)
        self._runs = self._file.section("runs", verify=False)
        self._ids = self._file.section("ids", verify=False)
        if len(self.index) != self.meta["samples"]:
            raise DamagedFile(path, "index and contents disagree")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def token_bytes(self) -> int:
        return self._tokens.nbytes

    def lengths(self) -> NDArray[np.int32]:
        """Return the tokens of each sample, [n]."""
        ends = self.index["token_end"].astype(np.int64)
        return np.diff(ends, prepend=0).astype(np.int32)

    def target_lengths(self) -> NDArray[np.int32]:
        """Return the target tokens of each sample, [n]."""
        if not len(self):
            return np.empty(0, np.int32)
        ends = self.index["run_end"].astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        odd = (np.arange(len(self._runs)) - np.repeat(starts, ends - starts)) % 2 == 1
        return np.add.reduceat(np.where(odd, self._runs, 0), starts).astype(np.int32)

    def prompt_lengths(self) -> NDArray[np.int32]:
        """Return the tokens before the first target, [n]."""
        starts = np.concatenate([[0], self.index["run_end"][:-1]]).astype(np.int64)
        return self._runs[starts].astype(np.int32) if len(self) else np.empty(0, np.int32)

    def length(self, row: int) -> int:
        """Return the tokens of sample ``row``."""
        ends = self.index["token_end"]
        return int(ends[row]) - (int(ends[row - 1]) if row else 0)

    def read(self, row: int) -> Sample:
        """Read sample ``row`` and verify its checksum. Raises DamagedFile."""
        tokens, runs, name = (
            part[0 if row == 0 else int(self.index[end][row - 1]) : int(self.index[end][row])]
            for part, end in ((self._tokens, "token_end"), (self._runs, "run_end"), (self._ids, "id_end"))
        )
        if zlib.crc32(name.data, zlib.crc32(runs.data, zlib.crc32(tokens.data))) != self.index["crc32"][row]:
            raise DamagedFile(self.path, f"sample {row}: checksum differs")
        flags = np.zeros(len(runs), np.bool_)
        flags[1::2] = True
        group = self.meta["groups"][self.index["group"][row]]
        return Sample(name.tobytes().decode(), group, tokens, np.repeat(flags, runs))

    def verify(self) -> None:
        """Check every byte. Raises DamagedFile."""
        for name in ("tokens", "runs", "ids"):
            self._file.section(name)


class TokenFolder:
    """All shards of a folder as one sequence of samples 0..n-1 in the order of their rows.

    Raises UserError where there is no finished folder, DamagedFile naming the file that is not whole.
    """

    def __init__(self, folder: str | Path, *, verify_bytes: int = VERIFY_BYTES):
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        try:
            text = manifest.read_bytes()
        except FileNotFoundError as error:
            raise UserError(
                "no finished token files", file=self.folder, remedy="run tokenization to its end"
            ) from error
        try:
            content = json.loads(text)
            self.tokenizer: str = content["tokenizer"]
            self.vocab_size: int = content["vocab_size"]
            self.dropped: dict[str, int] = content["dropped"]
            entries = [(entry["name"], entry["digest"]) for entry in content["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(manifest, f"not the list of token files ({error})") from error
        self.shards = []
        for name, digest in entries:
            shard = Shard(self.folder / name)
            if shard.digest != digest:
                raise DamagedFile(shard.path, "not the shard that tokens.json lists")
            verify_bytes -= shard.token_bytes
            if verify_bytes >= 0:
                shard.verify()
            self.shards.append(shard)
        self._ends = np.cumsum([len(s) for s in self.shards]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> Sample:
        shard, row = self._find(sample)
        return shard.read(row)

    def length(self, sample: int) -> int:
        """Return the tokens of a sample, from the index alone."""
        shard, row = self._find(sample)
        return shard.length(row)

    def _find(self, sample: int) -> tuple[Shard, int]:
        at = bisect_right(self._ends, sample)
        return self.shards[at], sample - (self._ends[at - 1] if at else 0)

    def __iter__(self) -> Iterator[Sample]:
        return (shard.read(row) for shard in self.shards for row in range(len(shard)))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of all content, tokenizer included."""
        parts = [self.tokenizer, *(s.digest for s in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def num_tokens(self) -> int:
        return sum(s.meta["tokens"] for s in self.shards)

    @property
    def num_target_tokens(self) -> int:
        return sum(s.meta["trained"] for s in self.shards)

    def lengths(self) -> NDArray[np.int32]:
        """Return the tokens of each sample, [n]."""
        return np.concatenate([np.empty(0, np.int32), *(s.lengths() for s in self.shards)])

    def prompt_lengths(self) -> NDArray[np.int32]:
        """Return the tokens of each sample before its first target, its prompt, [n]."""
        return np.concatenate([np.empty(0, np.int32), *(s.prompt_lengths() for s in self.shards)])

    def target_lengths(self) -> NDArray[np.int32]:
        """Return the target tokens of each sample, [n]."""
        return np.concatenate([np.empty(0, np.int32), *(s.target_lengths() for s in self.shards)])

    def id_hashes(self) -> NDArray[np.uint64]:
        """Return the hash of each sample's id, [n]."""
        return np.concatenate([np.empty(0, np.uint64), *(s.index["id_hash"] for s in self.shards)])

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups that occur, in alphabetical order."""
        return sorted({name for shard in self.shards for name in shard.meta["groups"]})

    def group_codes(self) -> NDArray[np.uint16]:
        """Return the index into ``groups`` of each sample, [n]."""
        codes = [np.array([self.groups.index(g) for g in s.meta["groups"]], np.uint16) for s in self.shards]
        parts = [code[shard.index["group"]] for code, shard in zip(codes, self.shards, strict=True) if len(shard)]
        return np.concatenate([np.empty(0, np.uint16), *parts])

    def verify(self) -> None:
        """Check every byte of every shard. Raises DamagedFile naming the file."""
        for shard in self.shards:
            shard.verify()

    def require(self, fingerprint: str) -> None:
        """Refuse to go on with another tokenizer or chat template than the one that made these files."""
        if fingerprint != self.tokenizer:
            raise UserError(
                f"made with tokenizer and template {self.tokenizer}, not {fingerprint}",
                file=self.folder,
                remedy="tokenize again with the model's tokenizer",
            )


def write_manifest(folder: Path, names: Sequence[str]) -> TokenFolder:
    """List finished shards in ``tokens.json``, which appears atomically, and open the folder."""
    shards = [Shard(folder / name) for name in names]
    first = shards[0].meta
    dropped: Counter[str] = Counter()
    for shard in shards:
        dropped.update(shard.meta["dropped"])
    content = {
        "tokenizer": first["tokenizer"],
        "vocab_size": first["vocab_size"],
        "source": first["source"],
        "samples": sum(len(s) for s in shards),
        "tokens": sum(s.meta["tokens"] for s in shards),
        "trained": sum(s.meta["trained"] for s in shards),
        "dropped": dict(sorted(dropped.items())),
        "shards": [{"name": s.path.name, "samples": len(s), "digest": s.digest} for s in shards],
    }
    write_json(folder / MANIFEST, content)
    return TokenFolder(folder)
