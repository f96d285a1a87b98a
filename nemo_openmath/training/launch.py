"""The way into a training: starts the ranks of one machine and watches them.

    launch(2, "job.yaml")                                                       from Python
    python -m nemo_openmath.training JOB.yaml --processes 2 [key=value ...]     from a shell; a recipe's stage, too

What happens then: each rank is a process of :mod:`nemo_openmath.training.worker`, which runs a
:class:`nemo_openmath.training.trainer.Trainer`.

One rank's death takes all down, with that rank's traceback; so does the death of the process that started them. SIGTERM
and SIGUSR1 are passed on, so a preempted job saves and exits with ``ExitCode.PREEMPTED``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemo_openmath.core.errors import ExitCode, OpenMathError, Preempted, UserError
from nemo_openmath.core.listening import free_port
from nemo_openmath.core.logs import configure_logging
from nemo_openmath.core.processes import child_environment, die_with_parent, killed_with_parent
from nemo_openmath.training.certificate.first_step import prepare
from nemo_openmath.training.job import check_job, read_job
from nemo_openmath.training.rank_processes import RankFailed, RankProcess, kill, watch

# Huge pages for what runtime.keep_freed_memory keeps; glibc reads it before a program starts, so that under another
# launcher it is the user's to set.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
GPU_VARIABLES = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # in one queue, the messages of tensor parallelism start before the products
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # packs differ in size: gaps between their tensors are used
}
"""What a training on GPUs needs of CUDA and PyTorch, unless the caller's environment says otherwise.
``launcher_scripts/slurm-pyxis.yaml`` has the same."""


def launch(
    processes: int,
    job: str | Path,
    *,
    overrides: Sequence[str] = (),
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run the training of a job's file (a :class:`TrainingJob`) in ``processes`` ranks; return when it is done.

    ``overrides`` are ``a.b=value`` settings of the job, ``threads`` those of each rank on a CPU. ``on_line`` gets rank
    0's lines. Raises

    - :class:`UserError` for a job that cannot be done,
    - :class:`Preempted` after a signal, once all is saved,
    - :class:`Hung`, which names the ranks that are suspected,
    - :class:`MachineFailure` where a rank knows that its machine failed,
    - :class:`RankFailed`, with the traceback of the first rank that died,
    - KeyboardInterrupt after Ctrl-C, once all is saved.
    """
    if processes < 1:
        raise UserError(f"{processes} processes", remedy="start 1 or more")
    settings = read_job(job, list(overrides))
    check_job(settings, processes)
    prepare(settings, Path(job), processes, overrides, on_line)
    command = [sys.executable, "-P", "-m", "nemo_openmath.training.worker", str(job), *overrides]
    spawn(processes, command, threads=threads, environment=environment, on_line=on_line)


async def launch_process(
    processes: int, job: Path, *, threads: int = 1, on_line: Callable[[str], None] = print
) -> None:
    """Run :func:`launch` in a process of its own, without overrides, and wait for it.

    A task that is cancelled meanwhile asks the process to stop, and waits until the ranks have saved. Raises what
    :func:`launch` raises, and :class:`LaunchFailed` for its errors of other kinds.
    """
    command = [sys.executable, "-P", "-m", "nemo_openmath.training", str(job)]
    command += ["--processes", str(processes), "--threads", str(threads)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=child_environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        async for line in process.stdout:
            on_line(line.decode(errors="replace").rstrip())
        code, stderr = await process.wait(), (await errors).decode(errors="replace").strip()
    finally:
        if process.returncode is None:
            on_line("stopping: it saves after this step")
            process.terminate()
            await process.wait()
        errors.cancel()
    last = stderr.splitlines()[-1] if stderr else "it said nothing"
    if code == ExitCode.USER_ERROR:
        raise UserError(last)
    if code == ExitCode.PREEMPTED:
        raise Preempted(last)
    if code != ExitCode.OK:
        raise LaunchFailed(code, last, stderr)


class LaunchFailed(OpenMathError):
    """A training in a process of its own failed. ``stderr`` is all that the process wrote to its standard error."""

    def __init__(self, code: int, last: str, stderr: str):
        super().__init__(f"training failed (exit code {code}): {last}")
        self.stderr = stderr
        if code in (ExitCode.HUNG, ExitCode.MACHINE):
            self.exit_code = ExitCode(code)


def main() -> int:
    """Run the command line of this module's text; what ends a rank ends it with the same exit code."""
    die_with_parent()
    configure_logging()
    parser = argparse.ArgumentParser(
        prog="python -m nemo_openmath.training", description="Run a training in processes of this machine."
    )
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_intermixed_args()  # key=value may come after --processes
    try:
        launch(
            options.processes,
            options.job,
            overrides=options.overrides,
            threads=options.threads,
            on_line=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except OpenMathError as error:
        if isinstance(error, RankFailed):
            print(error.stderr, file=sys.stderr)
        print(error, file=sys.stderr, flush=True)
        return int(error.exit_code)
    return int(ExitCode.OK)


def spawn(
    processes: int,
    command: Sequence[str],
    *,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run ``command`` once per rank, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; see :func:`launch`."""
    base = {**HUGE_PAGES, **GPU_VARIABLES, **os.environ, **(environment or {})}
    if "PYTORCH_CUDA_ALLOC_CONF" in base:  # its earlier name
        base["PYTORCH_ALLOC_CONF"] = base.pop("PYTORCH_CUDA_ALLOC_CONF")
    base |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "PYTHONUNBUFFERED": "1"}
    base.setdefault("GLOO_SOCKET_IFNAME", "lo")
    base.setdefault("MKL_NUM_THREADS", str(threads))
    ranks: list[RankProcess] = []
    try:
        for rank in range(processes):
            process = subprocess.Popen(
                command,
                env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                preexec_fn=killed_with_parent(),
            )
            ranks.append(RankProcess(process))
        watch(ranks, on_line)
    finally:
        kill(ranks)
