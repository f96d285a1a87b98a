"""Makes this process, and all it starts, live on a kernel that has never heard of Landlock. Cannot be undone."""

from __future__ import annotations

import errno
import struct

from nemo_openmath.sandbox import seccomp
from nemo_openmath.sandbox.libc import PR_SET_NO_NEW_PRIVS, prctl

_CREATE_RULESET = 444


def pretend() -> None:
    """A seccomp filter of our own: ENOSYS for landlock_create_ruleset, everything else allowed."""
    arch = seccomp.architecture()
    assert arch is not None
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1, _CREATE_RULESET), (6, 0, 0, 0x50000 | errno.ENOSYS), (6, 0, 0, 0x7FFF0000)]
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    seccomp.restrict(arch, b"".join(struct.pack("<HBBI", *rule) for rule in rules))
