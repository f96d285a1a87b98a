"""Ranks for tests, forked from a process that has imported torch, megatron-core and the trainer once.

A rank that is started anew spends four seconds of CPU time on imports. The process that forks has one thread, has begun
nothing that a fork would break (no OpenMP, no process group, no GPU), and sets the rank's environment before any of the
rank's code runs. Where tests run on GPUs, ranks are started anew: CUDA does not survive a fork.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, Any, NoReturn

from nemo_openmath.core.processes import killed_with


class ForkedRank:
    """What :class:`subprocess.Popen` has, of a process that the server has forked."""

    stdout = None

    def __init__(self, server: RankServer, pid: int, stderr: IO[str]):
        self.pid, self.stderr, self.returncode = pid, stderr, None
        self._server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # the server has not reaped it, so that nobody else has its number
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class RankServer:
    """The process that forks; it ends, and all ranks with it, when this one does."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self._socket = ours

    def fork(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedRank:
        """Start ``python -m module arguments`` with this environment, in this process' folder."""
        request = {"module": module, "arguments": arguments, "environment": dict(environment), "folder": os.getcwd()}
        reader, writer = os.pipe()
        try:
            pid = self.ask(request, writer)
        finally:
            os.close(writer)
        return ForkedRank(self, pid, os.fdopen(reader, errors="replace"))

    def ask(self, request: dict[str, Any], *descriptors: int) -> Any:
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))
        answer = self._socket.recv(1000)
        if not answer:
            raise RuntimeError(f"the server of ranks has ended with code {self._process.wait()}")
        return json.loads(answer)


@cache
def rank_server() -> RankServer:
    """The server of this process, which starts at the first call."""
    return RankServer()


def run_rank(request: dict[str, Any], stderr: int, server: int) -> NoReturn:
    code = 1
    try:
        killed_with(server)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def answer(control: socket.socket, request: dict[str, Any], descriptors: list[int]) -> Any:
    """Fork, and return the rank's number; or return its exit code, None while it runs."""
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    server = os.getpid()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in the fork, with the locks that it holds"
    pid = os.fork()
    if pid == 0:
        control.close()
        run_rank(request, descriptors[0], server)
    os.close(descriptors[0])
    return pid


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nemo_openmath.models import cpu_compat

        cpu_compat.install()
        import nemo_openmath.training.worker  # noqa: F401
        import tests.support.ranks
        import tests.training.packs  # noqa: F401
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
        if not data:
            return
        control.send(json.dumps(answer(control, json.loads(data), descriptors)).encode())


if __name__ == "__main__":
    main()
