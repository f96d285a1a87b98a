"""What is done about rows that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo_openmath.core.errors import UserError

BadRow = Callable[[Path, int, str], None]
"""Is told of a broken row: its file, its number, and what is wrong with it."""


class BrokenRows:
    """Counts broken rows, then refuses the input unless ``skip``.

    Give it to a reader as ``on_bad``, and count in ``good`` the rows that can be used. ``how`` tells the user how
    broken rows are skipped.
    """

    def __init__(self, *, skip: bool = False, how: str = "skip_broken: true leaves broken rows out"):
        self.skip, self.count, self.good = skip, 0, 0
        self._how = how
        self._first: tuple[Path, int, str] | None = None

    def __call__(self, file: Path, row: int, problem: str) -> None:
        self.count += 1
        self._first = self._first or (file, row, problem)

    @property
    def refused(self) -> bool:
        """Whether the input will be refused: rows after this need not be used."""
        return self.count > 0 and not self.skip

    def refuse(self) -> None:
        """Raise UserError naming the first broken row and how many there are, unless they are skipped. An input of
        broken rows alone is refused in any case."""
        if self._first is None or (self.skip and self.good):
            return
        rows = self.good + self.count
        file, row, problem = self._first
        among = f" ({self.count} of {rows} rows are broken)" if self.count > 1 or rows > 1 else ""
        remedy = (
            "no row is left: mend the file, or give another one" if self.skip else f"mend or delete it; {self._how}"
        )
        raise UserError(f"{problem}{among}", file=file, row=row, remedy=remedy)


def report_bad(path: Path, row: int, problem: str, on_bad: BadRow | None) -> None:
    """Tell ``on_bad`` of a broken row. Raises UserError where there is none."""
    if on_bad is None:
        raise UserError(problem, file=path, row=row, remedy="mend or delete this row")
    on_bad(path, row, problem)
