"""Findings of the doctor, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from nemo_openmath.core.errors import ExitCode

FORMAT = 1


class Colour(StrEnum):
    """How bad it is."""

    GREEN = "green"
    YELLOW = "yellow"
    """Work goes on, slower or less safely."""
    RED = "red"
    """Something that this machine is meant for will fail."""
    NOT_HERE = "not here"
    """It does not apply: the machine has no such thing, and nothing says that it should."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe has seen."""

    group: str
    name: str
    colour: Colour
    text: str
    """One line."""
    remedy: str = ""
    """What to do, where something is to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers and names behind the text. Nodes of one partition are compared by them."""


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Makes the findings of one group."""

    name: str

    def green(self, name: str, text: str, **values: Any) -> Finding:
        """Return a finding that all is well."""
        return Finding(self.name, name, Colour.GREEN, text, "", values)

    def yellow(self, name: str, text: str, remedy: str, **values: Any) -> Finding:
        """Return a finding of something that costs time or safety."""
        return Finding(self.name, name, Colour.YELLOW, text, remedy, values)

    def red(self, name: str, text: str, remedy: str, **values: Any) -> Finding:
        """Return a finding of something that will fail."""
        return Finding(self.name, name, Colour.RED, text, remedy, values)

    def not_here(self, name: str, text: str = "", remedy: str = "") -> Finding:
        """Return a finding that this machine has no such thing."""
        return Finding(self.name, name, Colour.NOT_HERE, text, remedy)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of a machine."""

    host: str
    time: float
    """Seconds since 1970, by the machine's own clock."""
    output: str
    """The folder whose file system was looked at."""
    findings: Sequence[Finding]
    seconds: float = 0.0

    def count(self, colour: Colour) -> int:
        """Return how many findings have a colour."""
        return sum(finding.colour is colour for finding in self.findings)

    @property
    def exit_code(self) -> ExitCode:
        """``USER_ERROR`` where something is red: running again changes nothing, the remedies do."""
        return ExitCode.USER_ERROR if self.count(Colour.RED) else ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        counts = {str(colour): self.count(colour) for colour in Colour}
        row = asdict(self)
        return {"format": FORMAT, "exit_code": int(self.exit_code), "counts": counts, **row}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Report:
        """Read what ``to_json`` returned. Raises KeyError, TypeError or ValueError for anything else."""
        findings = [Finding(**{**f, "colour": Colour(f["colour"])}) for f in row["findings"]]
        return cls(row["host"], float(row["time"]), row["output"], findings, float(row["seconds"]))
