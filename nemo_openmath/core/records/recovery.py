"""What a store still holds after a kill or a damage: every unit whose journal line and bytes are whole.

A kill leaves data behind the end that the journal names, or a torn last line of the journal: both are cut off. A damage
(a file that is cut or gone, a broken line of the journal) costs the units that it touches, and no others:

- a unit whose bytes are not there, or are not whole lines of JSON; of a file of bodies, whose bytes are not there,
- a unit whose line of the journal is broken,
- the unit behind it, as the broken line alone knew where its records begin.

The rest is written anew beside the old files, and takes their place in an order that a kill cannot tear: once the new
journal has the name ``.journal-*.ready``, every later opening goes on with the replacement.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from nemo_openmath.core.errors import of_the_system
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.manifest import sync

log = logging.getLogger(__name__)

_DATA = ("part", "drops")
_FILES = (*_DATA, "bodies", "journal")


@dataclass
class Recovered:
    """What a shard of a store holds, after what was not whole has been cut off."""

    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FILES, 0))
    """Length of each file in bytes."""
    done: set[int] = field(default_factory=set)
    """Keys of the finished units."""
    attempt: int = 1
    """Number of this opening."""
    lost: int = 0
    """Finished units that a damage cost."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the journal."""

    row: dict[str, Any]
    ends: dict[str, int]

    @classmethod
    def parse(cls, line: bytes) -> _Entry | None:
        """Return the entry of a line; None where it is broken."""
        try:
            row = orjson.loads(line)
            ends = {"part": row["records"], "drops": row["drops"], "bodies": row.get("bodies", 0)}
            whole = isinstance(row["unit"], str) and isinstance(row["attempt"], int)
        except (ValueError, TypeError, KeyError):
            return None
        return cls(row, ends) if whole and all(type(end) is int and end >= 0 for end in ends.values()) else None


def recover(paths: Mapping[str, Path]) -> Recovered:
    """Cut off what is not whole of a shard's files (``part``, ``drops``, ``bodies``, ``journal``), and return what they
    hold. What is kept of ``bodies`` is not looked into: whoever reads one compares its digest.

    Raises SystemFailure where a damaged store cannot be written anew, such as on a full disk.
    """
    _finish_replacement(paths)
    lost = 0
    if (state := _read(paths)) is None:
        paths["sums"].unlink(missing_ok=True)
        lost = _write_anew(paths)
        state = _read(paths)
        assert state is not None, "what was just written is whole"
        what = f"{len(state.done)} units are kept, {lost} are done again"
        log.warning("%s: it, or a file that it speaks of, is damaged: %s", paths["journal"], what)
    state.lost = lost
    surplus = {kind: _size(paths[kind]) - state.ends[kind] for kind in _FILES}
    if surplus["part"] and not paths["journal"].exists():
        log.warning("%s: is gone: all units of this shard are done again", paths["journal"])
    elif any(surplus.values()):
        log.info("%s: %d bytes behind the last finished unit are cut off", paths["part"], sum(surplus.values()))
    for kind in _FILES:
        if surplus[kind]:
            os.truncate(paths[kind], state.ends[kind])
    return state


def _read(paths: Mapping[str, Path]) -> Recovered | None:
    """What the journal lists; None where it or a file that it speaks of is damaged."""
    state, sizes = Recovered(), {kind: _size(paths[kind]) for kind in (*_DATA, "bodies")}
    for line in _lines(paths["journal"]):
        entry = _Entry.parse(line)
        if entry is None or any(not state.ends[kind] <= entry.ends[kind] <= size for kind, size in sizes.items()):
            return None
        state.done.add(unit_key(entry.row["unit"]))
        state.attempt = entry.row["attempt"] + 1
        state.ends |= entry.ends | {"journal": state.ends["journal"] + len(line)}
    return state


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a journal; a last one that is torn is none."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line


def _write_anew(paths: Mapping[str, Path]) -> int:
    """Replace the files by others that hold the whole units alone. Return how many units were not whole."""
    new = {kind: _beside(paths[kind], "new") for kind in (*_DATA, "journal")}
    lost, bodies = 0, _size(paths["bodies"])
    try:
        with contextlib.ExitStack() as stack:
            old = {kind: stack.enter_context(_open(paths[kind])) for kind in _DATA}
            out = {kind: stack.enter_context(path.open("wb")) for kind, path in new.items()}
            begin: dict[str, int] | None = dict.fromkeys(_DATA, 0)  # of the next unit; None where nobody knows
            for line in _lines(paths["journal"]):
                entry = _Entry.parse(line)
                blocks = None
                if entry is not None and begin is not None and entry.ends["bodies"] <= bodies:
                    blocks = _blocks(old, begin, entry.ends)
                begin = None if entry is None or not _at_line_ends(old, entry.ends) else entry.ends
                if entry is None or blocks is None:
                    lost += 1
                    continue
                for kind, block in blocks.items():
                    out[kind].write(block)
                ends = {"records": out["part"].tell(), "drops": out["drops"].tell()}
                out["journal"].write(orjson.dumps(entry.row | ends) + b"\n")
            for file in out.values():
                file.flush()
                os.fsync(file.fileno())
        new["journal"].replace(_beside(paths["journal"], "ready"))
    except BaseException as error:
        for path in new.values():
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise of_the_system(error, paths["journal"]) or error from error
        raise
    _finish_replacement(paths)
    return lost


def _blocks(files: Mapping[str, BinaryIO], begin: dict[str, int], ends: dict[str, int]) -> dict[str, bytes] | None:
    """The bytes of a unit in each file; None where they are not there, or not whole lines of JSON."""
    blocks = {}
    for kind, file in files.items():
        if not begin[kind] <= ends[kind] <= os.fstat(file.fileno()).st_size:
            return None
        file.seek(begin[kind])
        block = file.read(ends[kind] - begin[kind])
        if block and not block.endswith(b"\n"):
            return None
        try:
            for line in block.split(b"\n")[:-1]:
                exact_json.loads(line)
        except ValueError:
            return None
        blocks[kind] = block
    return blocks


def _at_line_ends(files: Mapping[str, BinaryIO], ends: dict[str, int]) -> bool:
    """Whether a line of each file ends at its place in ``ends``: where not, the place itself is damaged."""
    for kind, file in files.items():
        file.seek(max(ends[kind] - 1, 0))
        if ends[kind] and file.read(1) != b"\n":
            return False
    return True


def _finish_replacement(paths: Mapping[str, Path]) -> None:
    """Give the new files their names where all of them are written; remove them where one is not."""
    ready, new = _beside(paths["journal"], "ready"), {kind: _beside(paths[kind], "new") for kind in (*_DATA, "journal")}
    if not ready.exists():
        for path in new.values():
            path.unlink(missing_ok=True)
        return
    for kind in _DATA:
        with contextlib.suppress(FileNotFoundError):  # renamed before a kill
            new[kind].replace(paths[kind])
    sync(ready.parent)
    ready.replace(paths["journal"])
    sync(ready.parent)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _open(path: Path) -> BinaryIO:
    return path.open("rb") if path.exists() else Path(os.devnull).open("rb")


def _size(path: Path) -> int:
    """The length of a file; 0 where there is none. It is opened, because a network file system may answer ``stat`` from
    an old copy."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size
