"""A configuration file as it was at one moment: what it extends and the overrides are in it, and every value still
knows where it was written. Relative paths mean what they meant, and errors name the file that a person edits.

The last key of such a file, ``snapshot``, is a text in JSON:

- ``of``: the file it was made of, and ``digest``, that of its bytes;
- ``extends``: what that file extended;
- ``overrides`` and ``folder``: those of the command that made it, and where that was run;
- ``origins``: ``[[file or override, line, key, ...], ...]``, the files numbered as in ``files``;
- ``more``: what the maker adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml

from nemo_openmath.core.build import OVERRIDE, Key, Origin
from nemo_openmath.core.errors import UserError

KEY = "snapshot"


@dataclass(frozen=True)
class Snapshot:
    """Where a snapshot is from."""

    of: Path
    """The file that it was made of."""
    digest: str
    """The digest of that file as it was then."""
    extends: tuple[Path, ...]
    """What that file extended."""
    overrides: tuple[str, ...]
    """The overrides that are in it."""
    folder: Path
    """Where the command was run whose overrides they are."""
    more: dict[str, Any] = field(default_factory=dict)
    """What its maker added."""


def snapshot_text(data: Mapping[str, Any], origins: Mapping[Key, Origin], snapshot: Snapshot) -> str:
    """Return the text of a snapshot of ``data``, whose values were written at ``origins``."""
    override = str(snapshot.folder.resolve() / "override")  # relative paths of overrides are relative to that folder
    places = {k: override if o is OVERRIDE else str(Path(o.file).resolve()) for k, o in origins.items()}
    files = list(dict.fromkeys(places.values()))
    number = {file: i for i, file in enumerate(files)}
    note = {
        "of": str(snapshot.of.resolve()),
        "digest": snapshot.digest,
        "extends": [str(path.resolve()) for path in snapshot.extends],
        "overrides": list(snapshot.overrides),
        "folder": str(snapshot.folder.resolve()),
        "files": files,
        "origins": [[number[places[key]], origin.line, *key] for key, origin in origins.items()],
        "more": snapshot.more,
    }
    body = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
    last = yaml.safe_dump({KEY: orjson.dumps(note).decode()}, allow_unicode=True, width=120)
    return (
        f"{body}\n# Where each value was written: error messages name that place, and paths are relative to it.\n{last}"
    )


def read_snapshot(text: Any, path: Path) -> tuple[Snapshot, dict[Key, Origin]]:
    """Return what stands under ``snapshot`` in the file ``path``, and the origins of its values. Raises UserError."""
    try:
        note = orjson.loads(text)
        origins = {tuple(key): Origin(note["files"][file], line) for file, line, *key in note["origins"]}
        paths = tuple(Path(name) for name in note["extends"])
        overrides: Sequence[str] = note["overrides"]
        snapshot = Snapshot(
            Path(note["of"]), note["digest"], paths, tuple(overrides), Path(note["folder"]), dict(note["more"])
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        remedy = "launch again: `snapshot` is written by openmath launch and not by hand"
        raise UserError(f"snapshot: cannot be read ({error})", file=path, remedy=remedy) from None
    return snapshot, origins
