"""Manifests: what a finished stage promises about its folder. They appear atomically, and last."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import DamagedFile, UserError

MANIFEST = "manifest.json"
DIVIDED = "divided"  # among the metrics: every record lies in the partition of its owner
TALLY = "tally"  # among the metrics: Record.tally -> records
PLAN = "plan.json"  # in the folder of a stage from its beginning


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
    sync(path.parent)


def sync(path: Path) -> None:
    """Make what was written to a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
