"""Nodes of one job meet: how long until a file of the first is seen by the others, whether they reach it, and how far
their clocks are from its clock.

The first node listens and writes down where; each of the others looks for that file, connects, and asks for the time
some rounds, of which the quickest counts (as NTP does it).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import words_of
from nemo_openmath.core.records.manifest import write_json
from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("other nodes")
LIMIT_S = 120.0
"""How long nodes wait for each other: the first use of an image may take so much longer on one of them."""
_SECOND_LOOK_S = 3.0  # a listing that takes longer than that is cached
_ROUNDS = 8
_SKEW_S = 1.0
_TIME = struct.Struct("!d")


@dataclass(frozen=True)
class Meeting:
    """The place where the nodes of a job meet, as one of them sees it."""

    folder: Path
    """On the shared file system; fresh for each job."""
    rank: int
    nodes: int
    limit_s: float = LIMIT_S

    @classmethod
    def of_job(cls, folder: Path, system: System) -> Meeting | None:
        """Return the meeting of this step of Slurm; None where it has one node."""
        nodes = int(system.environment.get("SLURM_STEP_NUM_NODES") or system.environment.get("SLURM_NNODES") or 1)
        job = system.environment.get("SLURM_JOB_ID", "0")
        restart = system.environment.get("SLURM_RESTART_COUNT", "0")
        rank = int(system.environment.get("SLURM_PROCID") or 0)
        return cls(folder / f".meeting-{job}-{restart}", rank, nodes) if nodes > 1 else None

    def findings(self) -> Iterator[Finding]:
        """Meet, and yield what came out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        yield from self._receive() if self.rank == 0 else self._visit()

    @property
    def _place(self) -> Path:
        return self.folder / "first.json"

    def _receive(self) -> Iterator[Finding]:
        """Be the first node: answer the others until each has come, or time is up."""
        deadline, guests = time.monotonic() + self.limit_s, set[int]()
        with socket.create_server(("", 0), backlog=self.nodes) as server:
            write_json(self._place, {"addresses": _addresses(), "port": server.getsockname()[1]})
            while len(guests) < self.nodes - 1 and (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        guests.add(_answer(connection))
        text = f"{len(guests)} of {self.nodes - 1} others came"
        if len(guests) < self.nodes - 1:
            remedy = "their own findings say why; where there are none, the step did not start there"
            yield GROUP.red("reached", f"{text} within {self.limit_s:g} s", remedy)
        else:
            yield GROUP.green("reached", text)

    def _visit(self) -> Iterator[Finding]:
        """Be another node: find the first, and ask it for the time."""
        begun, waited = time.monotonic(), False
        while not self._place.exists():
            waited = True
            if time.monotonic() - begun > self.limit_s:
                remedy = "is --output the same file system on all nodes? Mount it with shorter directory caches"
                yield GROUP.red("reached", f"no file of the first node was seen within {self.limit_s:g} s", remedy)
                return
            time.sleep(0.05)
            os.listdir(self.folder)
        seen = time.time()
        place = json.loads(self._place.read_bytes())
        written = self._place.stat().st_mtime
        errors = []
        for address in place["addresses"]:
            try:
                with socket.create_connection((address, place["port"]), timeout=5) as connection:
                    offset, round_trip = _ask(connection, self.rank)
                    here = connection.getsockname()[0]
            except OSError as error:
                errors.append(f"{address}: {words_of(error)}")
                continue
            yield GROUP.green("reached", f"the first node, {address}, from {here} in {round_trip * 1e3:.1f} ms")
            yield clock(offset)
            if waited:  # else it was there before us
                yield listing(seen - written - offset)
            return
        remedy = "open the ports between nodes, or name the interface that connects them in GLOO_SOCKET_IFNAME"
        yield GROUP.red("reached", f"the first node cannot be reached: {'; '.join(errors)}"[:300], remedy)


def _addresses() -> list[str]:
    """Where others may reach this machine, what is likely first."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        addresses = dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET))
        own = [address for address in addresses if not address.startswith("127.")]
        return [name, *own, *(address for address in addresses if address not in own)]
    return [name]


def _answer(connection: socket.socket) -> int:
    """Tell a guest the time as often as it asks; return its rank. Raises OSError where it is none of ours."""
    connection.settimeout(5)
    with connection.makefile("rwb") as stream:
        word = stream.readline(16).strip()
        if not word.isdigit():
            raise ConnectionError("no node of this job")
        for _ in range(_ROUNDS):
            if len(stream.read(1)) != 1:
                break
            stream.write(_TIME.pack(time.time()))
            stream.flush()
    return int(word)


def _ask(connection: socket.socket, rank: int) -> tuple[float, float]:
    """Return (seconds that this clock is ahead of the other's, seconds of the quickest round)."""
    best = (0.0, float("inf"))
    with connection.makefile("rwb") as stream:
        stream.write(f"{rank}\n".encode())
        for _ in range(_ROUNDS):
            sent = time.time()
            stream.write(b"?")
            stream.flush()
            data = stream.read(_TIME.size)
            came = time.time()
            if len(data) < _TIME.size:
                raise ConnectionError("the first node hung up")
            if came - sent < best[1]:
                best = ((sent + came) / 2 - _TIME.unpack(data)[0], came - sent)
    return best


def clock(offset_s: float) -> Finding:
    """Return the finding about a clock that is so far ahead of the first node's."""
    text = f"{abs(offset_s) * 1e3:.1f} ms {'ahead of' if offset_s > 0 else 'behind'} the first node's"
    if abs(offset_s) > _SKEW_S:
        return GROUP.yellow("clock", text, "run chrony or ntpd on all nodes", offset_s=round(offset_s, 3))
    return GROUP.green("clock", text, offset_s=round(offset_s, 3))


def listing(delay_s: float) -> Finding:
    """Return the finding about a file that was seen so long after another node wrote it."""
    text = f"a file of the first node was seen after {max(0.0, delay_s):.1f} s"
    if delay_s > _SECOND_LOOK_S:
        remedy = "mount it with shorter directory caches (acdirmax, lookupcache=positive): stages wait for files"
        return GROUP.yellow("listing", text, remedy, delay_s=round(delay_s, 1))
    return GROUP.green("listing", text, delay_s=round(delay_s, 1))
