"""What is done to a launched run: its jobs cancelled, watched, refused a second time; their logs read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError
from nemo_openmath.launch.job_states import BAD, QUEUED, JobState, RunState
from nemo_openmath.launch.run_files import JOBS, SBATCH, RunFiles, Task, read_run
from nemo_openmath.launch.run_state import run_state
from nemo_openmath.launch.slurm_query import cancel, has_slurm


class RunFailed(OpenMathError):
    """Raised at the end of watching a run that did not succeed."""


class RunCancelled(OpenMathError):
    """Raised at the end of watching a run that was cancelled."""

    exit_code = ExitCode.INTERRUPTED


def refuse_queued(output: Path) -> None:
    """Raise UserError where jobs of an earlier launch are queued or run: two jobs must never write one stage, and what
    they read must not change."""
    if not (output / SBATCH / JOBS).is_file() or not has_slurm():
        return
    state = run_state(read_run(output))
    if state.slurm:
        return  # submit.sh asks Slurm again
    queued = [name for name, view in state.jobs.items() if any(task.state in QUEUED for task in view.tasks)]
    if queued:
        more = f" and {len(queued) - 5} more" if len(queued) > 5 else ""
        problem = f"jobs of this run are queued already: {', '.join(queued[:5])}{more}"
        folder = shlex.quote(str(output))
        remedy = f"wait for them (openmath jobs watch {folder}), or openmath jobs cancel {folder}"
        raise UserError(problem, file=output, remedy=remedy)


def cancel_jobs(output: Path, names: Sequence[str], limit: float, report: Callable[[str], None]) -> None:
    """Ask Slurm to cancel jobs of a run, all or those of the stages ``names``, and wait until they are gone.

    ``report`` gets a line for each thing that happens. Raises UserError for a name that is none, and OpenMathError
    where jobs are still there after ``limit`` seconds.
    """
    run = read_run(output)
    chosen = {run.job(name).name for name in names} or set(run.jobs)
    if not has_slurm():
        raise UserError("Slurm is not on this machine", file=output, remedy="run this where squeue and scancel are")
    if names and (waiting := _dependents(run, chosen)):
        report(f"these wait for it, and Slurm cancels them, too: {', '.join(waiting)}")
    asked: set[str] = set()
    deadline = time.monotonic() + limit
    while True:
        state = run_state(read_run(output))
        if state.slurm and (not asked or time.monotonic() > deadline):
            undone = "nothing was cancelled" if not asked else "nobody knows whether all of them are gone"
            raise OpenMathError(f"{undone}: {state.slurm.partition(': from the run')[0]}")
        if state.slurm:  # away for a moment
            time.sleep(1)
            continue
        there = {
            name: {task.id.partition("_")[0] for task in view.tasks if task.id and task.state in QUEUED}
            for name, view in state.jobs.items()
            if name in chosen
        }
        there = {name: ids for name, ids in there.items() if ids}
        if not there:
            report("nothing of this run is queued or running" if not asked else "cancelled: all of them are gone")
            return
        if new := set().union(*there.values()) - asked:  # a job that hands its work on has a new id
            report(f"cancelling {', '.join(there)}: jobs {', '.join(sorted(new))}")
            cancel(new)
            asked |= new
        if time.monotonic() > deadline:
            problem = f"after {limit:.0f} s still there: {', '.join(there)} (jobs {', '.join(sorted(asked))})"
            raise OpenMathError(
                f"{problem}; Slurm goes on ending them: see openmath jobs status {shlex.quote(str(output))}"
            )
        time.sleep(1)


def watch(output: Path, every: float, draw: Callable[[RunState], None]) -> RunState:
    """Draw the state of a run again and again until none of its jobs is queued or runs, and return the last one.

    Raises RunFailed or RunCancelled where it did not end well.
    """
    while True:
        state = run_state(read_run(output))
        draw(state)
        if not state.alive:
            break
        time.sleep(every)
    line = verdict_line(state)
    if state.verdict == JobState.CANCELLED:
        raise RunCancelled(line)
    if state.verdict in BAD:
        raise RunFailed(line)
    if state.verdict == JobState.PLANNED:
        raise UserError(line, remedy=f"submit it: bash {shlex.quote(f'{state.run.sbatch}/submit.sh')}")
    return state


def verdict_line(state: RunState) -> str:
    """Return in one line how a run ended, or how it stands: the state, then what failed and why."""
    stages = state.stages
    done = sum(view.state is JobState.DONE for view in stages)
    parts = [f"{done} of {len(stages)} jobs done"]
    behind = 0
    for view in stages:
        if view.state in BAD and view.reason.startswith("because "):
            behind += 1
        elif view.state in BAD:
            parts.append(f"{view.job.name} {view.state}: {view.reason}")
    if len(parts) > 4:
        parts = [*parts[:4], f"{len(parts) - 4} more"]
    parts += [f"{behind} cancelled because of it"] if behind else []
    return f"{state.verdict}: {state.run.output}: {'; '.join(parts)}"


def _dependents(run: RunFiles, chosen: Collection[str]) -> list[str]:
    """The jobs that wait for one of ``chosen``, in their order."""
    behind: list[str] = []
    for job in run.jobs.values():
        if job.name not in chosen and job.work != "report" and any(n in chosen or n in behind for n in job.after):
            behind.append(job.name)
    return behind


def task_of(run: RunFiles, word: str) -> Task:
    """Return the task that ``STAGE`` or ``STAGE.TASK`` names. Raises UserError."""
    name, dot, number = word.rpartition(".")
    if word in run.jobs or not (dot and number.isdigit()):
        return run.job(word).name, None
    job = run.job(name)
    if job.array == 1 or int(number) >= job.array:
        has = f"has tasks 0 to {job.array - 1}" if job.array > 1 else "is no array"
        raise UserError(
            f"no task {number} of {name!r}: it {has}", file=run.output, remedy=f"name {name}, or one of them"
        )
    return job.name, int(number)
