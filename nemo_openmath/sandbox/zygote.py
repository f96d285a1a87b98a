"""The process that sessions are forked from: it has imported everything once and does nothing but fork.

Started by `LocalSandbox` as a program of its own (never a fork of the caller, which may hold threads, secrets and a
GPU) with a clean environment. It takes orders on one socket, a `SOCK_SEQPACKET` of JSON messages:

    -> {"id": 7, "folder": "/tmp/.../7", "shape": {...}, "spare": false}   make a session
    <- {"id": 7} with descriptors: session socket, pidfd, shared memory of the output
    <- {"ended": 7, "status": -9}                          its process is gone and its folder removed

Sessions die with the zygote (PDEATHSIG), the zygote with its client (end of file, or the client's pidfd).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import mmap
import os
import random
import resource
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

from nemo_openmath.sandbox import channel, folders, landlock, mounts, namespaces, pages, seccomp, walls
from nemo_openmath.sandbox.interpreter import Interpreter, Timers

_STANDARD_MODULES = """
__future__ abc argparse array ast asyncio base64 bisect builtins calendar cmath collections collections.abc colorsys
concurrent.futures contextlib copy csv ctypes dataclasses datetime decimal difflib enum errno fractions functools
getpass glob hashlib heapq inspect io itertools json locale logging math multiprocessing numbers operator os pathlib
pickle platform pprint queue random re secrets shutil signal statistics string struct subprocess sys tempfile textwrap
threading time timeit tokenize traceback types typing unicodedata urllib.parse uuid warnings weakref zlib zoneinfo
"""
_SUBMODULES = {
    "scipy": "special linalg optimize integrate interpolate sparse sparse.linalg stats spatial",
    "sympy": "ntheory combinatorics geometry stats plotting solvers.diophantine polys.numberfields",
}
_WARM_UP = """
x, y = sympy.symbols("x y")
sympy.solve([x + y - 3, x * y - 2], [x, y]); sympy.solve(x**3 - 2*x + 1, x); sympy.integrate(sympy.sin(x) * x, x)
sympy.simplify((x**2 - 1) / (x - 1)); sympy.factor(x**4 - 1); sympy.latex(sympy.sqrt(2) / 3)
sympy.factorint(2**31 + 11)
sympy.N(sympy.pi, 30); sympy.summation(x, (x, 1, y)); sympy.limit(sympy.sin(x) / x, x, 0); sympy.diff(sympy.exp(x), x)
"""

_USUAL = """
x = sympy.symbols("x")
print(sympy.solve(x**2 - 5*x + 6, x), sympy.simplify((x**2 - 1) / (x - 1)), file=io.StringIO())
"""


class Zygote:
    """Preloads, then forks on request until its client is gone."""

    def __init__(self, control: socket.socket, settings: dict[str, Any], file_wall: str | None) -> None:
        self._control, self._file_wall = control, file_wall
        arch = seccomp.architecture()
        assert arch is not None  # the client refused to start otherwise
        self._arch = arch
        self._seed: int | None = settings["seed"]
        self._base: str = settings["base"]
        self._packages: list[str] = settings["packages"]
        self._pid = os.getpid()
        self._preloaded = 0  # bytes of address space
        self._outer = -1
        self._written: list[pages.Range] = []  # what a usual block writes to
        self._selector = selectors.DefaultSelector()
        self._sessions: dict[int, tuple[int, int, str]] = {}  # pidfd -> session id, pid, folder
        self._removers: dict[int, tuple[int, int, int]] = {}  # pidfd -> session id, pid, exit status of the session

    def preload(self) -> None:
        """Import and warm up everything, seed, and freeze what the sessions will share."""
        for name in [*_STANDARD_MODULES.split(), *self._packages]:
            importlib.import_module(name)
        for package in self._packages:
            for name in _SUBMODULES.get(package, "").split():
                importlib.import_module(f"{package}.{name}")
        if "sympy" in self._packages:
            exec(_WARM_UP, {"sympy": sys.modules["sympy"]})
        if "sympy" in self._packages:
            self._written = pages.written_by(lambda: exec(_USUAL, {"sympy": sys.modules["sympy"], "io": io}))
        seed_everything(self._seed)
        places = walls.readable_places(self._packages)
        hidden = walls.hidden_folders(places)
        if self._file_wall == walls.MOUNTS:
            self._preloaded = walls.address_space()
            mounts.enter_root(self._arch.name, places, hidden, self._base)
        self._readable = walls.open_places(places) if self._file_wall == walls.LANDLOCK else []
        if hidden and self._file_wall == walls.LANDLOCK:
            self._outer = landlock.outer_layer(landlock.abi(), *walls.without(places, hidden), self._base)
        # `import torch` in a session must say "No module named", not "Permission denied".
        sys.path[:] = [place for place in sys.path if place and "-packages" not in place and _is_standard(place)]
        sys.argv[:], sys.orig_argv[:] = [""], [sys.executable]
        sys.meta_path[:] = [finder for finder in sys.meta_path if "frozen_importlib" in finder.__module__]
        self._own_modules = [name for name in sys.modules if name.split(".")[0] == "nemo_openmath"]
        self._preloaded = self._preloaded or walls.address_space()
        gc.collect()
        gc.freeze()

    def serve(self, client: int) -> None:
        """Fork on request until the client (a pidfd) is gone."""
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(client, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd == client:
                    return
                if key.fileobj is self._control:
                    try:
                        message = self._control.recv(65536)
                    except ConnectionError:  # it went away with words of ours unread
                        return
                    if not message:
                        return
                    self._make(json.loads(message))
                elif key.fd in self._sessions:
                    self._reap(key.fd)
                else:
                    self._removed(key.fd)

    def end(self) -> None:
        """Kill every session and remove everything on disk."""
        for _, pid, _ in self._sessions.values():
            os.kill(pid, signal.SIGKILL)  # our own unreaped children: these numbers cannot belong to anybody else
        for _, pid, _ in self._sessions.values():
            os.waitpid(pid, 0)
        for _, pid, _ in self._removers.values():
            os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # of the mount wall, the base itself is left to the process outside
            folders.remove(self._base)

    def _make(self, order: dict[str, Any]) -> None:
        shape = walls.Shape(**order["shape"])
        memory = -1
        ours = theirs = None
        try:
            ours, theirs = socket.socketpair()
            memory = _shared_memory(channel.memory_size(shape.capacity))
            os.mkdir(order["folder"], 0o700)
            try:
                pid = os.fork()
            except OSError:
                os.rmdir(order["folder"])
                raise
            if pid == 0:
                try:
                    self._become_session(ours, memory, shape, order["folder"], spare=order["spare"])
                except BaseException as error:
                    _report_and_exit(ours, error)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:  # no descriptor is left
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.rmdir(order["folder"])
                raise
            self._sessions[pidfd] = (order["id"], pid, order["folder"])
            self._selector.register(pidfd, selectors.EVENT_READ)
            self._send({"id": order["id"]}, [theirs.fileno(), pidfd, memory])
        except (OSError, OverflowError) as error:
            self._send({"id": order["id"], "error": str(error)})
        finally:
            for end in (ours, theirs):
                if end is not None:
                    end.close()
            if memory >= 0:
                os.close(memory)

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        session, pid, folder = self._sessions.pop(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            os.rmdir(folder)
        except OSError:  # not empty: whatever is in there must not hold up the other sessions
            try:
                remover = os.fork()
            except OSError:  # the machine is full: what is left goes with the base
                self._send({"ended": session, "status": status})
                return
            if remover == 0:
                walls.die_with_parent(self._pid)
                try:
                    folders.remove(folder)
                finally:
                    os._exit(0)
            pidfd = os.pidfd_open(remover)  # there is room: the session's own was closed just now
            self._removers[pidfd] = (session, remover, status)
            self._selector.register(pidfd, selectors.EVENT_READ)
        else:
            self._send({"ended": session, "status": status})

    def _removed(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        session, pid, status = self._removers.pop(pidfd)
        os.waitpid(pid, 0)
        self._send({"ended": session, "status": status})

    def _send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors or [])
        except OSError:  # the client is gone; serve() ends at the next turn
            return

    def _become_session(
        self, wire: socket.socket, memory: int, shape: walls.Shape, folder: str, *, spare: bool
    ) -> NoReturn:
        walls.die_with_parent(self._pid)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        readable = self._readable
        output = mmap.mmap(memory, channel.memory_size(shape.capacity))
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        first = 3
        needed = [
            wire.fileno(),
            *(descriptor for descriptor, _ in readable),
            *([self._outer] if self._outer >= 0 else []),
        ]
        for kept in sorted(needed):
            os.closerange(first, kept)
            first = kept + 1
        os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(HOME=folder, TMPDIR=folder, TZ="UTC", LC_ALL="C.UTF-8", OMP_NUM_THREADS="1")
        os.environ.update(OPENBLAS_NUM_THREADS="1", PATH="/nonexistent")
        if self._seed is None:
            seed_everything(None)
        else:
            random.seed(self._seed)  # Python reseeds it from entropy after every fork
        if spare:
            pages.own(self._written)
        timers = Timers(self._arch)
        walls.forbid_queued_signals()
        walls.set_limits(shape, self._preloaded)
        if self._file_wall == walls.MOUNTS:
            mounts.hide_others(folder, self._base)
        walls.close_in(self._arch, self._file_wall, self._outer, readable, folder)
        for descriptor in needed:
            if descriptor != wire.fileno():
                os.close(descriptor)
        for name in self._own_modules:
            del sys.modules[name]
        run_session(wire.detach(), Interpreter(output, shape.capacity, timers))


def _shared_memory(size: int) -> int:
    """Return a descriptor of memory that nobody can shrink any more: reading it can never fail."""
    memory = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(memory)
        raise
    return memory


def run_session(wire: int, interpreter: Interpreter) -> NoReturn:
    """Answer requests until the client is gone. The first answer, to nobody's request, says that the walls stand."""
    _write_all(wire, channel.REPLY.pack(bytes(channel.NONCE_BYTES), channel.FINISHED))
    while True:
        header = _read_exactly(wire, channel.REQUEST.size)
        nonce, wall_s, cpu_s, room, length = channel.REQUEST.unpack(header)
        code = _read_exactly(wire, length).decode("utf-8", "replace")
        outcome = interpreter.execute(code, wall_s, cpu_s, room)
        _write_all(wire, channel.REPLY.pack(nonce, outcome))


def seed_everything(seed: int | None) -> None:
    """Seed `random`, numpy (also unseeded generators) and sympy. None: from the machine's entropy."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
        if seed is not None:  # what SeedSequence() asks for entropy
            sys.modules["numpy.random.bit_generator"].randbits = random.Random(seed).getrandbits  # type: ignore[attr-defined]
    if sympy_random := sys.modules.get("sympy.core.random"):
        sympy_random.seed(seed)


def _is_standard(place: str) -> bool:
    return os.path.realpath(place).startswith(os.path.dirname(os.path.realpath(os.__file__)))


def _read_exactly(wire: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(wire, min(length, 1 << 16))
        if not part:
            os._exit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write_all(wire: int, data: bytes) -> None:
    while data:
        data = data[os.write(wire, data) :]


def _report_and_exit(wire: socket.socket, error: BaseException) -> NoReturn:
    """Say that a wall could not be put up, instead of the first answer. No user code ran."""
    try:
        wire.sendall(f"{type(error).__name__}: {error}"[:500].encode())
    finally:
        os._exit(1)


def main() -> None:
    """Run a zygote in a fresh interpreter. argv holds the control descriptor, the client's pidfd, the settings."""
    control, client = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for descriptor in (control.fileno(), client):
        os.set_inheritable(descriptor, False)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # Ctrl-C is for the client; we end when it ends
        signal.signal(ignored, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = json.loads(sys.argv[3])
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # if the machine runs out of memory, the kernel takes sessions first
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone: so do we
        _serve(control, client, settings)


def _serve(control: socket.socket, client: int, settings: dict[str, Any]) -> None:
    """Put up the walls, say to the client whether they stand, and make sessions until it ends."""
    has_landlock = landlock.abi() > 0
    entered = settings["namespaces"] and namespaces.enter(settings["base"], mounts=not has_landlock)
    file_wall = walls.LANDLOCK if has_landlock else walls.MOUNTS if entered else None
    missing = walls.missing_walls(file_wall)
    if missing and not settings["unsafe"]:
        control.send(json.dumps({"refused": missing}).encode())
        return
    zygote = Zygote(control, settings, file_wall)
    try:
        zygote.preload()
    except ImportError as error:
        control.send(json.dumps({"failed": str(error)}).encode())
        return
    control.send(
        json.dumps({"ready": True, "missing": missing, "file_wall": file_wall, "namespaces": entered}).encode()
    )
    try:
        zygote.serve(client)
    finally:
        zygote.end()
