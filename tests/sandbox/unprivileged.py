"""Runs a module as the user nobody: no capability, no group, no new privileges.

Where the interpreter lies below a folder only root may enter (as /root often is), the child gets a mount namespace in
which that folder is replaced by one that holds nothing but the interpreter.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def possible() -> bool:
    """Root, with the tools to step down, on a kernel that lets root mount."""
    if os.getuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare", "mount"))):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def run(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """`python arguments` as nobody, in the repository."""
    steps = ["set -e"]
    if closed := _closed_ancestor(Path(sys.base_prefix).resolve()):
        base = shlex.quote(str(Path(sys.base_prefix).resolve()))
        steps += [
            "stage=$(mktemp -d)",
            f"mount --bind {base} $stage",
            f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}",
            f"mkdir -p {base}",
            f"mount --bind $stage {base}",
            "umount $stage",
            "rmdir $stage",
        ]
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    steps.append("exec " + shlex.join([*drop, "--no-new-privs", sys.executable, *arguments]))
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", "\n".join(steps)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def _closed_ancestor(path: Path) -> Path | None:
    """The topmost folder above ``path`` that others may not enter."""
    return next((folder for folder in reversed([path, *path.parents]) if not folder.stat().st_mode & 0o001), None)


if __name__ == "__main__":
    result = run(*sys.argv[1:])
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    sys.exit(result.returncode)
