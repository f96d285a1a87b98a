"""The logs of a launched run's jobs: which file, which lines, and what is added."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.job_states import QUEUED, RunState
from nemo_openmath.launch.run_files import RunFiles, Task, read_run
from nemo_openmath.launch.run_state import run_state

_MARK = re.compile(rb"^--- attempt (\d+) of ", re.M)  # functions.sh writes it


def log_file(state: RunState, task: Task, *, server: bool = False, attempt: int | None = None) -> Path:
    """Return the log of a task: of its newest attempt, or of a given one; with ``server`` of the server in it.

    For an array, the task that says most is taken: one that failed, else one that runs. Raises UserError.
    """
    run, (name, number) = state.run, task
    view = state.jobs[name]
    chosen = view.newest if number is None else view.tasks[number]
    key = (name, chosen.number)
    attempts = run.attempts.get(key, [])
    path = run.output / chosen.log if chosen.log else None
    if attempt is not None:
        if (one := next((a for a in attempts if a.number == attempt), None)) is None:
            known = f"there are {len(attempts)}" if attempts else "it has not started"
            raise UserError(f"no attempt {attempt} of {name!r}", file=run.output, remedy=known)
        path = run.sbatch / "logs" / Path(one.log).name if one.log else path
    if path is not None and server:
        servers = sorted(path.parent.glob(f"{path.stem}-server*.out"))
        path = servers[-1] if servers else None
    if path is None or not path.is_file():
        what = "no log of a model server" if server else "no log yet"
        reason = f": {chosen.reason}" if chosen.reason else ""
        names = f"its servers are {', '.join(view.job.servers)}" if server and view.job.servers else ""
        raise UserError(f"{what} of {name!r} ({chosen.state}{reason})", file=run.output, remedy=names)
    return path


def stacks(run: RunFiles, name: str) -> list[Path]:
    """Return the files of stacks that a hang of a job's stages left."""
    folders = [run.output / stage / "stacks" for stage in run.jobs[name].stages]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def last_lines(path: Path, count: int, attempt: int | None = None) -> tuple[bytes, int]:
    """Return the last ``count`` lines of a log, or of one attempt in it, and the size of the file then."""
    content = path.read_bytes() if path.stat().st_size < 1 << 26 else _end(path, 1 << 26)
    size = path.stat().st_size
    if attempt is not None:
        marks = [(int(match[1]), match.start()) for match in _MARK.finditer(content)]
        begin = next((start for number, start in marks if number == attempt), 0)
        end = next((start for number, start in marks if start > begin and number != attempt), len(content))
        content = content[begin:end]
    lines = content.splitlines(keepends=True)
    return b"".join(lines[-count:] if count else lines), size


def _end(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-size, 2)
        return file.read()


def wait_for_log(output: Path, task: Task, report: Callable[[str], None]) -> RunState:
    """Wait until a job that is queued has a log, and return the state of the run then."""
    told = ""
    while True:
        state = run_state(read_run(output))
        view = state.jobs[task[0]]
        chosen = view.newest if task[1] is None else view.tasks[task[1]]
        if chosen.log or chosen.state not in QUEUED:
            return state
        if (line := f"{view.job.name} {chosen.state}{f': {chosen.reason}' if chosen.reason else ''}") != told:
            report(told := line)
        time.sleep(2)


def newest_log(output: Path, task: Task, current: Path) -> Path | None:
    """Return the newest log of a task, ``current`` where it has no other yet; None where the task has ended."""
    state = run_state(read_run(output))
    view = state.jobs[task[0]]
    chosen = view.newest if task[1] is None else view.tasks[task[1]]
    if chosen.state not in QUEUED:
        return None
    return output.resolve() / chosen.log if chosen.log else current


def follow(path: Path, position: int, newest_of: Callable[[], Path | None]) -> Iterator[bytes]:
    """Yield what is appended to a log, until ``newest_of`` returns None and nothing comes any more. It returns the
    newest log: a job that is queued anew may write another one."""
    checked = time.monotonic()
    newest: Path | None = path
    while True:
        with path.open("rb") as file:
            file.seek(position)
            if content := file.read():
                position += len(content)
                yield content
                continue
        if newest is None:
            return
        if newest != path:
            path, position = newest, 0
            yield f"--- {path}\n".encode()
            continue
        time.sleep(0.5)
        if time.monotonic() - checked > 5:
            checked, newest = time.monotonic(), newest_of()
