"""Accidents at random on a real Slurm: ``python -m tests.launch.chaos --minutes 60 --seed 1 [--folder DIR]``.

Four pretended nodes run the smoke recipe, with a longer training of two ranks on two nodes and a pool of model servers:
once undisturbed, then again and again with accidents until the time is over. Each run must end by itself, and hold the
very records, losses and weights of the undisturbed one; that one is held against ``openmath recipe run`` without Slurm,
whose trainings may differ within 1e-4, as another layout adds in another order. Prints each accident, what the jobs
decided, and a summary; the exit code is 0 where every run passed. Full disks need root, for a file system of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from nemo_openmath.core.records.bodies import joined
from tests.launch.slurm_rig import slurm

ROOT = Path(__file__).parents[2]
NODES = 4
DISK_MIB = 3000
RUN_LIMIT_S = 2400  # of one run behind the last accident
RECIPE = """\
extends: {root}/examples/smoke.yaml
name: chaos
partitions: 4
stages:
  train1:
    steps: 400
    training: {{log_every: 1, checkpoints: {{every: 20}}, hang_seconds: 60}}
"""
CLUSTER = """\
environment: {{OMP_NUM_THREADS: "1", GLOO_SOCKET_IFNAME: lo, PATH: "{path}:/usr/sbin:/usr/bin:/sbin:/bin"}}
warn_seconds: 20
hang_seconds: 60
retries: 50
run_retries: 500
default: {{cpus: 1, time: "00:20:00"}}
servers:
  default: {{engine: openmath, jobs: 2, cpus: 1, time: "00:20:00", start_seconds: 300, arguments: [--slots, "16"]}}
kinds:
  rollout.generate: {{array: 3}}
  solutions.grade: {{array: 2}}
  training.sft: {{nodes: 2, cpus: 1}}
"""


@dataclass
class Chaos:
    """One rig, the run that is disturbed at the moment, and what was done to it."""

    environment: dict[str, str]
    slurm_folder: Path
    disk: Path
    random: random.Random
    run: Path = Path()
    began: float = field(default_factory=time.monotonic)
    done: Counter[str] = field(default_factory=Counter)
    limited: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        seconds = time.monotonic() - self.began
        print(f"{int(seconds // 60):3d}:{int(seconds % 60):02d}  {text}", flush=True)

    def command(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self, state: str = "") -> list[tuple[str, str]]:
        """(id, name) of the run's jobs in the queue; of those in ``state`` where it is given."""
        words = ["squeue", "--noheader", "--array", "--format=%i %j %Z", *([f"--states={state}"] if state else [])]
        rows = [line.split(" ", 2) for line in self.command(*words).splitlines()]
        return [(row[0], row[1]) for row in rows if row[2] == str(self.run)]

    def has_begun(self, name: str, job: str) -> bool:
        """Whether a job's script runs: before, a signal ends what Slurm is about to start."""
        task = job.partition("_")[2]
        journal = name.removeprefix(f"{self.run.name}.") + (f".{task}" if task else "") + ".jsonl"
        path = self.run / "sbatch" / "journal" / journal
        return path.exists() and '"event":"end"' not in path.read_text().splitlines()[-1]

    def processes(self, words: str) -> list[int]:
        """Processes of the run whose command line has ``words``."""
        return [pid for pid, line in _processes(self.run) if words in line]


def _processes(folder: Path) -> Iterator[tuple[int, str]]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if Path(os.readlink(path / "cwd")).is_relative_to(folder):
                    yield int(path.name), line
            except OSError:
                continue


# ---- The accidents. Each returns what it did, or "" where there is nothing at the moment to do it to.


def _signalled(chaos: Chaos) -> str:
    jobs = [(job, name) for job, name in chaos.jobs("RUNNING") if chaos.has_begun(name, job)]
    if not jobs:
        return ""
    (job, name), number = chaos.random.choice(jobs), chaos.random.choice(["USR1", "TERM"])
    chaos.command("scancel", f"--signal={number}", "--batch", job)
    return f"scancel --signal={number} {job} ({name})"


def _requeued(chaos: Chaos) -> str:
    jobs = chaos.jobs("RUNNING")
    if not jobs:
        return ""
    job, name = chaos.random.choice(jobs)
    chaos.command("scontrol", "requeue", job)
    return f"scontrol requeue {job} ({name})"


def _time_limit(chaos: Chaos) -> str:
    """A job gets a limit of a minute, the least that Slurm knows; once it is queued again, it has its own back."""
    jobs = chaos.jobs("RUNNING")
    if not jobs:
        return ""
    job, name = chaos.random.choice(jobs)
    chaos.command("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    chaos.limited.append(job)
    return f"time limit of {job} ({name}) is now one minute"


def _own_limits(chaos: Chaos) -> None:
    for job, _ in chaos.jobs("PENDING"):
        if job in chaos.limited:
            chaos.command("scontrol", "update", f"JobId={job}", "TimeLimit=20")
            chaos.limited.remove(job)


def _slurmd_killed(chaos: Chaos) -> str:
    node = f"n{chaos.random.randint(1, NODES)}"
    pid_file = chaos.slurm_folder / f"slurmd.{node}.pid"
    if not pid_file.exists():
        return ""
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    time.sleep(5)
    subprocess.run(["slurmd", "-N", node, "-f", str(chaos.slurm_folder / "slurm.conf")], env=chaos.environment)
    return f"slurmd of {node} killed, started again after 5 s"


def _node_down(chaos: Chaos) -> str:
    node = f"n{chaos.random.randint(1, NODES)}"
    chaos.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=chaos")
    time.sleep(8)
    chaos.command("scontrol", "update", f"NodeName={node}", "State=RESUME")
    return f"node {node} down for 8 s"


def _sent(number: signal.Signals, words: str, what: str) -> Callable[[Chaos], str]:
    def accident(chaos: Chaos) -> str:
        if not (pids := chaos.processes(words)):
            return ""
        pid = chaos.random.choice(pids)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return ""
        return f"{number.name} to {what} (process {pid})"

    return accident


def _disk_full(chaos: Chaos) -> str:
    if not os.path.ismount(chaos.disk) or not chaos.jobs("RUNNING"):
        return ""
    filler = chaos.disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], stderr=subprocess.DEVNULL, check=False)
    chaos.say("the file system is full")
    time.sleep(60)
    filler.unlink()
    return "file system full for a minute"


ACCIDENTS: dict[str, Callable[[Chaos], str]] = {
    "signal": _signalled,
    "requeue": _requeued,
    "time limit": _time_limit,
    "slurmd killed": _slurmd_killed,
    "node down": _node_down,
    "rank killed": _sent(signal.SIGKILL, "nemo_openmath.training.worker", "a rank"),
    "rank hangs": _sent(signal.SIGSTOP, "nemo_openmath.training.worker", "a rank"),
    "server killed": _sent(signal.SIGKILL, "nemo_openmath.inference.serving.embedded_server", "a model server"),
    "stage killed": _sent(signal.SIGKILL, "openmath recipe run", "a stage's process"),
    "stage hangs": _sent(signal.SIGSTOP, "openmath recipe run", "a stage's process"),
    "disk full": _disk_full,
}


def _launch(chaos: Chaos, recipe: Path, cluster: Path) -> None:
    words = [sys.executable, "-m", "nemo_openmath.cli.main", "launch", str(recipe), "--cluster", str(cluster)]
    done = subprocess.run(
        [*words, "--output", str(chaos.run)],
        env={**chaos.environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"not launched: {done.stdout}{done.stderr}")


def _run_locally(recipe: Path, output: Path) -> None:
    words = [sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "run", str(recipe), "--output", str(output)]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the local run failed: {done.stdout}{done.stderr}")


def _wait(chaos: Chaos, disturb: Callable[[], bool]) -> bool:
    """Wait until no job of the run is queued, with accidents as long as ``disturb`` causes them; whether it ended."""
    quiet_since = time.monotonic()
    while chaos.jobs():
        _own_limits(chaos)
        if disturb():
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since > RUN_LIMIT_S:
            chaos.say(f"NOT ENDED: {chaos.jobs()}")
            return False
        time.sleep(1)
    return True


def _records(folder: Path) -> list[bytes]:
    lines = [joined(line, folder) for part in sorted(folder.glob("part-*.jsonl")) for line in part.open("rb")]
    drops = [line for part in folder.glob("drops-*.jsonl") for line in part.open("rb")]
    return sorted(bytes(line) for line in [*lines, *drops])


def _losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [(row["step"], row["loss"]) for row in rows]


def _differences(run: Path, quiet: Path, tolerance: float = 0.0) -> list[str]:
    """What of a run is not as in the undisturbed one. ``tolerance``: of losses; where it is above 0, weights are not
    compared."""
    found = []
    for manifest in sorted(quiet.glob("*/manifest.json")):
        stage = manifest.parent.name
        if not (run / stage / "manifest.json").exists():
            found.append(f"{stage} is not finished")
        elif "competition" in stage:
            continue  # goes by the clock
        elif _records(run / stage) != _records(quiet / stage):
            found.append(f"{stage} has other records")
        elif (quiet / stage / "metrics.jsonl").exists() and not _are_near(run / stage, quiet / stage, tolerance):
            found.append(f"{stage} has other losses")
        elif not tolerance:
            for weights in sorted((quiet / stage).rglob("*.safetensors")):
                ours, theirs = load_file(run / weights.relative_to(quiet)), load_file(weights)
                if ours.keys() != theirs.keys() or any((ours[k] != theirs[k]).any() for k in theirs):
                    found.append(f"{stage}: {weights.name} has other weights")
    return found


def _are_near(run: Path, quiet: Path, tolerance: float) -> bool:
    ours, theirs = _losses(run), _losses(quiet)
    steps = [step for step, _ in ours] == [step for step, _ in theirs]
    return steps and all(abs(a - b) <= tolerance for (_, a), (_, b) in zip(ours, theirs, strict=True))


def _decisions(run: Path) -> Counter[str]:
    """What the run's jobs decided, from their journals."""
    count: Counter[str] = Counter()
    for journal in (run / "sbatch/journal").glob("*.jsonl"):
        open_attempt = False
        for line in journal.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                count["a line of the journal was cut"] += 1
                continue
            if event["event"] == "start":
                count["killed from outside, started again by Slurm"] += open_attempt
                open_attempt = True
            elif event["event"] == "end":
                count[f"{event['decision']} (exit code {event['code']}): {event.get('reason', '')[:70]}"] += 1
                open_attempt = False
    return +count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="default: a new one")
    parser.add_argument("--only", action="append", choices=ACCIDENTS, help="these accidents alone")
    parser.add_argument("--pause", type=float, default=20, help="mean seconds between two accidents")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    disk, slurm_folder = folder / "disk", folder / "slurm"
    disk.mkdir(parents=True)
    slurm_folder.mkdir()
    failed = 0
    with ExitStack() as stack:
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)
            stack.callback(lambda: subprocess.run(["umount", "--lazy", str(disk)], check=False))
        chaos = Chaos(stack.enter_context(slurm(slurm_folder, NODES)), slurm_folder, disk, random.Random(options.seed))
        recipe, cluster = folder / "recipe.yaml", folder / "cluster.yaml"
        recipe.write_text(RECIPE.format(root=ROOT))
        cluster.write_text(CLUSTER.format(path=Path(sys.executable).parent))

        quiet = chaos.run = disk / "quiet"
        _launch(chaos, recipe, cluster)
        if not _wait(chaos, lambda: False):
            return 1
        unfinished = [p.parent.name for p in quiet.glob("*/plan.json") if not (p.parent / "manifest.json").exists()]
        chaos.say(f"undisturbed run ended; stages {len(list(quiet.glob('*/manifest.json')))}, unfinished {unfinished}")
        chaos.say(f"decisions: {dict(_decisions(quiet))}")
        if unfinished:
            return 1
        _run_locally(recipe, disk / "local")
        unlike = _differences(quiet, disk / "local", tolerance=1e-4)
        chaos.say("held against a run without Slurm: " + ("; ".join(unlike) or "records and losses are equal"))
        failed += bool(unlike)

        end, number, next_at = time.monotonic() + 60 * options.minutes, 0, time.monotonic()
        decisions: Counter[str] = Counter()

        def disturb() -> bool:
            nonlocal next_at
            if not next_at <= time.monotonic() < end:
                return time.monotonic() < end
            kinds = options.only or list(ACCIDENTS)
            for name in sorted(kinds, key=lambda kind: (chaos.done[kind], chaos.random.random())):  # the rarest so far
                if did := ACCIDENTS[name](chaos):
                    chaos.done[name] += 1
                    chaos.say(did)
                    next_at = time.monotonic() + chaos.random.expovariate(1 / options.pause)
                    break
            return True

        while time.monotonic() < end:
            number += 1
            chaos.run = disk / f"run-{number}"
            _launch(chaos, recipe, cluster)
            chaos.say(f"run {number} launched")
            ended = _wait(chaos, disturb)
            decisions += _decisions(chaos.run)
            wrong = _differences(chaos.run, quiet) if ended else ["it did not end by itself"]
            chaos.say(f"run {number} ended: " + ("; ".join(wrong) or "records, losses and weights are equal"))
            failed += bool(wrong)
            if wrong:
                shutil.copytree(chaos.run, folder / chaos.run.name, dirs_exist_ok=True)
            shutil.rmtree(chaos.run, ignore_errors=True)
        print(f"\n{number} runs, {failed} failed; seed {options.seed}; {sum(chaos.done.values())} accidents:")
        for name, times in chaos.done.most_common():
            print(f"  {times:4d}  {name}")
        print("what the jobs did:")
        for text, times in decisions.most_common():
            print(f"  {times:4d}  {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
