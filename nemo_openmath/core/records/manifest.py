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
    """``fingerprint``: what the stage was asked to do (name, version, config, digests of its inputs).
    ``digest``: what it made, independent of order; downstream stages are redone only when it changes.
    ``counts``: units, records, drops. ``drops``: reason -> count."""

    stage: str
    fingerprint: str
    digest: str
    counts: dict[str, int]
    drops: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)  # what the stage measured; shown by status and report


def refuse_inside_stage(output: Path) -> None:
    """Raises UserError where ``output`` is the folder of a stage or lies in one: its readers would find both, and what
    makes the stage again would remove both."""
    here = output.resolve()
    if stage := next((folder for folder in (here, *here.parents) if (folder / PLAN).is_file()), None):
        raise UserError(f"lies in the folder of a stage: {stage}", file=output, remedy="choose another output")


def digest_of_lines(lines: Iterable[bytes]) -> str:
    """Digest of a multiset of lines: the sum of their SHA-256 modulo 2**256.

    Two stores with the same records in another order, or in other shards, have the same digest; nothing is sorted
    or kept in memory.
    """
    total = 0
    for line in lines:
        total += int.from_bytes(hashlib.sha256(line.rstrip(b"\n")).digest(), "big")
    return f"{total % _MODULUS:064x}"


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: temporary file, fsync, rename, fsync of the folder."""
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
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None where the stage has not finished."""
    path = folder / MANIFEST
    try:
        return Manifest(**orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, TypeError) as error:
        raise DamagedFile(path, f"not a manifest ({error})") from error
