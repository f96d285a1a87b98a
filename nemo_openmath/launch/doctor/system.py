"""What the probes look at: files of /proc, /sys and /dev below a root, commands, and variables."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_S = 5.0
"""How long a command may take."""


@dataclass(frozen=True, slots=True)
class CommandAnswer:
    """What a command said."""

    code: int
    """124 where it did not end in time."""
    text: str
    """Its standard output; its standard error where it failed."""

    @property
    def line(self) -> str:
        """The first line that says something, cut to what fits."""
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")[:160]


def ask(words: Sequence[str], limit_s: float = LIMIT_S) -> CommandAnswer | None:
    """Run a command and return what it said; None where there is no such command. It is killed after ``limit_s``."""
    program = shutil.which(words[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CommandAnswer(124, f"{words[0]} did not answer within {limit_s:g} s")
    except OSError as error:
        return CommandAnswer(126, f"{words[0]}: {error.strerror}")
    return CommandAnswer(done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout)


@dataclass(frozen=True)
class System:
    """A machine, or for tests a folder and answers that look like one."""

    output: Path
    """The folder of a run, there or not yet."""
    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    ask: Callable[..., CommandAnswer | None] = ask

    def text(self, path: str) -> str:
        """Return the text of a file below the root; "" where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def names(self, path: str, pattern: str = "*") -> list[str]:
        """Return the names in a folder below the root; none where there is no such folder."""
        return sorted(entry.name for entry in (self.root / path).glob(pattern))

    @property
    def num_gpu_devices(self) -> int:
        """How many device files of NVIDIA GPUs there are."""
        return sum(name.removeprefix("nvidia").isdigit() for name in self.names("dev", "nvidia*"))

    @property
    def on_cluster(self) -> bool:
        """Whether other nodes are meant to see what this one does."""
        return self.in_job or "SLURM_CONF" in self.environment or (self.root / "etc/slurm/slurm.conf").exists()

    @property
    def in_job(self) -> bool:
        """Whether this process belongs to a job of Slurm."""
        return "SLURM_JOB_ID" in self.environment
