"""Manifests: what a finished stage promises about its folder. They appear atomically, and last."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import DamagedFile, UserError

MANIFEST = "manifest.json"
PLAN = "plan.json"  # in the folder of a stage from its beginning
_MODULUS = 1 << 256


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished stage promises about its folder."""

    stage: str
    """The stage's kind."""
    fingerprint: str
    """Id of what the stage was asked to do: kind, version, settings, digests of its inputs, seed."""
    digest: str
    """Digest of what it made, independent of order. Later stages are redone only when it changes."""
    counts: dict[str, int]
    """Numbers of units, records and drops."""
    drops: dict[str, int] = field(default_factory=dict)
    """Reason -> count."""
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """Name of an input -> its digest."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    seconds: float = 0.0
    """Wall time of all runs of the stage together."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What the stage measured. The status and the report show it; the file calls it ``facts``."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of manifest.json."""
        row = asdict(self)
        row["facts"] = row.pop("metrics")
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Manifest:
        """Read the content of manifest.json. Raises TypeError naming a field that is missing or unknown."""
        return cls(**{"metrics" if name == "facts" else name: value for name, value in row.items()})


def refuse_inside_stage(output: Path) -> None:
    """Raise UserError where ``output`` is the folder of a stage or lies in one. Its readers would find both, and what
    makes the stage again would remove both."""
    here = output.resolve()
    if stage := next((folder for folder in (here, *here.parents) if (folder / PLAN).is_file()), None):
        raise UserError(f"lies in the folder of a stage: {stage}", file=output, remedy="choose another output")


def digest_of_lines(lines: Iterable[bytes]) -> str:
    """Return the digest of a multiset of lines: the sum of their SHA-256 modulo 2**256.

    Two stores with the same records in another order, or in other shards, have the same digest. Nothing is sorted or
    kept in memory.
    """
    total = 0
    for line in lines:
        total += int.from_bytes(hashlib.sha256(line.rstrip(b"\n")).digest(), "big")
    return f"{total % _MODULUS:064x}"


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the stage finished."""
    write_json(folder / MANIFEST, manifest.to_json())


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a finished stage; None where the stage has not finished. Raises DamagedFile."""
    path = folder / MANIFEST
    try:
        return Manifest.from_json(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise DamagedFile(path, f"not a manifest ({error})") from error
