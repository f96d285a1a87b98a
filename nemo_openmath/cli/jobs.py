"""``openmath jobs status|logs|cancel|resume|watch``: a launched run, while it runs and after."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_openmath.cli.common import AGAIN, at_least, verb

if TYPE_CHECKING:
    from nemo_openmath.launch.job_states import RunState


def add(groups: Any) -> None:
    parser = groups.add_parser("jobs", help="look at a launched run, cancel it, go on with it", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    status = verb(verbs, "status", "every job: state, reason, progress, expected end", _status, interrupted=AGAIN)
    _run(status)
    status.add_argument("--json", action="store_true", help="the same as JSON, each task of an array by itself")
    status.add_argument("--graph", action="store_true", help="what waits for what")
    status.add_argument("--verdict", action="store_true", help="one line: how it ended, or how it stands")

    status.add_argument("--ended", action="store_true", help="no stage runs any more, also where Slurm cannot be asked")

    logs = verb(verbs, "logs", "the log of a job", _logs, interrupted=AGAIN)
    _run(logs)
    logs.add_argument("stage", metavar="STAGE[.TASK]", help="a stage or another job; .3 is task 3 of an array")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the job ends")
    logs.add_argument("--server", action="store_true", help="the log of the model server inside the job")
    logs.add_argument("--attempt", type=at_least(1), metavar="N", help="of an earlier attempt")
    logs.add_argument("--lines", "-n", type=at_least(0), default=40, metavar="N", help="how many; 0 is all")

    cancel = verb(verbs, "cancel", "cancel the jobs of a run, and wait until they are gone", _cancel, interrupted=AGAIN)
    _run(cancel)
    cancel.add_argument("stages", nargs="*", metavar="STAGE", help="these alone")
    cancel.add_argument("--timeout", type=at_least(1), default=120, metavar="SECONDS", help="how long it waits")

    resume = verb(verbs, "resume", "submit what is not finished again", _resume, interrupted=AGAIN)
    _run(resume)
    resume.add_argument("--stage", action="append", default=[], metavar="STAGE", help="this stage alone; repeat it")
    resume.add_argument("--dry-run", action="store_true", help="write DIR/sbatch/*.sh and submit nothing")

    watch = verb(verbs, "watch", "status, drawn again until the run ends", _watch, interrupted=AGAIN)
    _run(watch)
    watch.add_argument("--every", type=at_least(1), default=10, metavar="SECONDS", help="how often")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="DIR", help="folder of the run: --output of launch")


def _status(options: argparse.Namespace) -> None:
    import orjson

    from nemo_openmath.launch.actions import verdict_line
    from nemo_openmath.launch.run_files import read_run
    from nemo_openmath.launch.run_state import run_state
    from nemo_openmath.launch.view_graph import graph_lines
    from nemo_openmath.launch.view_status import status_data, status_nodes

    state = run_state(read_run(options.run), ended=options.ended)
    if options.json:
        print(orjson.dumps(status_data(state), option=orjson.OPT_INDENT_2).decode())
    elif options.verdict:
        print(verdict_line(state))
    elif options.graph:
        print("\n".join(graph_lines(status_nodes(state))))
    else:
        _print_status(state)


def _print_status(state: RunState) -> None:
    from rich.console import Console

    from nemo_openmath.launch.view_status import status_lines

    console = Console()
    for line in status_lines(state):
        console.print(line, soft_wrap=True, highlight=False)


def _logs(options: argparse.Namespace) -> None:
    from nemo_openmath.launch import actions, logs
    from nemo_openmath.launch.run_files import read_run
    from nemo_openmath.launch.run_state import run_state

    state = run_state(read_run(options.run))
    task = actions.task_of(state.run, options.stage)
    if options.follow:
        state = logs.wait_for_log(options.run, task, lambda line: print(line, file=sys.stderr))
    path = logs.log_file(state, task, server=options.server, attempt=options.attempt)
    print(path, file=sys.stderr)
    if files := logs.stacks(state.run, task[0]):
        print(f"stacks of a hang: {files[0].parent} ({len(files)} files)", file=sys.stderr)
    text, position = logs.last_lines(path, options.lines, options.attempt)
    _write(text)
    if options.follow:

        def newest() -> Path | None:
            log = logs.newest_log(options.run, task, path)
            return path if log is not None and options.server else log

        for content in logs.follow(path, position, newest):
            _write(content)


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.flush()


def _cancel(options: argparse.Namespace) -> None:
    from nemo_openmath.launch.actions import cancel_jobs

    cancel_jobs(options.run, options.stages, options.timeout, lambda line: print(line, flush=True))


def _resume(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.slurm import resume_run

    register_all()
    resume_run(options.run, options.stage, dry_run=options.dry_run)


def _watch(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.launch.actions import verdict_line, watch
    from nemo_openmath.launch.view_status import status_lines

    console = Console()
    shown: list[str] = []

    def draw(state: RunState) -> None:
        if console.is_terminal:
            console.clear()
            for line in status_lines(state):
                console.print(line, soft_wrap=True, highlight=False)
            return
        changes = [
            f"{name} {view.state}{f': {view.reason}' if view.reason else ''}" for name, view in state.jobs.items()
        ]
        for change in changes:  # a log gets what is new
            if change not in shown:
                print(change, flush=True)
        shown[:] = changes

    print(verdict_line(watch(options.run, options.every, draw)))
