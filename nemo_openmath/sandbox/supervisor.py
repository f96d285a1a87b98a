"""The client's end of the zygote: starts it, orders sessions, hears of their deaths, notices its own."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.sandbox import SandboxError
from nemo_openmath.sandbox import channel, folders, seccomp, walls
from nemo_openmath.sandbox.process import SessionProcess

_START_TIMEOUT_S = 120.0  # a cold file cache on a network file system
_PROGRAM = "from nemo_openmath.sandbox.zygote import main; main()"


class ZygoteProcess:
    """A running zygote, as its client sees it. `alive` turns false for good when it dies, and all its sessions with
    it."""

    def __init__(self, popen: subprocess.Popen[bytes], control: socket.socket, base: str) -> None:
        self.missing: list[str] = []  # required walls that are not there, by request
        self.layers: tuple[str, ...] = ()  # what stands around its sessions
        self.alive = True
        self._popen, self._control, self._base = popen, control, base
        self._count = 0
        self._ordering = asyncio.Lock()
        self._pending: dict[int, asyncio.Future[list[int]]] = {}
        self._processes: dict[int, SessionProcess] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, packages: Sequence[str], seed: int | None, unsafe: bool, namespaces: bool) -> ZygoteProcess:
        """Start a zygote. Raises UserError where a wall is missing (unless ``unsafe``) or a package cannot be
        imported, and SandboxError where it does not start in time."""
        if platform.system() != "Linux":
            raise UserError(f"the sandbox needs Linux, this is {platform.system()}", remedy="run it in a Linux machine")
        if seccomp.architecture() is None:
            raise UserError(
                f"the sandbox has no system-call table for {platform.machine()}", remedy="use x86_64 or aarch64"
            )
        base = tempfile.mkdtemp(prefix="openmath-sandbox-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = os.pidfd_open(os.getpid())
        settings = {
            "seed": seed,
            "base": base,
            "packages": list(packages),
            "unsafe": unsafe,
            "namespaces": namespaces,
        }
        try:
            popen = _spawn(theirs, client, settings)
        except OSError:
            ours.close()
            shutil.rmtree(base, ignore_errors=True)
            raise
        finally:
            theirs.close()
            os.close(client)
        ours.setblocking(False)
        zygote = cls(popen, ours, base)
        asyncio.get_running_loop().add_reader(ours.fileno(), zygote._receive)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):  # 3.11's wait_for swallows a cancellation that meets a result
                await asyncio.shield(zygote._ready)
        except TimeoutError as error:
            await zygote.close()
            raise SandboxError(
                f"the sandbox did not start within {_START_TIMEOUT_S:g} s; is the machine too busy, or its disk slow?",
                retryable=True,
            ) from error
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def make(self, shape: walls.Shape, *, spare: bool = False) -> SessionProcess:
        """Return a new session process whose walls stand. Raises SandboxError.

        ``spare``: made ahead, so that it may take a little longer and be faster afterwards.
        """
        loop = asyncio.get_running_loop()
        if not self.alive:
            raise SandboxError("the sandbox's zygote died", retryable=True)
        self._count += 1
        number, folder = self._count, f"{self._base}/{self._count}"
        self._pending[number] = loop.create_future()
        order = {"id": number, "folder": folder, "shape": shape_fields(shape), "spare": spare}
        answer = self._pending[number]
        try:
            async with self._ordering:  # one writer, and no queue in the socket
                await loop.sock_sendall(self._control, json.dumps(order).encode())
                wire, pidfd, memory = await asyncio.shield(answer)
        except OSError as error:
            raise SandboxError("the sandbox's zygote died", retryable=True) from error
        except asyncio.CancelledError:
            answer.add_done_callback(_close_all)  # the process ends when its socket closes
            raise
        mapping = mmap.mmap(memory, channel.memory_size(shape.capacity))
        os.close(memory)
        process = SessionProcess(pidfd, mapping, shape, folder)
        self._processes[number] = process
        if not self.alive:
            process.gone.set_result(None)
        try:
            await loop.create_connection(lambda: process, sock=socket.socket(fileno=wire))
            ending = await process.ready()
        except BaseException:
            process.kill()
            process.release()
            raise
        if ending.outcome is None:
            process.release()
            raise SandboxError(f"a session could not be walled in: {ending.reason or 'it died'}", retryable=True)
        return process

    async def close(self) -> None:
        """End the zygote and all its sessions; remove what they left on disk. A second call does nothing."""
        self._lost()
        self._control.close()  # its end of file tells the zygote
        try:
            await asyncio.to_thread(self._popen.wait, 10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            await asyncio.to_thread(self._popen.wait)
        if Path(self._base).exists():  # the zygote was killed before it could
            await asyncio.to_thread(folders.remove, self._base)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 3)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._lost()
            return
        message: dict[str, Any] = json.loads(data)
        if "ended" in message:
            process = self._processes.pop(message["ended"], None)
            if process is not None and not process.gone.done():
                process.gone.set_result(message["status"])
        elif "id" in message:
            future = self._pending.pop(message["id"])
            if "error" in message:
                future.set_exception(SandboxError(f"no new session: {message['error']}", retryable=True))
            elif len(descriptors) != 3:  # the kernel had no room for them in our table
                for descriptor in descriptors:
                    os.close(descriptor)
                future.set_exception(SandboxError("too many open files; raise `ulimit -n`", retryable=False))
            else:
                future.set_result(descriptors)
        elif "failed" in message:
            remedy = "install it where the sandbox runs, or leave it out of the sandbox's packages"
            self._ready.set_exception(UserError(message["failed"], remedy=remedy))
        elif "refused" in message:
            remedy = "bring it, or ask for an unsafe sandbox by name"
            self._ready.set_exception(
                UserError(f"the sandbox would lack {' and '.join(message['refused'])}", remedy=remedy)
            )
        else:
            self.missing = message["missing"]
            walls_up = [] if "seccomp" in " ".join(self.missing) else ["seccomp"]
            walls_up += [message["file_wall"]] if message["file_wall"] else []
            self.layers = ("no_new_privs", "rlimits", *walls_up, *(["namespaces"] if message["namespaces"] else []))
            self._ready.set_result(None)

    def _lost(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        error = SandboxError("the sandbox's zygote died", retryable=True)
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._pending.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen, even if nobody waits any more
        self._pending.clear()
        for process in self._processes.values():
            process.kill()  # the kernel does it too (PDEATHSIG)
            if not process.gone.done():
                process.gone.set_result(None)
        self._processes.clear()


def shape_fields(shape: walls.Shape) -> dict[str, int]:
    """Return the fields of a shape as the zygote's order has them."""
    return {name: getattr(shape, name) for name in shape.__slots__}


def _spawn(control: socket.socket, client: int, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    descriptors = (control.fileno(), client)
    return subprocess.Popen(
        [sys.executable, "-s", "-P", "-c", _PROGRAM, *map(str, descriptors), json.dumps(settings)],
        pass_fds=descriptors,
        env=_environment(settings["seed"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _close_all(future: asyncio.Future[list[int]]) -> None:
    if not future.cancelled() and future.exception() is None:
        for descriptor in future.result():
            os.close(descriptor)


def _environment(seed: int | None) -> dict[str, str]:
    """Return an environment with nothing of the caller's but where its packages are."""
    package_root = str(Path(__file__).resolve().parents[2])
    folders_on_path = [os.path.abspath(place) for place in sys.path if place and Path(place).is_dir()]
    return {
        "PYTHONPATH": os.pathsep.join([*folders_on_path, package_root]),
        "PYTHONHASHSEED": "random" if seed is None else str(seed % 2**32),
        "PYTHONUTF8": "1",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # glibc reserves 64 MB of address space for every thread's arena
        "MKL_NUM_THREADS": "1",
    }
