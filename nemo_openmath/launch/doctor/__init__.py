"""``openmath doctor``: what is wrong with a machine, or with the nodes of a cluster, before work is lost there.

finding.py       a finding: green, yellow, red or not here, with its remedy
probing.py       each probe in a process of its own, with a time limit
system.py        what probes look at: files below a root, commands, variables
software.py      Python, packages, torch, the compiler, the sandbox
accelerators.py  GPUs, their driver, what runs on them
machine.py       processors, memory, limits, folders, language
network.py       interfaces, InfiniBand, proxies, variables of NCCL and gloo
storage.py       the file system of the run's folder: locks, names, clock, speed, space
schedulers.py    Slurm and container runtimes
check.py         all of them in order
show.py          the findings as text
nodes.py         the same as a job on each partition of a cluster, and the differences between nodes
"""

from nemo_openmath.launch.doctor.check import check_machine
from nemo_openmath.launch.doctor.finding import Colour, Finding, Report
from nemo_openmath.launch.doctor.show import report_lines

__all__ = ["Colour", "Finding", "Report", "check_machine", "report_lines"]
