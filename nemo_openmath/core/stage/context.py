"""What a running stage may touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Record
from nemo_openmath.core.records.store import Partition, partition_files, refuse_no_records
from nemo_openmath.core.stage.controls import CONTROLS
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
    """Which job of an array this process is, from 0 to ``shards`` - 1."""
    shards: int = 1
    partitions: int = 1
    """Into how many parts the work is divided by id; job i does the parts i, i + ``shards``, ..."""
    hang_seconds: float | None = None
    """After so many seconds in which nothing happens a stage of units hangs; None: as stage/watch.py says."""
    of: Partition | None = None
    """The part that is being read now; None where all is read."""
    divided: Sequence[str] = ()
    """The ports of which ``read`` gives the records of that part alone."""
    planted: bool = False
    """Whether the unit at hand is a control (core/stage/controls.py)."""
    failed_items: float = 0.0
    """The share of all units that may fail after all retries. Above 0 the caller judges, once all jobs have ended."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What the stage measured. It goes into the manifest, the status and the report; the numbers of shards are
    summed."""
    records_read: dict[tuple[str, int | None], int] = field(default_factory=dict)
    """Port name and part of the work -> records that were read of it, by readings to the end."""

    def read(self, port: str, kind: type[R]) -> Iterator[R]:
        """Yield the records of all folders of an input port, streamed, each id once (core/merging.py): those of the
        part of the work that is done now, where the port is divided (``UnitStage``).

        Raises UserError for what is not the folder of a stage, StageDefect for a port that the stage does not declare.
        """
        folders = self.paths(port)
        for folder in folders:
            refuse_no_records(folder)
        number, of = 0, self.of if port in self.divided else None
        records = read_merged(folders, kind, lambda answers: self.services.vote(answers), of)
        for number, record in enumerate(records, 1):  # noqa: B007
            yield record
        self.records_read[port, None if of is None else of.number] = number

    def number_read(self, port: str) -> int | None:
        """Return how many records of a port were read to the end by this process; None where none were."""
        numbers = {part: number for (name, part), number in self.records_read.items() if name == port}
        in_parts = [number for part, number in numbers.items() if part is not None]
        return sum(in_parts) if in_parts else numbers.get(None)

    def own_files(self) -> list[Path]:
        """Return the files of the records that this process makes, one for each of its parts of the work."""
        return [partition_files(self.output, number, self.partitions)["part"] for number in self.part_numbers()]

    def part_numbers(self) -> range:
        """Return the numbers of the parts of the work that this process does."""
        return range(self.shard, self.partitions, self.shards)

    def parts(self) -> Iterator[StageContext]:
        """Yield this context for each part of the work that this process does."""
        for number in self.part_numbers():
            yield self.part(number)

    def part(self, number: int) -> StageContext:
        """Return this context for one part of the work. What is measured goes into the same place."""
        return replace(self, of=Partition(number, self.partitions))

    def for_controls(self) -> StageContext:
        """Return this context for planted units. They have their own folder, and what is measured of them is
        nobody's."""
        return replace(self, planted=True, output=self.output / CONTROLS, metrics={})

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
