"""How the jobs of a launched run stand: what Slurm says now, and what the run's own files say of the rest.

Slurm forgets a job minutes after its end; the journal of the job does not. Where both know nothing, nobody wrote an
end: the job is gone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.launch.job_states import ACTIVE, BAD, WAITING, JobState, JobView, RunState, TaskState
from nemo_openmath.launch.progress_files import read_progress, silence
from nemo_openmath.launch.run_files import Attempt, PlannedJob, RunFiles, Task, addresses
from nemo_openmath.launch.slurm_query import SlurmState, accounted, has_slurm, jobs_of, why_pending
from nemo_openmath.launch.values import time_limit

_KILLED = {
    "TIMEOUT": "its time limit came before it had saved",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for",
    "PREEMPTED": "a more urgent job took its place",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline came",
}


def run_state(run: RunFiles, now: float | None = None, *, ended: bool = False) -> RunState:
    """Ask Slurm, where it is at hand, and put together how each job of the run stands.

    ``ended``: where Slurm cannot be asked, it is known that no stage is queued or runs any more.
    """
    now = time.time() if now is None else now
    ids = {task: run.job_id(task) for job in run.jobs.values() for task in job.tasks}
    slurm, known = "no Slurm on this machine: from the run's own files", None
    if has_slurm():
        try:
            owner = (run.sbatch / "jobs.json").stat().st_uid
            known, slurm = jobs_of(run.output, {id for id in ids.values() if id}, owner), ""
        except OpenMathError as error:
            slurm = f"{error}: from the run's own files"
    states = {task: _task_state(run, task, ids[task], known, now) for task in ids}
    gone = {state.id for state in states.values() if state.state is JobState.GONE and state.id}
    told = accounted(gone) if known is not None else {}
    views: dict[str, JobView] = {}
    for job in run.jobs.values():
        tasks = tuple(_with_accounting(states[task], told) for task in job.tasks)
        if ended and known is None and job.makes_stages:
            tasks = tuple(map(_when_ended, tasks))
        views[job.name] = _view(run, job, tasks, views, now, known is not None)
    return RunState(run, views, now, slurm)


def _task_state(
    run: RunFiles, task: Task, id: str | None, known: Mapping[str, SlurmState] | None, now: float
) -> TaskState:
    job, attempts, submitted = run.jobs[task[0]], run.attempts.get(task, []), run.submitted_at(task)
    last = attempts[-1] if attempts and not _is_earlier(attempts[-1], id) else None
    nodes = last.nodes if last is not None else ""
    log = _log(run, task, id, last)
    base = TaskState(task[1], JobState.PLANNED, id, len(attempts), nodes, since=submitted, log=log)
    slurm = known.get(id) if known is not None and id is not None else None
    if slurm is not None and (slurm.pending or slurm.active):
        return _alive(base, job, slurm, last, now)
    if last is not None and last.end is not None and last.decision not in ("queued again", "handed on"):
        return _ended(base, last)
    if run.finished_at(job) > (submitted or run.planned):  # also where somebody ran it by hand
        return replace(base, state=JobState.DONE, since=run.finished_at(job), start=last.start if last else None)
    if slurm is not None:
        return _by_slurm(base, slurm, last)
    if known is None:
        return _by_files(base, job, last, submitted, now)
    if id is None:
        return base
    reason = "killed from outside: no end in its journal, and Slurm does not know it any more"
    if last is None:
        reason = "never started, and Slurm does not know it any more"
    elif last.end is not None:
        reason = f"{last.decision}, and Slurm does not know it any more"
    return replace(base, state=JobState.GONE, reason=reason, since=last.start if last else submitted)


def _is_earlier(attempt: Attempt, id: str | None) -> bool:
    """Whether an attempt is of an earlier submission than the newest, and did not hand its work on to that."""
    newest = (id or "").partition("_")[0]
    return (
        attempt.id.isdigit() and newest.isdigit() and int(attempt.id) < int(newest) and attempt.decision != "handed on"
    )


def _alive(base: TaskState, job: PlannedJob, slurm: SlurmState, last: Attempt | None, now: float) -> TaskState:
    """A job that waits or runs, as Slurm says."""
    if slurm.pending:
        again = base.attempt > 0 and last is not None
        since = last.end if again and last is not None and last.end is not None else base.since or slurm.submitted
        reason = slurm.reason if slurm.reason.startswith("Dependency") else why_pending(slurm.reason)
        if again and last is not None and (last.reason or last.end is None):
            reason = f"{last.reason or 'killed from outside, with its node or alone'}; {reason}"
        state = JobState.AGAIN if again else JobState.QUEUED
        return replace(base, state=state, reason=reason, since=since, start=slurm.start, nodes="")
    start = now - slurm.elapsed
    fresh = last is not None and last.end is None and last.start is not None
    state = JobState.RUNNING
    if job.work == "server":
        state = JobState.READY if fresh and last is not None and last.ready else JobState.STARTING
    reason = f"asked to leave: {last.asked}" if fresh and last is not None and last.asked is not None else ""
    if slurm.state != "RUNNING":
        reason = "; ".join(filter(None, [reason, slurm.state.lower()]))
    number = base.attempt if fresh else base.attempt + 1  # its script has not begun
    return replace(
        base, state=state, reason=reason, nodes=slurm.nodes or base.nodes, attempt=number, start=start,
        since=last.ready if state is JobState.READY and last is not None else start, left=slurm.limit - slurm.elapsed,
    )  # fmt: skip


def _ended(base: TaskState, last: Attempt) -> TaskState:
    """A job whose journal says how it ended."""
    if last.decision == "done":
        return replace(base, state=JobState.DONE, since=last.end, start=last.start)
    cancelled = last.reason == "cancelled"
    code = f" (exit code {last.code})" if last.code and f"exit code {last.code}" not in last.reason else ""
    return replace(
        base, state=JobState.CANCELLED if cancelled else JobState.FAILED, since=last.end, start=last.start,
        reason="by scancel while it ran" if cancelled else f"{last.reason or 'no reason given'}{code}",
    )  # fmt: skip


def _by_slurm(base: TaskState, slurm: SlurmState, last: Attempt | None) -> TaskState:
    """A job that Slurm says has ended, and whose journal does not say how."""
    if slurm.state == "COMPLETED":
        return replace(base, state=JobState.DONE, since=None, nodes=slurm.nodes or base.nodes)
    if slurm.state == "CANCELLED":
        return replace(base, state=JobState.CANCELLED, reason="" if last is None else "by scancel while it ran")
    killed = "killed before it could write why it ended; " if last is not None else ""
    why = _KILLED.get(slurm.state, f"{killed}Slurm says {slurm.state}: {slurm.reason}")
    return replace(base, state=JobState.FAILED, reason=why, nodes=slurm.nodes or base.nodes)


def _by_files(base: TaskState, job: PlannedJob, last: Attempt | None, submitted: float | None, now: float) -> TaskState:
    """A job of which Slurm is not asked."""
    if last is None:
        return base if submitted is None else replace(base, state=JobState.QUEUED, since=submitted)
    if last.end is not None:
        return replace(base, state=JobState.AGAIN, reason=last.reason, since=last.end)
    state = JobState.RUNNING
    if job.work == "server":
        state = JobState.READY if last.ready else JobState.STARTING
    limit = time_limit(job.time) if job.time else math.inf
    start = last.start or now
    return replace(base, state=state, since=last.ready or start, start=start, left=limit - (now - start))


def _when_ended(task: TaskState) -> TaskState:
    """A task of which its files say that it waits or runs, and which has ended."""
    if task.state in ACTIVE:
        return replace(task, state=JobState.GONE, reason="killed from outside: no end in its journal")
    if task.state in (JobState.QUEUED, JobState.AGAIN):
        return replace(task, state=JobState.CANCELLED, reason="")
    return task


def _with_accounting(task: TaskState, told: Mapping[str, tuple[str, str]]) -> TaskState:
    """Say of a job that is gone what Slurm's accounting says of it."""
    if task.state is not JobState.GONE or task.id is None or task.id not in told:
        return task
    state, code = told[task.id]
    if state == "COMPLETED":
        return replace(task, state=JobState.DONE, reason="")
    if state == "CANCELLED":
        return replace(task, state=JobState.CANCELLED, reason="by scancel")
    return replace(task, reason=f"killed from outside: {_KILLED.get(state, state)} (exit code {code})")


def _view(
    run: RunFiles, job: PlannedJob, tasks: tuple[TaskState, ...], before: Mapping[str, JobView], now: float, known: bool
) -> JobView:
    earlier = [before[name] for name in job.after if name in before]
    roots = list(dict.fromkeys(root for view in earlier if view.state in BAD for root in _roots(view)))
    if job.work == "report":  # which runs whatever became of the others
        roots = []
    pools = [before[name] for name in job.servers if name in before and before[name].state in WAITING]
    waits = [view.job.name for view in [*earlier, *pools] if view.state is not JobState.DONE]
    tasks = tuple(_with_dependency(task, waits, roots, asked=known) for task in tasks)
    counts = Counter(task.state for task in tasks)
    order = (*ACTIVE, JobState.FAILED, JobState.GONE, JobState.CANCELLED, *WAITING[::-1], JobState.DONE)
    state = next(state for state in order if counts[state])
    reasons = [task.reason for task in tasks if task.reason and task.state in (*BAD, *WAITING, *ACTIVE)]
    bad = [task.reason for task in tasks if task.reason and task.state in BAD]
    reason = next(iter(bad or reasons), "")
    progress, silent = None, 0.0
    if any(task.state in ACTIVE or task.attempt for task in tasks) and job.makes_stages:
        active = [task.number for task in tasks if task.state in ACTIVE]
        progress = read_progress(run, job, active, now)
        silent = silence(run, job, active, now) if active else 0.0
    urls = tuple(addresses(run, job.name)) if job.work == "server" else ()
    if state is JobState.READY and not urls:
        state, reason = JobState.STARTING, "it has answered, and none of its servers does now"
    silent_pools = [name for name in job.servers if name in before and before[name].state is not JobState.READY]
    if state is JobState.RUNNING and silent_pools and not reason:
        reason = ", ".join(f"asks {name}, which is {before[name].state}" for name in silent_pools)
    return JobView(job, state, tasks, reason, progress, urls, silent, run.retries_spent(job), _other_code(run, job))


def _with_dependency(task: TaskState, waits: Sequence[str], roots: Sequence[str], *, asked: bool) -> TaskState:
    """Say for which jobs a job waits, or because of which it never ran: ``roots``, those that failed.

    ``asked``: whether Slurm was asked.
    """
    never = (JobState.CANCELLED, JobState.GONE) if asked else (JobState.CANCELLED, JobState.GONE, JobState.QUEUED)
    if task.state in never and not task.nodes and roots:  # it did not start since it was submitted
        return replace(task, state=JobState.CANCELLED, reason=_because(roots))
    if task.state is JobState.CANCELLED and not task.reason:
        return replace(task, reason="by scancel before it started")
    if task.state in (JobState.QUEUED, JobState.AGAIN) and (not task.reason or task.reason.startswith("Dependency")):
        if roots and "Never" in task.reason:
            return replace(task, reason=f"will never start: {_because(roots)}")
        if waits:
            more = f" and {len(waits) - 3} more" if len(waits) > 3 else ""
            return replace(task, reason=f"after {', '.join(waits[:3])}{more}")
        return replace(task, reason="" if task.reason == "" else "waits for Slurm to see that the jobs before are done")
    return task


def _roots(view: JobView) -> list[str]:
    """The jobs whose failure is the reason that a job did not run: ``NAME failed``."""
    head, _, names = view.reason.partition(_BECAUSE)
    if view.state is JobState.CANCELLED and not head:
        return names.split(", ")
    verb = {JobState.CANCELLED: "was cancelled", JobState.GONE: "is gone"}.get(view.state, "failed")
    return [f"{view.job.name} {verb}"]


_BECAUSE = "because "


def _because(roots: Sequence[str]) -> str:
    return f"{_BECAUSE}{', '.join(roots)}"


def _other_code(run: RunFiles, job: PlannedJob) -> str:
    """How the code of the job's newest attempt differs from that of the launch; empty where it is the same, or not
    known."""
    launched = run.launched.get("digest")
    for task in job.tasks:
        for attempt in reversed(run.attempts.get(task, [])[-1:]):
            ran = attempt.ran
            if ran and launched and ran.get("digest") != launched:
                commit = f", commit {str(ran['commit'])[:10]}" if ran.get("commit") else ""
                return f"ran version {ran.get('version')}{commit}, which is not the code of the launch"
    return ""


def _log(run: RunFiles, task: Task, id: str | None, last: Attempt | None) -> str:
    """The newest log of a task, relative to the run; empty where there is none."""
    prefix = f"{run.output.name}.{task[0]}-"
    ids = {id} if id else set()
    if last is not None and last.log:
        name = last.log.rpartition("/")[2]
        if name in run.logs and (id is None or id in name or last.end is None):
            return f"sbatch/logs/{name}"
    candidates = [f"{prefix}{known}.out" for known in ids]
    name = next((name for name in candidates if name in run.logs), "")
    return f"sbatch/logs/{name}" if name else ""
