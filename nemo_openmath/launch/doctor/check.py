"""All probes, in the order in which their findings are shown."""

from __future__ import annotations

import os
import socket
import time

from nemo_openmath.launch.doctor import accelerators, machine, network, schedulers, software, storage
from nemo_openmath.launch.doctor.finding import Report
from nemo_openmath.launch.doctor.probing import Probe, run_probes
from nemo_openmath.launch.doctor.system import System

PROBES: tuple[Probe, ...] = (
    *software.PROBES,
    *accelerators.PROBES,
    *machine.PROBES,
    *network.PROBES,
    *storage.PROBES,
    *schedulers.PROBES,
)


def check_machine(system: System) -> Report:
    """Look at this machine, and at the file system of ``system.output``."""
    now, begun = time.time(), time.monotonic()
    findings = run_probes(PROBES, system)
    seconds = round(time.monotonic() - begun, 2)
    host = system.environment.get("SLURMD_NODENAME") or socket.gethostname()
    return Report(host, now, os.path.abspath(system.output), findings, seconds)
