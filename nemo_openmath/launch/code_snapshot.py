"""The code of a launched run as it is when it is launched, and what each job says of the code that it ran."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

import nemo_openmath
from nemo_openmath.core.errors import of_the_system
from nemo_openmath.core.records import write_json

CODE, NOTE, DIFF = "code", "code.json", "changes.diff"
IMAGE = "OPENMATH_IMAGE"
"""The variable that names image.json of a container image."""
_PACKAGE = Path(nemo_openmath.__file__).parent


def write_code(sbatch: Path, *, copy: bool) -> Path | None:
    """Write ``code.json`` and ``changes.diff`` below ``sbatch``, and with ``copy`` the package itself below ``code``,
    whose path is returned: what PYTHONPATH of the jobs is to say."""
    code = sbatch / CODE
    try:
        sbatch.mkdir(parents=True, exist_ok=True)
        if copy and _PACKAGE.parent.resolve() != code.resolve():
            new = sbatch / f".{CODE}.{os.getpid()}"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(_PACKAGE, new / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            shutil.rmtree(code, ignore_errors=True)
            new.rename(code)
        if not copy:
            shutil.rmtree(code, ignore_errors=True)
        if _PACKAGE.parent.resolve() != code.resolve():
            (sbatch / DIFF).write_bytes(_git("diff", "HEAD", "--", ".") or b"")
            write_json(sbatch / NOTE, {"format": 1, "from": str(_PACKAGE), "time": time.time(), **running_code()})
    except OSError as error:
        raise of_the_system(error, sbatch) or error from error
    return code if copy else None


def running_code() -> dict[str, Any]:
    """Return what says which code this process runs: version, commit (None where it is not known), ``dirty``, the
    digest of the package's files, and the versions of Python and torch."""
    note = _PACKAGE.parent.parent / NOTE
    commit, dirty = None, None
    if _PACKAGE.parent.name == CODE and note.is_file():  # a copy that a launch made
        with contextlib.suppress(OSError, ValueError, KeyError):
            written = orjson.loads(note.read_bytes())
            commit, dirty = written["commit"], written["dirty"]
    elif (head := _git("rev-parse", "HEAD")) is not None:
        commit, dirty = head.decode().strip(), bool(_git("status", "--porcelain", "--", "."))
    elif (image := os.environ.get(IMAGE)) is not None:  # what the Dockerfile wrote
        with contextlib.suppress(OSError, ValueError, KeyError):
            commit = orjson.loads(Path(image).read_bytes())["commit"] or None
    try:
        torch: str | None = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "version": nemo_openmath.__version__,
        "commit": commit,
        "dirty": dirty,
        "digest": _digest(),
        "python": platform.python_version(),
        "torch": torch,
    }


def note_code(output: Path) -> None:
    """Write the event ``code`` into the journal of the Slurm job that this process belongs to; nothing elsewhere."""
    name, journal = os.environ.get("SLURM_JOB_NAME", ""), output.resolve() / "sbatch" / "journal"
    run = f"{output.resolve().name}."
    if not name.startswith(run) or not journal.is_dir():
        return
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    file = journal / f"{name.removeprefix(run)}{f'.{task}' if task else ''}.jsonl"
    event = {"time": int(time.time()), "event": "code", "id": os.environ.get("SLURM_JOB_ID"), **running_code()}
    event["node"] = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with contextlib.suppress(OSError), file.open("ab") as stream:  # the work matters more
        stream.write(orjson.dumps(event) + b"\n")


def _digest() -> str:
    """The digest of the package's files, by name and content."""
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(_PACKAGE)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _git(*words: str) -> bytes | None:
    """What git says in the checkout that the package lies in; None where it lies in none."""
    command = ["git", "-C", str(_PACKAGE.parent)]
    try:
        known = subprocess.run(
            [*command, "ls-files", "--error-unmatch", f"{_PACKAGE.name}/__init__.py"],
            capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        if known.returncode:
            return None
        done = subprocess.run([*command, *words], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
