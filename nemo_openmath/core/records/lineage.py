"""Lineage: beside every artifact (checkpoint, export), what it was made from and by what."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from nemo_openmath.core.records.ids import content_id
from nemo_openmath.core.records.manifest import read_manifest, write_json

LINEAGE = "lineage.json"
BLAKE3 = "blake3:"
"""How a BLAKE3 digest begins. Weights and data have these: the digest takes a fifth of the time of SHA-256."""
_PACKAGES = ("nemo-openmath", "torch", "megatron-core", "transformers", "tokenizers", "sympy", "mpmath", "numpy")


@dataclass(frozen=True, slots=True)
class Lineage:
    """What an artifact was made from, and by what."""

    kind: str
    inputs: dict[str, dict[str, str]]
    """Name of an input -> {path, digest}."""
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    """What a user types to make it again."""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def write(self, folder: Path) -> None:
        """Write it into the folder of the artifact."""
        write_json(folder / LINEAGE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Lineage | None:
        """Read it from the folder of an artifact; None where there is none."""
        path = folder / LINEAGE
        return cls(**orjson.loads(path.read_bytes())) if path.is_file() else None


def versions() -> dict[str, str]:
    """Return the versions of what can change a result."""
    known = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


def digest_file(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file: small ones (a recipe, a prompt), and what was written with it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_data(path: Path) -> str:
    """Return "blake3:" and the digest of the bytes of a file of any size."""
    total, buffer = blake3(), memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
    return f"{BLAKE3}{total.hexdigest()}"


def digest_tree(folder: Path, ignore: tuple[str, ...] = (LINEAGE, "plan.json", "seconds.json", "manifest.json")) -> str:
    """Return "blake3:" and the digest over the names and bytes of all files of a folder but those about how it came to
    be; or :func:`digest_data` of one file."""
    if folder.is_file():
        return digest_data(folder)
    names: Mapping[str, Path] = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    total = blake3()
    for name in sorted(names):
        if names[name].name not in ignore:
            total.update(f"{name}\0{digest_data(names[name])}\0".encode())
    return f"{BLAKE3}{total.hexdigest()}"


def remembered_digest(path: Path, memory: Path) -> str:
    """Return the digest of a file or a folder, read again only where a name, a size or a modification time changed:
    models and data sets of many gigabytes are looked at by every job of a run. It is :func:`digest_tree`, and of the
    folder of a finished stage what its manifest says.

    ``memory``: the folder that keeps the digests, one file a path.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    seen = [(str(f.relative_to(path)), (at := f.stat()).st_size, at.st_mtime_ns) for f in files]
    note = memory / f"{content_id('path', str(path.resolve()))}.json"
    signature = content_id("files", seen)
    with contextlib.suppress(OSError, ValueError, KeyError):
        if (known := orjson.loads(note.read_bytes()))["files"] == signature:
            return str(known["digest"])
    manifest = read_manifest(path) if path.is_dir() else None
    digest = digest_tree(path) if manifest is None else manifest.digest
    with contextlib.suppress(OSError):  # only speed is lost
        memory.mkdir(parents=True, exist_ok=True)
        write_json(note, {"path": str(path), "files": signature, "digest": digest})
    return digest
