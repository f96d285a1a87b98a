"""A home that can be written, for programs in containers.

Compilers and libraries keep what they compile and download below the home folder: triton, Hugging Face, matplotlib, our
own kernels. In a container the home is often missing or read-only, and the user has no name.
"""

from __future__ import annotations

import getpass
import logging
import os
import stat
import tempfile
from pathlib import Path

from nemo_openmath.core.errors import UserError

log = logging.getLogger(__name__)

_FOLDERS = ("/dev/shm", "/var/tmp")
"""Tried where the folder for temporary files does not let programs run from it."""


def prepare_home() -> None:
    """Set HOME to a private folder for temporary files where it cannot be written, and USER where the user has no name.

    Child processes inherit both. A home that can be written stays as it is, and so do XDG_CACHE_HOME, HF_HOME and the
    like, which come before it. Raises UserError where there is no folder for temporary files.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # torch asks for the name, too, and fails
        os.environ["USER"] = f"uid-{os.getuid()}"
    home = Path(os.path.expanduser("~"))  # HOME, else what the list of users says; "~" where neither does
    if home.is_dir() and os.access(home, os.W_OK | os.X_OK):
        return
    try:
        folders = [tempfile.gettempdir(), *_FOLDERS]
    except FileNotFoundError as error:
        raise UserError(
            "no folder for temporary files can be written",
            remedy="mount one (docker run --tmpfs /tmp:exec), or name one in TMPDIR",
        ) from error
    choices = [folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)]
    runs = [folder for folder in choices if not os.statvfs(folder).f_flag & os.ST_NOEXEC]
    if not runs:
        log.warning("%s is mounted noexec: what is compiled cannot be run from it; mount it with exec", choices[0])
    os.environ["HOME"] = str(_private(Path((runs or choices)[0])))
    log.warning(
        "the home %s cannot be written: caches lie in %s, which may not outlive this container; set HOME or "
        "XDG_CACHE_HOME to a folder that does",
        home,
        os.environ["HOME"],
    )


def _private(parent: Path) -> Path:
    """Return a folder below ``parent``, where others may write, that is this user's alone."""
    folder = parent / f"openmath-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        # Somebody else's folder of this name could hold libraries that we would load.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            folder = Path(tempfile.mkdtemp(prefix="openmath-", dir=parent))
    return folder
