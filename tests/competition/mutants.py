"""Break each bound of the competition's solver and see it caught: ``python -m tests.competition.mutants``.

A mutant is a change of one place of the code; ``mutants.yaml`` has them. Each names what has to catch it: simulated
contests (``chaos``), or files of tests. All of these have to fail on the mutant, and to hold on the code as it is. The
code is changed in a copy of the repository.

    python -m tests.competition.mutants [WORD...]    only mutants whose name, file or catchers have one of the words

Some twenty minutes on one core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

TOP = Path(__file__).parents[2]
CHAOS, CONTESTS = "chaos", 200
PATIENCE = 1200.0  # seconds; a mutant that hangs is caught as well


@dataclass(frozen=True)
class Mutant:
    """A change of one place, and what catches it."""

    name: str
    file: str
    """Below ``nemo_openmath/competition``."""
    old: str
    new: str
    caught_by: tuple[str, ...]

    def changed(self, top: Path) -> str:
        """Return the changed text of the file. Raises AssertionError where the place is not there once."""
        path = top / "nemo_openmath/competition" / self.file
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.name}: {text.count(self.old)} such places in {self.file}"
        changed = text.replace(self.old, self.new)
        compile(changed, str(path), "exec")
        return changed

    def apply(self, top: Path) -> None:
        """Change the copy at ``top``."""
        (top / "nemo_openmath/competition" / self.file).write_text(self.changed(top))

    def undo(self, top: Path) -> None:
        """Restore the copy."""
        file = f"nemo_openmath/competition/{self.file}"
        shutil.copyfile(TOP / file, top / file)


def read_mutants() -> list[Mutant]:
    """Return all mutants."""
    groups = yaml.safe_load((TOP / "tests/competition/mutants.yaml").read_text())
    return [Mutant(**m | {"caught_by": tuple(m["caught_by"])}) for mutants in groups.values() for m in mutants]


class Copy:
    """A copy of the repository in which mutants are tried."""

    def __init__(self, folder: Path):
        self.top = folder
        for name in ("nemo_openmath", "tests"):
            shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(TOP / "pyproject.toml", folder / "pyproject.toml")
        (folder / "examples").symlink_to(TOP / "examples")

    def failure(self, catcher: str) -> str | None:
        """Return how a catcher fails; None where it holds."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"tests/competition/{catcher}.py",
        ]
        if catcher == CHAOS:
            command = [sys.executable, "-m", "tests.competition.chaos", "--contests", str(CONTESTS)]
        environment = os.environ | {"PYTHONPATH": str(self.top), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=self.top, env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return f"hangs for {PATIENCE:g} s"
        if done.returncode == 0:
            return None
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("AssertionError: contest", "FAILED", "ERROR"))]
        return (told or lines)[-1][:160]


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in read_mutants() if not words or any(w in f"{m.name} {m.file} {m.caught_by}" for w in words)]
    escaped, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for catcher in sorted({c for mutant in chosen for c in mutant.caught_by}):
            if (how := copy.failure(catcher)) is not None:
                print(f"{catcher} fails on the code as it is: {how}")
                return 1
        for mutant in chosen:
            mutant.apply(copy.top)
            for catcher in mutant.caught_by:
                how = copy.failure(catcher)
                escaped += how is None
                print(f"{mutant.name:<55} {catcher:<14} {'NOT CAUGHT' if how is None else how}", flush=True)
            mutant.undo(copy.top)
    tries = sum(len(mutant.caught_by) for mutant in chosen)
    print(f"{len(chosen)} mutants, {tries - escaped} of {tries} catches, {time.monotonic() - began:.0f} s")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
