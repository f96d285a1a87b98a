"""What a command writes never takes the place of, or mixes with, what somebody else wrote.

Every command that writes to a place that its user names asks here first, so that all of them refuse in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from nemo_openmath.core.errors import UserError, of_the_system, refuse_special

REMEDY = "choose another output, or move that away"
_SHOWN = 3  # names in a message


def refuse_foreign_folder(folder: Path, what: str, marks: Collection[str], own: Collection[Path] = ()) -> None:
    """Raise UserError where ``folder`` holds something and is not ``what``, such as "the folder of a run".

    ``marks``: patterns of names, one of which is in every folder that is. Files ``own`` and hidden ones do not count.
    """
    if not folder.is_dir():
        return
    ours = {path.resolve() for path in own}
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.resolve() not in ours)
    if names and not any(next(folder.glob(mark), None) for mark in marks):  # in this order: another job may begin it
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise UserError(f"is not {what}, and not empty: it holds {shown}", file=folder, remedy=REMEDY)


def partial_file(file: Path) -> Path:
    """Return the file that is written first and then moved to ``file``, so that no reader sees half of it."""
    return file.with_name(file.name + ".partial")


def refuse_unwritable_file(file: Path, option: str) -> None:
    """Raise UserError, or what the system says, where ``file`` cannot be written: its folder is not there or refuses,
    or it is no regular file. ``option``: the one to change."""
    if not file.parent.is_dir():
        raise UserError("no such folder", file=file.parent, remedy=f"make it, or change {option}")
    refuse_special(file, f"change {option}")
    try:
        partial_file(file).touch()
        partial_file(file).unlink()
    except OSError as error:
        raise of_the_system(error, file) or error from error


def refuse_foreign_file(file: Path, what: str, is_ours: Callable[[bytes], bool]) -> None:
    """Raise UserError where ``file`` holds something and is not ``what``, such as "a file of graded rows".

    ``is_ours`` is shown the first line, of at most 64 MiB.
    """
    if not file.is_file() or not file.stat().st_size:
        return
    with file.open("rb") as content:
        first = content.readline(1 << 26)
    if not is_ours(first):
        raise UserError(f"is not {what}, and not empty: it would be replaced", file=file, remedy=REMEDY)
