"""What checks find, and how it is printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from nemo_openmath.core.errors import OpenMathError, UserError

if TYPE_CHECKING:
    from nemo_openmath.recipe.launch_check.planned import PlannedLaunch

Group = Literal["recipe", "cluster", "models and data", "servers", "training layouts", "disk", "time"]


@dataclass(frozen=True)
class Note:
    """Something that a run survives and that its owner should know."""

    text: str


@dataclass(frozen=True)
class Unseen:
    """Something that a run needs and that cannot be seen from the node where it is launched."""

    text: str


Finding: TypeAlias = "UserError | Note | Unseen"
"""What a check yields. A UserError is a mistake: file and line, what is wrong, why, and the remedy."""


@dataclass(frozen=True)
class Check:
    """One question about a launch, which knows nothing of the others."""

    group: Group
    """The heading under which its mistakes are listed."""
    subject: str
    """What it looks at, in words."""
    function: Callable[[PlannedLaunch], Iterable[Finding]]


class Findings:
    """What all checks found, by group.

    ``written``: stage -> the name under which the file says it. What is found of a stage of a loop in one iteration is
    not listed again of another.
    """

    def __init__(self, written: Mapping[str, str] | None = None) -> None:
        self._written = written or {}
        self._listed: set[tuple[int, str]] = set()
        self.wrong: dict[Group, list[str]] = {group: [] for group in get_args(Group)}
        self.defects: list[str] = []
        self.notes: list[str] = []
        self.unseen: list[str] = []
        self.checked: list[str] = []

    @property
    def num_wrong(self) -> int:
        """Return how many things are wrong."""
        return sum(map(len, self.wrong.values()))

    @property
    def is_bad(self) -> bool:
        """Return whether anything is wrong, or a check failed by itself."""
        return bool(self.num_wrong or self.defects)

    def refuse(self) -> None:
        """Raise the error that a launch ends with where something is wrong, and nothing else.

        Raises UserError for mistakes, OpenMathError where only checks failed by themselves.
        """
        if self.num_wrong:
            raise UserError(f"{self.summary()}; nothing was submitted", remedy="mend the list above")
        if self.defects:
            raise OpenMathError(f"{len(self.defects)} checks failed by themselves; nothing was submitted")

    def summary(self) -> str:
        """Return how many things are wrong, in words."""
        return "1 thing is wrong" if self.num_wrong == 1 else f"{self.num_wrong or 'no'} things are wrong"

    def add(self, group: Group, finding: Finding) -> None:
        """Add a finding, unless an equal one is there, or the same of another iteration."""
        if isinstance(finding, UserError):
            listed, text = self.wrong[group], str(finding)
        else:
            listed, text = (self.notes if isinstance(finding, Note) else self.unseen), finding.text
        written = re.sub(r"[\w-]+", lambda word: self._written.get(word[0], word[0]), text)
        if (key := (id(listed), written)) not in self._listed:
            self._listed.add(key)
            listed.append(text)

    def run(self, checks: Sequence[Check], launch: PlannedLaunch) -> None:
        """Ask all checks. One that fails by itself hides no other: that is listed as a defect of it."""
        for check in checks:
            try:
                for finding in check.function(launch):
                    self.add(check.group, finding)
            except UserError as error:
                self.add(check.group, error)
            except Exception as error:
                reason = str(error) if isinstance(error, OpenMathError | OSError) else repr(error)
                self.defects.append(f"{check.subject}: not checked, for a defect of the check ({reason})")
            else:
                self.checked.append(check.subject)

    def lines(self) -> Iterator[str]:
        """Yield the list: mistakes by group, then notes, what cannot be seen, and what was checked."""
        yield self.summary() if self.num_wrong else "nothing is wrong"
        for group, texts in self.wrong.items():
            yield from _section(group, texts)
        yield from _section("defects", self.defects)
        yield from _section("notes", self.notes)
        yield from _section("not visible from this node", self.unseen)
        yield f"checked: {', '.join(self.checked)}"


def _section(heading: str, texts: Sequence[str]) -> Iterator[str]:
    if texts:
        yield heading
        yield from (f"  - {text}" for text in texts)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list in words: ``a, b, c and 2 more``."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")
