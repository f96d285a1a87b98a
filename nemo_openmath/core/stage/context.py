"""What a running stage may touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Record
from nemo_openmath.core.records.store import refuse_no_records
from nemo_openmath.core.stage.defects import StageDefect
from nemo_openmath.core.stage.services import Services

R = TypeVar("R", bound=Record)


@dataclass
class StageContext:
    """Everything a running stage may touch."""

    name: str
    """The stage's name in the recipe."""
    inputs: Mapping[str, Sequence[Path]]
    """Port name -> finished folders or files, in the recipe's order. Every declared port is there; one that may be left
    out, and was, has none."""
    output: Path
    """The stage's own folder."""
    seed: int
    services: Services
    progress: Progress
    shard: int = 0
    """The part of the work that this process does, from 0 to ``shards`` - 1."""
    shards: int = 1
    metrics: dict[str, Any] = field(default_factory=dict)
    """What the stage measured. It goes into the manifest, the status and the report; the numbers of shards are
    summed."""
    records_read: dict[str, int] = field(default_factory=dict)
    """Port name -> records that were read of it, by readings to the end."""

    def read(self, port: str, kind: type[R]) -> Iterator[R]:
        """Yield the records of all folders of an input port, streamed, each id once (core/merging.py).

        Raises UserError for what is not the folder of a stage, StageDefect for a port that the stage does not declare.
        """
        folders = self.paths(port)
        for folder in folders:
            refuse_no_records(folder)
        number = 0
        records = read_merged(folders, kind, lambda answers: self.services.vote(answers))
        for number, record in enumerate(records, 1):  # noqa: B007
            yield record
        self.records_read[port] = number

    def paths(self, port: str) -> Sequence[Path]:
        """Return the folders and files of an input port; none where it may be left out, and was. Raises StageDefect for
        a port that the stage does not declare."""
        if port not in self.inputs:
            declared = ", ".join(self.inputs) or "none"
            raise StageDefect(
                f"{self.name}: input {port!r} is not declared; write it into the stage's `ports` (declared: {declared})"
            )
        return self.inputs[port]

    def only(self, port: str) -> Path:
        """Return the one folder of a port. Raises StageDefect for a port that the stage does not declare."""
        (path,) = self.paths(port)
        return path
