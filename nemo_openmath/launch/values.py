"""Values that Slurm understands: time limits, and words of ``#SBATCH`` lines."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable

_TIME = re.compile(
    r"(?P<days>\d+)-(?P<h>\d+)(:(?P<m>\d+)(:(?P<s>\d+))?)?"  # D-HH, D-HH:MM, D-HH:MM:SS
    r"|(?P<hours>\d+):(?P<min>\d+):(?P<sec>\d+)"  # HH:MM:SS
    r"|(?P<minutes>\d+)(:(?P<seconds>\d+))?"  # minutes, MM:SS
)
_UNITS = {"days": 86400, "h": 3600, "hours": 3600, "m": 60, "min": 60, "minutes": 60, "s": 1, "sec": 1, "seconds": 1}
_OPTION = re.compile(r"(?P<name>--[a-z][a-z0-9-]*|-[A-Za-z])(?:(?P<between>=|\s+)(?P<value>.*))?", re.DOTALL)
OURS = {
    "--time": "time: under default, kinds or stages",
    "-t": "time: under default, kinds or stages",
    "--array": "array: under kinds or stages",
    "-a": "array: under kinds or stages",
    "--signal": "warn_seconds:",
    "--job-name": "the folder's name in --output",
    "-J": "the folder's name in --output",
    "--chdir": "the folder in --output",
    "-D": "the folder in --output",
    "--dependency": "nothing: jobs wait for the stages that they read",
    "-d": "nothing: jobs wait for the stages that they read",
    "--no-requeue": "nothing: a preempted job goes on only when it is queued again",
    "--nodes": "nodes: under kinds or stages",
    "-N": "nodes: under kinds or stages",
    "--ntasks": "gpus: of a training, one task for each; other jobs have one",
    "--ntasks-per-node": "gpus: of a training, one task for each; other jobs have one",
    "-n": "gpus: of a training, one task for each; other jobs have one",
    "--cpus-per-task": "cpus: under default, kinds or stages",
    "-c": "cpus: under default, kinds or stages",
    "--mem": "memory: under default, kinds or stages",
    "--partition": "partition:",
    "-p": "partition:",
    "--account": "account:",
    "-A": "account:",
    "--output": "nothing: logs are in sbatch/logs of the run",
    "-o": "nothing: logs are in sbatch/logs of the run",
    "--error": "nothing: the log has both, and why a job failed is read there",
    "-e": "nothing: the log has both, and why a job failed is read there",
    "--open-mode": "nothing: the log of a job has all its attempts",
    "--export": "environment: and secrets:",
    "--wait": "nothing: all jobs are submitted at once",
    "-W": "nothing: all jobs are submitted at once",
    "--test-only": "nothing: see openmath launch --dry-run",
    "--wrap": "nothing: the job is its script",
}
"""Options of sbatch that the launcher writes itself, and what says them."""


def time_limit(text: str) -> float:
    """Return the seconds of a Slurm time limit.

    Slurm reads ``minutes``, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM`` and ``D-HH:MM:SS``. ``UNLIMITED``,
    ``INFINITE`` and 0 are no limit: infinity. Raises ValueError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    if (match := _TIME.fullmatch(text)) is None or not text.isascii():
        raise ValueError(f"time {text!r} is no time limit of Slurm: write minutes, HH:MM:SS, D-HH or D-HH:MM:SS")
    seconds = sum(_UNITS[name] * int(count) for name, count in match.groupdict().items() if count is not None)
    return seconds or float("inf")


def memory(text: str) -> str:
    """Return ``text`` where Slurm reads it as an amount of memory. Raises ValueError for anything else."""
    if not re.fullmatch(r"[0-9]+([KMGT]B?)?", text, re.IGNORECASE):
        raise ValueError(f"memory {text!r} is no amount of memory: write megabytes, or a number with K, M, G or T")
    return text


def memory_mb(text: str) -> int:
    """Return the megabytes of an amount of memory; 0 means all of the node. Raises ValueError like :func:`memory`."""
    number = int(re.match(r"[0-9]+", memory(text))[0])  # type: ignore[index]
    unit = text.upper().removesuffix("B")[-1:]
    return -(-number // 1024) if unit == "K" else number * {"G": 1024, "T": 1024**2}.get(unit, 1)


def sbatch_option(text: str) -> str:
    """Return an option of sbatch as the words of an ``#SBATCH`` line, its value in quotes where it needs them.

    Raises ValueError for what is no option, and for one that the launcher writes itself.
    """
    if (match := _OPTION.fullmatch(text.strip())) is None or not text.isprintable():
        raise ValueError(f"{text!r} is no option of sbatch: write it as --name, --name=value or -n value")
    name, between, value = match["name"], match["between"], match["value"]
    for ours, says in OURS.items():  # sbatch takes a long option by its first letters too
        if name == ours or (len(name) > 3 and ours.startswith(name)):
            raise ValueError(f"{ours} is written by the launcher; what says it is {says}")
    if value is None:
        return name
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":  # its own quotes
        value = value[1:-1]
    return f"{name}{between.strip() or ' '}{shlex.quote(value)}"


def one_line(text: str) -> str:
    """Return ``text`` where it fits a line of ``#SBATCH``: behind a line break sbatch reads no further lines. Raises
    ValueError for anything else."""
    if not text.isprintable():
        raise ValueError(f"{text!r} has a line break or another control character: write it in one line")
    return text


def pattern(text: object) -> str:
    """Return a path as it is written in ``--output``, where Slurm replaces ``%x`` and its like."""
    return str(text).replace("%", "%%")


def check_amounts(time: str | None, memory_text: str | None, partition: str | None) -> None:
    """Raise ValueError where sbatch would not understand a time limit, an amount of memory or a partition's name."""
    if time is not None:
        time_limit(time)
    if memory_text is not None:
        memory(memory_text)
    one_line(partition or "")


def megabytes(text: str) -> int:
    """Return an amount of memory in megabytes; 0 is all of a node."""
    number = re.match("[0-9]+", memory(text))
    assert number is not None
    unit = text[number.end() :].upper().removesuffix("B")
    return math.ceil(int(number[0]) * {"": 1, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit])


def sum_of_memory(texts: Iterable[str | None]) -> str | None:
    """Return the memory of parts of a job together; all of a node where a part has all, None where none says any."""
    given = [text for text in texts if text is not None]
    amounts = [megabytes(text) for text in given]
    if len(given) < 2:
        return given[0] if given else None
    return "0" if 0 in amounts else f"{sum(amounts)}M"
