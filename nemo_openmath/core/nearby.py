"""What a user may have meant by a path that is not what a command takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

_LOOKED_AT = 1000  # entries of a folder
_SHOWN = 3


def nearby(path: Path, is_right: Callable[[Path], bool], inside: str = "") -> str:
    """Return "; near it: A, B" with folders for which ``is_right`` holds: those in ``path``, or in the folder
    ``inside`` it, else those beside it; "" where there is none."""
    here = next((p for p in (path, *path.parents) if p.is_dir()), None)
    for place in () if here is None else (here / inside, here, here.parent):
        try:
            folders = sorted(islice(place.iterdir(), _LOOKED_AT))
        except OSError:
            continue
        if right := [folder for folder in folders if folder != path and folder.is_dir() and is_right(folder)]:
            return f"; near it: {', '.join(map(os.path.normpath, right[-_SHOWN:]))}"
    return ""
