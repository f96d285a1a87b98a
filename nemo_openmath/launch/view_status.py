"""A run's state as text for a terminal, and as data."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from nemo_openmath.evaluation.reports.formats import seconds_text
from nemo_openmath.launch.job_states import ACTIVE, BAD, WAITING, JobState, JobView, RunState, TaskState
from nemo_openmath.launch.run_files import PlannedJob, RunFiles
from nemo_openmath.launch.view_graph import Node

COLOURS = {
    JobState.PLANNED: "dim", JobState.QUEUED: "dim", JobState.AGAIN: "yellow", JobState.STARTING: "yellow",
    JobState.RUNNING: "cyan", JobState.READY: "cyan", JobState.DONE: "green", JobState.FAILED: "bold red",
    JobState.CANCELLED: "red", JobState.GONE: "bold red",
}  # fmt: skip
_SILENT = 120.0  # seconds: processes give a sign every few
_IDLE = 60.0  # seconds without a unit or step, or five times what one takes: no end is foretold
_WORDS = (*ACTIVE, JobState.AGAIN, JobState.QUEUED, JobState.PLANNED, *BAD)


def status_lines(state: RunState) -> list[Text]:
    """Return the lines of ``openmath jobs status``: a heading, a line for each job, and below it what is known."""
    lines = [Text(f"{state.run.output}: "), *([Text(state.slurm, style="yellow")] if state.slurm else [])]
    lines[0].append(state.verdict, style="bold")
    lines[0].append(f"; {summary(Counter(view.state for view in state.jobs.values()), 'jobs')}")
    width = min(32, max([len(name) for name in state.jobs], default=4))
    lines.append(Text(f"{'job':<{width}}  {'state':<13}  {'for':>12}  {'try':>3}  nodes", style="dim"))
    for view in state.jobs.values():
        lines += _job_lines(view, state.time, width)
        if state.slurm and view.state in ACTIVE and (heard := state.run.logs.get(Path(view.newest.log).name)):
            lines.append(Text(f"    its log was written to {seconds_text(max(0.0, state.time - heard))} ago"))
    if earlier := state.run.finished_before():
        names = ", ".join(earlier[:6]) + (f" and {len(earlier) - 6} more" if len(earlier) > 6 else "")
        lines.append(Text(f"finished before this launch: {names}", style="dim"))
    for suspect in _suspects(state):
        lines.append(Text(suspect, style="yellow"))
    if state.verdict in BAD and not state.alive:
        folder = shlex.quote(str(state.run.output))
        lines.append(Text(f"to go on, once what is named is mended: openmath jobs resume {folder}"))
    return lines


def summary(counts: Counter[JobState], noun: str = "") -> str:
    """Return ``12 of 32 done, 3 running, 1 failed``."""
    done = f"{counts[JobState.DONE]} of {counts.total()}{f' {noun}' if noun else ''} done"
    return ", ".join([done, *(f"{counts[word]} {word}" for word in _WORDS if counts[word])])


def _job_lines(view: JobView, now: float, width: int) -> list[Text]:
    task = view.newest
    line = Text(f"{view.job.name:<{width}}  ")
    line.append(f"{view.state:<13}", style=COLOURS[view.state])
    line.append(f"  {_duration(view, task, now):>12}  {_attempt(view):>3}  {_nodes(view)}".rstrip())
    lines = [line]
    details = details_of(view, now)
    if view.state in (JobState.DONE, JobState.QUEUED):
        short = "; ".join(details)
        if len(line.plain) + len(short) + 2 <= 100:
            line.append(f"  {short}" if short else "", style="dim")
            return lines
    style = "red" if view.state in BAD else ""
    return [*lines, *(Text(f"    {detail}", style=style) for detail in details)]


def details_of(view: JobView, now: float) -> list[str]:
    """Return what is known of a job beside its state, a sentence each."""
    out = []
    if len(view.job.stages) > 1 and view.job.work == "stage" and view.state is not JobState.DONE:
        out.append(f"stages: {', '.join(view.job.stages)}")
    if len(view.tasks) > 1 and view.state is not JobState.PLANNED:
        alike = view.counts[view.state] == len(view.tasks)
        out.append(f"{len(view.tasks)} tasks" if alike else f"tasks: {summary(view.counts)}")
    if view.reason and view.state is not JobState.DONE:
        where = _where(view)
        out.append(f"{where}{view.reason}")
    if text := progress_text(view, now):
        out.append(text)
    if view.silent > _SILENT:
        out.append(f"no sign of life for {seconds_text(view.silent)}: it may hang")
    if view.addresses:
        out.append(f"answers at {', '.join(view.addresses)}")
    if view.retries_spent and view.state is not JobState.DONE:
        out.append(f"retries spent: {view.retries_spent}")
    if view.other_code:
        out.append(view.other_code)
    if view.newest.log and view.state not in (JobState.DONE, JobState.PLANNED):
        out.append(f"log: {view.newest.log}")
    return out


def progress_text(view: JobView, now: float) -> str:
    """Return how far a job is, when it will be done at this speed, and what is left of its time limit."""
    parts, idle = [], _idle(view, now)
    if (progress := view.progress) is not None:
        stage = f"{progress.stage}: " if len(view.job.stages) > 1 else ""
        noun = "step" if progress.unit == "steps" else ""
        count = f"{progress.done:,}" + (f" of {progress.total:,}" if progress.total is not None else "")
        parts.append(f"{stage}{f'{noun} {count}' if noun else f'{count} {progress.unit}'}")
        parts += [f"{progress.failed:,} failed"] if progress.failed else []
        if idle:
            parts.append(f"nothing new for {seconds_text(idle)}")
        elif view.state in ACTIVE and progress.per_second > 0:
            slow = progress.unit == "steps" or progress.per_second < 1
            speed = f"{1 / progress.per_second:.3g} s a {progress.unit[:-1]}"
            parts.append(speed if slow else f"{progress.per_second:,.3g} a second")
            if (left := progress.seconds_left) is not None and left > 0:
                parts.append(f"ends {_clock(now + left, now)} (in {seconds_text(left)})")
    if view.state in ACTIVE:
        left = min((task.left for task in view.tasks if task.state in ACTIVE), default=math.inf)
        parts += [f"{seconds_text(max(0.0, left))} left of the time limit"] if left < math.inf else []
        rest = progress.seconds_left if progress is not None and not idle else None
        parts += ["which comes first: it will go on in another attempt"] if rest is not None and rest > left else []
    return ", ".join(parts)


def _idle(view: JobView, now: float) -> float:
    """Return for how long a running job has counted nothing; 0 while that is usual at its speed."""
    starts = [task.start for task in view.tasks if task.state in ACTIVE and task.start is not None]
    if (progress := view.progress) is None or not starts:
        return 0.0
    idle = now - max(progress.time, *starts)
    usual = 5 / progress.per_second if progress.per_second > 0 else 0.0
    return idle if idle > max(_IDLE, usual) else 0.0


def planned_nodes(run: RunFiles) -> list[Node]:
    """Return the jobs of a run as nodes of a graph, before anything is submitted."""
    return [
        Node(job.name, (*job.after, *job.servers), note=f"{job.array} tasks" if job.array > 1 else _size(job))
        for job in run.jobs.values()
    ]


def _size(job: PlannedJob) -> str:
    gpus = f"{job.gpus * job.nodes} GPUs" if job.gpus else ""
    return ", ".join(filter(None, [f"{job.nodes} nodes" if job.nodes > 1 else "", gpus]))


def status_nodes(state: RunState) -> list[Node]:
    """Return the jobs as nodes of a graph. A job waits for its model servers, too."""
    return [
        Node(
            view.job.name,
            (*view.job.after, *view.job.servers),
            "" if view.state is JobState.PLANNED else str(view.state),
            summary(view.counts) if len(view.tasks) > 1 else _size(view.job),
        )
        for view in state.jobs.values()
    ]


def status_data(state: RunState) -> dict[str, Any]:
    """Return the same as plain data: the format of ``openmath jobs status --json``."""
    return {
        "format": 1,
        "run": str(state.run.output),
        "state": state.verdict,
        "slurm": not state.slurm,
        "note": state.slurm,
        "time": round(state.time, 1),
        "jobs": [_job_data(view) for view in state.jobs.values()],
    }


def _job_data(view: JobView) -> dict[str, Any]:
    progress = view.progress
    return {
        "name": view.job.name,
        "kind": view.job.kind,
        "work": view.job.work,
        "stages": list(view.job.stages),
        "after": list(view.job.after),
        "state": str(view.state),
        "reason": view.reason,
        "progress": None
        if progress is None
        else {
            "stage": progress.stage,
            "unit": progress.unit,
            "done": progress.done,
            "total": progress.total,
            "failed": progress.failed,
            "per_second": round(progress.per_second, 6),
            "seconds_left": progress.seconds_left,
        },
        "silent_seconds": round(view.silent),
        "addresses": list(view.addresses),
        "retries_spent": view.retries_spent,
        "other_code": view.other_code,
        "tasks": [_task_data(task) for task in view.tasks],
    }


def _task_data(task: TaskState) -> dict[str, Any]:
    left = None if math.isinf(task.left) else round(task.left)
    return {
        "task": task.number, "id": task.id, "state": str(task.state), "attempt": task.attempt, "nodes": task.nodes,
        "reason": task.reason, "since": task.since, "start": task.start, "seconds_left": left, "log": task.log,
    }  # fmt: skip


def _duration(view: JobView, task: TaskState, now: float) -> str:
    """How long it has been so; of what is done, how long its last attempt took."""
    if view.state is JobState.PLANNED or task.since is None:
        return ""
    if view.state in (JobState.DONE, *BAD):
        return seconds_text(max(0.0, task.since - task.start)) if task.start is not None else ""
    return seconds_text(max(0.0, now - task.since))


def _attempt(view: JobView) -> str:
    most = max(task.attempt for task in view.tasks)
    return str(most) if most else ""


def _nodes(view: JobView) -> str:
    nodes = list(dict.fromkeys(task.nodes for task in view.tasks if task.nodes and task.state not in WAITING))
    return ",".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _where(view: JobView) -> str:
    """The task that a reason is of, where there are several."""
    alike = [task.number for task in view.tasks if task.reason == view.reason]
    if len(alike) == len(view.tasks) or not alike:
        return ""
    return f"task {alike[0]}{f' and {len(alike) - 1} more' if len(alike) > 1 else ''}: "


def _suspects(state: RunState) -> list[str]:
    try:
        rows = [line.split(" ", 2) for line in (state.run.sbatch / "suspects").read_text().splitlines()]
    except OSError:
        return []
    why = "suspected node {}, which no job of the run gets until its line in sbatch/suspects is removed: {}"
    return [why.format(row[0], row[2]) for row in rows if len(row) == 3]


def _clock(moment: float, now: float) -> str:
    there = datetime.fromtimestamp(moment)
    return there.strftime("%H:%M" if there.date() == datetime.fromtimestamp(now).date() else "%a %d %b %H:%M")
