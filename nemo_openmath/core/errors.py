"""Errors a user meets, and the exit codes a launcher tells apart.

Every error that a user can cause is a :class:`UserError`: one line that names the file, the row and the
remedy. Anything else that escapes is a defect of this package and shows its traceback under ``--debug``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of our processes. A launcher starts again what ends with PREEMPTED, HUNG or MACHINE."""

    OK = 0
    FAILURE = 1  # a defect, or a machine that broke
    USER_ERROR = 2  # wrong input: the message names the remedy; running again changes nothing
    INCOMPLETE = 3  # finished, but some items failed after all retries; running again retries them
    FAULT = 4  # of ``openmath diagnose``: a known fault gives the losses
    UNKNOWN = 5  # of it: neither a right trainer nor a known fault gives them
    UNDECIDED = 6  # of it: several do
    PREEMPTED = 75  # EX_TEMPFAIL: state was saved; run the same command again to go on
    HUNG = 76  # no step, or no token, within the stated time; the stacks of all threads were written
    MACHINE = 77  # the process knows that the machine failed: CUDA, NCCL, a link, a disk
    INTERRUPTED = 130  # Ctrl-C


class OpenMathError(Exception):
    """The base of every error that is raised on purpose."""

    exit_code = ExitCode.FAILURE


class UserError(OpenMathError):
    """Raised for wrong input. ``str()`` is one line: ``file:row: what is wrong; remedy``."""

    exit_code = ExitCode.USER_ERROR

    def __init__(self, problem: str, *, file: str | Path | None = None, row: int | None = None, remedy: str = ""):
        where = "" if file is None else f"{file}:{row}: " if row is not None else f"{file}: "
        super().__init__(f"{where}{problem}" + (f"; {remedy}" if remedy else ""))
        self.file, self.row, self.remedy, self.problem = file, row, remedy, problem

    def __reduce__(self) -> tuple[Any, ...]:
        return _user_error, (self.problem, self.file, self.row, self.remedy)


def one_error(errors: Sequence[UserError], heading: str) -> UserError:
    """Return the error itself where there is one, else an error that lists all of them, a line each, below
    ``heading``."""
    if len(errors) == 1:
        return errors[0]
    return UserError("\n  - ".join([f"{heading}: {len(errors)} things are wrong", *map(str, errors)]))


class SystemFailure(OpenMathError):
    """Raised where the machine refused: a full disk, a file system that is read-only or gone.

    ``str()`` is one line with the path, the reason and the remedy.
    """

    exit_code = ExitCode.MACHINE

    def __init__(self, file: str | Path, problem: str, remedy: str):
        super().__init__(f"{file}: {problem}; {remedy}")
        self.file, self.problem, self.remedy = file, problem, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.problem, self.remedy)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ARGUMENT = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; name a folder",
    errno.EISDIR: "name a file, not a folder",
    errno.EEXIST: "a file of this name is there; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links lead in a circle; name the file itself",
    errno.EACCES: "choose a path that this user may use, or change its permissions",
    errno.EPERM: "choose a path that this user may use, or change its permissions",
    errno.EROFS: "choose a folder that can be written",
}


def no_space(file: str | Path, reason: str, kept: str = "finished work is kept") -> SystemFailure:
    """Return the error of a full disk."""
    return SystemFailure(file, f"no space left ({reason}); {kept}", "free some space and run the same command again")


def refuse_special(file: Path, remedy: str) -> None:
    """Raise UserError where ``file`` exists and is not a file: a device, a folder, a link that leads nowhere.

    What is written whole is renamed to its name, and would take the place of what was there.
    """
    try:
        os.lstat(file)
    except FileNotFoundError:
        return
    except OSError as error:
        raise of_the_system(error, file) or error from error
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no file"
        raise UserError(f"is {what}, and would be replaced", file=file, remedy=remedy)


def refuse_device(file: Path) -> None:
    """Raise UserError where ``file`` is a device, which may never end. A pipe is read to its end."""
    if file.is_char_device() or file.is_block_device():
        raise UserError("is a device", file=file, remedy="name a file")


def of_the_system(error: OSError, file: str | Path | None = None) -> OpenMathError | None:
    """Return what an OSError means to a user: a path that was named wrong (exit code 2), or a machine that failed (1).

    None where the error names no file and is no full disk: then it is for the caller to explain.
    """
    name = file if file is not None else error.filename
    if name is None and error.errno not in _FULL:
        return None
    reason, where = words_of(error), str(name) if name is not None else "the output's disk"
    if error.errno in _FULL:
        return no_space(where, reason)
    if error.errno in _ARGUMENT:
        return UserError(f"cannot be used ({reason})", file=where, remedy=_ARGUMENT[error.errno])
    return SystemFailure(where, reason, "check the file system, then run the same command again")


def words_of(error: BaseException) -> str:
    """Return what an error says: the system's words or its own, and where it has none (a TimeoutError), its name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class RetryableError(OpenMathError):
    """Raised where a service (an engine, a sandbox) failed at one request; the others go on.

    ``retryable`` says whether the same request may succeed later, because the service was busy, restarting or
    disconnected.
    """

    def __init__(self, message: str, *, retryable: bool):
        super().__init__(message)
        self.retryable = retryable


class Refused(OpenMathError):
    """Raised where a request was refused, and asking again changes nothing. ``reason`` is what is counted."""

    reason = "refused by the engine"


class Incomplete(OpenMathError):
    """Raised at the end of a stage of which some units failed after their retries. What finished is kept."""

    exit_code = ExitCode.INCOMPLETE


class Preempted(OpenMathError):
    """Raised where the scheduler asked us to leave. Everything finished is saved."""

    exit_code = ExitCode.PREEMPTED


class Hung(OpenMathError):
    """Raised where nothing advanced within the stated time, and the process that hung wrote its stacks and ended."""

    exit_code = ExitCode.HUNG


class MachineFailure(OpenMathError):
    """Raised where the machine is known to have failed: a device, a network, a disk that takes no checkpoint."""

    exit_code = ExitCode.MACHINE


class DamagedFile(OpenMathError):
    """Raised where a file of ours does not hold what its manifest or checksum promises."""

    def __init__(self, file: str | Path, problem: str, remedy: str = "delete it and run the stage again"):
        super().__init__(f"{file}: {problem}; {remedy}")
        self.file, self.problem, self.remedy = file, problem, remedy

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes hand it to their parent
        return type(self), (self.file, self.problem, self.remedy)


class MissingExtra(UserError):
    """Raised where a package of an optional extra is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}", remedy=f"pip install 'nemo-openmath[{extra}]'")
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.package, self.extra, self.purpose)


def _user_error(problem: str, file: Path | None, row: int | None, remedy: str) -> UserError:
    """Rebuild a pickled UserError: its arguments are keywords."""
    return UserError(problem, file=file, row=row, remedy=remedy)
