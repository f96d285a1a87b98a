"""Private folders of sessions: measuring and removing what hostile code left in them."""

from __future__ import annotations

import ctypes
import functools
import os
import stat

from nemo_openmath.sandbox.libc import libc

MAX_ENTRIES = 4096  # files and folders of one session
_TMPFS, _RAMFS = 0x01021994, 0x858458F6  # linux/magic.h


def usage(folder: str) -> tuple[int, int]:
    """Return (bytes, entries) below ``folder``, both at least this large; stops counting beyond `MAX_ENTRIES`.

    What cannot be looked into (a path too long, a folder without read permission) counts as too many entries.
    """
    size = entries = 0
    pending = [folder]
    while pending and entries <= MAX_ENTRIES:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
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


def counts_what_is_written(folder: str) -> bool:
    """Return whether `written` counts all that a process does to files in there. It does not in memory, through
    mappings."""
    answer = ctypes.create_string_buffer(512)
    return libc.statfs(folder.encode(), answer) == 0 and ctypes.c_long.from_buffer(answer).value not in (_TMPFS, _RAMFS)


def written(pid: int) -> int | None:
    """Return the bytes that a process has written so far, by calls and through mappings; None where the kernel does not
    tell."""
    try:
        with open(f"/proc/{pid}/io", "rb") as io:
            counts = dict(line.split(b": ") for line in io)
        return max(int(counts[b"wchar"]), int(counts[b"write_bytes"]))  # the latter holds the mappings', too
    except (OSError, KeyError, ValueError):
        return None


def deleted_files_size(pid: int, each: int) -> int:
    """Return the bytes on disk of the deleted files that a process keeps alive.

    One that it holds open counts as what it takes. One that is only mapped, however little of it, counts as ``each``:
    its size cannot be seen.
    """
    size, seen = 0, set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                seen.add(status.st_ino)
                size += status.st_blocks * 512
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                if line.endswith(b" (deleted)\n"):
                    device, inode = line.split(maxsplit=5)[3:5]
                    if device != _device_of_shared_memory() and int(inode) not in seen:
                        seen.add(int(inode))
                        size += each
    except OSError:  # the process is gone, or not ours to look into
        pass
    return size


@functools.cache
def _device_of_shared_memory() -> bytes:
    """Return the device, as it is written in `maps`, of the kernel's own mount for shared memory, in which no session
    has a path."""
    descriptor = os.memfd_create("openmath")
    try:
        device = os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
    return b"%02x:%02x" % (os.major(device), os.minor(device))


def remove(folder: str) -> None:
    """Remove a folder whose process is dead, however deep or unreadable. Every subfolder found is moved up to the top,
    so no path grows longer than two names. Follows no link. Raises OSError."""
    moved = 0
    try:
        while True:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as listing:
                entries = list(listing)
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
