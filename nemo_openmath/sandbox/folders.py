"""Private folders of sessions: measuring and removing what hostile code left in them."""

from __future__ import annotations

import os

MAX_ENTRIES = 4096  # files and folders of one session


def usage(folder: str) -> tuple[int, int]:
    """(bytes, entries) below ``folder``, both at least this large; stops counting beyond `MAX_ENTRIES`. What cannot be
    looked into (a path too long, a folder without read permission) counts as too many entries."""
    size = entries = 0
    pending = [folder]
    while pending and entries <= MAX_ENTRIES:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:  # removed while we looked
            continue
        except OSError:
            entries = MAX_ENTRIES + 1
    return size, entries


def open_files_size(pid: int) -> int:
    """Bytes on disk of the deleted files that a process holds open (they are in no folder any more)."""
    size = 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if status.st_nlink == 0 and (status.st_mode & 0o170000) == 0o100000:
                size += status.st_blocks * 512
    except OSError:  # the process is gone, or not ours to look into
        pass
    return size


def remove(folder: str) -> None:
    """Remove a folder whose process is dead, however deep or unreadable: every subfolder found is moved up to the top,
    so no path grows longer than two names. Follows no link. Raises OSError."""
    moved = 0
    try:
        while True:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as found:
                entries = list(found)
            if not entries:
                os.rmdir(folder)
                return
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                with os.scandir(entry.path) as below:
                    inner = list(below)
                for item in inner:
                    if item.is_dir(follow_symlinks=False):
                        os.chmod(item.path, 0o700)
                        os.rename(item.path, os.path.join(folder, f".removing-{os.getpid()}-{moved}"))
                        moved += 1
                    else:
                        os.unlink(item.path)
                os.rmdir(entry.path)
    except FileNotFoundError:
        return
