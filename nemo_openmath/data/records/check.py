"""Whether a folder holds what its stage wrote: every line, every transcript, and as many as its manifest says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.chat import Transcript
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records import read_drops
from nemo_openmath.core.records.bodies import Body
from nemo_openmath.core.records.failed import FAILED
from nemo_openmath.core.records.store import count_units
from nemo_openmath.core.records.sums import digest_of_lines
from nemo_openmath.data.records.stored import RecordFolder, StoredRecord


@dataclass
class CheckedFolder:
    """What was seen of a folder."""

    records: int = 0
    """Lines."""
    bodies: Counter[Path] = field(default_factory=Counter)
    """File -> transcripts that lie there."""
    missing: dict[Path, list[str]] = field(default_factory=dict)
    """File -> ids of the records whose transcript is not there, or is not what was written; the first few."""
    num_missing: Counter[Path] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """Anything else that is wrong, a sentence each."""

    def lines(self, folder: RecordFolder) -> Iterator[str]:
        """Yield what was seen, in words: what is wrong, else that all is there."""
        yield from self.problems
        for file, number in self.num_missing.items():
            what = "does not hold" if file.is_file() else "is gone, with"
            of = f"{number:,} of {self.bodies[file]:,} transcripts of {folder.path}"
            yield f"{file}: {what} {of}, such as of {', '.join(self.missing[file])}"
        if not (self.problems or self.num_missing):
            places = sorted({os.path.relpath(file.parent) for file in self.bodies})
            bodies = f" and their transcripts in {', '.join(places)}" if places else ""
            until = "" if folder.manifest is not None else ", as far as can be known without a manifest"
            yield f"{folder.path}: {self.records:,} records{bodies} are whole{until}"


_EXAMPLES = 3


def check_folder(folder: RecordFolder) -> CheckedFolder:
    """Read every record with its transcript, and compare the counts and the digest with the manifest's.

    A line that is no record ends the reading of the folder, and is among the problems.
    """
    seen = CheckedFolder()
    try:
        digest = digest_of_lines(_lines(folder, seen))
        drops = sum(1 for _ in read_drops(folder.path))
    except UserError as error:
        seen.problems.append(str(error))
        return seen
    if (manifest := folder.manifest) is None:
        return seen
    counts = manifest.counts
    for what, promised, present in (
        ("records", counts.get("records", 0) + counts.get("merged", 0), seen.records),
        ("drops", counts.get("drops", 0), drops),
        ("units", counts.get("units", 0) - counts.get(FAILED, 0), count_units(folder.path)),
    ):
        if promised != present:
            seen.problems.append(f"{folder.path}: {present:,} {what} are there, its manifest says {promised:,}")
    sizes = manifest.metrics.get("files", {})
    for name, size in sizes.items():
        file = folder.path / name
        if not file.is_file():
            seen.problems.append(f"{file}: is gone")
        elif file.stat().st_size != size:
            seen.problems.append(f"{file}: has {file.stat().st_size:,} bytes, its manifest says {size:,}")
    if not seen.problems and digest != manifest.digest:
        seen.problems.append(f"{folder.path}: the records are others than its manifest says (their digest differs)")
    return seen


def refuse_damage(folders: Sequence[tuple[RecordFolder, CheckedFolder]]) -> None:
    """Raise DamagedFile naming the first folder that is not whole, and what to do."""
    for folder, seen in folders:
        if seen.problems:
            raise DamagedFile(folder.path, "is not what its stage wrote", "remove it and run the stage again")
        if number := seen.num_missing.total():
            remedy = "bring the folder named above back as it was, or remove what was made from it and run it again"
            raise DamagedFile(folder.path, f"{number:,} transcripts are missing", remedy)


def _lines(folder: RecordFolder, seen: CheckedFolder) -> Iterator[bytes]:
    for record in folder.records():
        seen.records += 1
        _refuse_broken(record)
        if isinstance(record.transcript, Body):
            file = record.transcript.file
            seen.bodies[file] += 1
            try:
                record.transcript.text()
            except UserError:
                seen.num_missing[file] += 1
                if len(examples := seen.missing.setdefault(file, [])) < _EXAMPLES:
                    examples.append(record.id)
        yield record.line


def _refuse_broken(record: StoredRecord) -> None:
    """Raise UserError where a record that has a transcript lacks it, or where one inside the line is none."""
    problem = ""
    if record.transcript is None and "mode" in record.fields:
        problem = "no transcript"
    elif isinstance(record.transcript, dict):  # of an earlier version
        try:
            Transcript.from_json(record.transcript)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            problem = f"no transcript ({error})"
    if problem:
        raise record.error(problem)
