"""The generated scripts on a real Slurm (by hand: `pytest -m manual tests/launch`; apt install slurm-wlm munge)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.launch import TEMPLATES
from tests.launch.slurm_rig import missing_programs, slurm, states, wait_for

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.manual,
    pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed here"),
]

CLUSTER = """\
templates: {templates}
environment: {{OMP_NUM_THREADS: "1", PATH: "{path}:/usr/sbin:/usr/bin:/sbin:/bin"}}
warn_seconds: 50
default: {{time: "00:{minutes}:00"}}
kinds: {kinds}
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def launch(
    rig: dict[str, str],
    folder: Path,
    until: str,
    *,
    path: Path,
    kinds: str = "{}",
    minutes: str = "20",
    change: tuple[str, str] = ("", ""),
    options: tuple[str, ...] = (),
) -> str:
    """`openmath launch` of the smoke recipe; what it printed."""
    cluster = folder / "cluster.yaml"
    text = CLUSTER.format(templates=TEMPLATES, path=path, kinds=kinds, minutes=minutes)
    cluster.write_text(text.replace(*change))
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "launch", str(ROOT / "examples/smoke.yaml")]
    command += ["--cluster", str(cluster), "--output", str(folder / "run"), "--until", until, *options]
    return subprocess.run(command, env=rig, check=True, capture_output=True, text=True).stdout


def wait(rig: dict[str, str], folder: Path, seconds: float) -> dict[str, str]:
    """The states of a launch's jobs once all have ended, but of the one that writes the report."""
    found = wait_for(rig, folder / "run", seconds)
    return {name: state for name, state in found.items() if name != "report"}


def shim(folder: Path, body: str) -> Path:
    """A program called openmath, to see what Slurm makes of its exit codes. It writes no report."""
    folder.mkdir()
    program = folder / "openmath"
    program.write_text(f'#!/bin/bash\ncase "$*" in *" --only "*) ;; *) exit ;; esac\n{body}\n')
    program.chmod(0o755)
    return folder


def test_stages_run_in_order_and_arrays_share_one(rig: dict[str, str], tmp_path: Path) -> None:
    """Real stages with the stand-in teacher, one as an array: all is made, and a second launch has nothing to do."""
    kinds = "{problems.classify: {array: 2}}"
    said = launch(rig, tmp_path, "answered", path=Path(sys.executable).parent, kinds=kinds)
    assert said.count(" after ") == 5
    assert set(wait(rig, tmp_path, 900).values()) == {"COMPLETED"}
    assert all((tmp_path / "run" / name / "manifest.json").exists() for name in ("threads", "classified", "answered"))
    again = launch(rig, tmp_path, "answered", path=Path(sys.executable).parent, kinds=kinds)
    assert again == "every stage is finished\n"


def test_exit_code_75_is_queued_again_and_dependents_wait(rig: dict[str, str], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    path = shim(tmp_path / "bin", f'echo "$*" >> {marks}; [ "$(wc -l < {marks})" -gt 1 ] || exit 75')
    launch(rig, tmp_path, "threads", path=path)
    assert wait(rig, tmp_path, 400) == {"benchmark": "COMPLETED", "threads": "COMPLETED"}
    stages = [line.rsplit(" ", 1)[1] for line in marks.read_text().splitlines()]
    assert stages == ["benchmark", "benchmark", "threads"]


def test_a_launch_from_inside_of_another_job(rig: dict[str, str], tmp_path: Path) -> None:
    """What Slurm has set for that job would contradict the steps of these: `srun --pty bash` is such a job."""
    inside = {
        "SLURM_MEM_PER_CPU": "7",
        "SLURM_MEM_PER_NODE": "9",
        "SLURM_CPU_BIND": "mask_cpu:0xF000",
        "SLURM_NNODES": "9",
    }
    launch({**rig, **inside}, tmp_path, "benchmark", path=shim(tmp_path / "bin", "env >&2"))
    assert wait(rig, tmp_path, 100) == {"benchmark": "COMPLETED"}


def test_an_array_all_of_whose_tasks_leave_is_queued_again_and_its_dependents_run(
    rig: dict[str, str], tmp_path: Path
) -> None:
    """Each task ends with 75 once, and is queued again by itself; one of them has the array's own job id."""
    marks = tmp_path / "marks"
    marks.mkdir()
    body = f"""\
mark={marks}/$SLURM_JOB_NAME.${{SLURM_ARRAY_TASK_ID:-alone}}
echo x >> $mark
case "$*" in *--shard*) [ "$(wc -l < $mark)" -gt 1 ] || exit 75;; esac"""
    kinds = "{problems.classify: {array: 3}}"
    launch(rig, tmp_path, "answered", path=shim(tmp_path / "bin", body), kinds=kinds)
    found = wait(rig, tmp_path, 600)
    assert set(found.values()) == {"COMPLETED"}, found
    starts = {path.name: len(path.read_text().split()) for path in marks.iterdir()}
    assert {name: n for name, n in starts.items() if "alone" not in name} == {
        f"run.classified.{i}": 2 for i in range(3)
    }
    assert starts["run.answered.alone"] == 1
    assert set(starts.values()) == {1, 2}


def test_names_with_blanks_and_signs_of_the_shell_arrive_as_written(rig: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s %j & "b" #c;$HOME'
    folder.mkdir()
    said = launch(rig, folder, "benchmark", path=shim(tmp_path / "bin", 'pwd; echo "$SLURM_JOB_NAME"'))
    (job,) = [line.split()[0] for line in said.splitlines() if line.endswith(" benchmark")]
    while "COMPLETED" not in (shown := show(rig, job)):
        assert "FAILED" not in shown
        time.sleep(0.5)
    assert f"WorkDir={folder / 'run'}" in shown
    (log,) = (folder / "run/sbatch/logs").glob("*.benchmark-*")
    assert log.name == f"run.benchmark-{job}.out"
    assert log.read_text().splitlines()[-2:] == [str(folder / "run"), "run.benchmark"]


def show(rig: dict[str, str], job: str) -> str:
    command = ["scontrol", "--oneliner", "show", "job", job]
    return subprocess.run(command, env=rig, capture_output=True, text=True, check=True).stdout


def test_a_failure_is_not_queued_again_and_ends_its_dependents(rig: dict[str, str], tmp_path: Path) -> None:
    path = shim(tmp_path / "bin", "exit 2")
    launch(rig, tmp_path, "threads", path=path)
    found = wait(rig, tmp_path, 60)
    assert found == {"benchmark": "FAILED", "threads": "CANCELLED"}


def test_the_signal_before_the_time_limit_reaches_the_step(rig: dict[str, str], tmp_path: Path) -> None:
    """USR1 comes 50 s before the limit of one minute; the step saves, exits 75, and its second run completes."""
    marks = tmp_path / "marks"
    body = f'[ -e {marks} ] && exit 0\ntrap "echo saved > {marks}; exit 75" USR1\nwhile :; do sleep 0.2; done'
    launch(rig, tmp_path, "benchmark", path=shim(tmp_path / "bin", body), minutes="01")
    assert wait(rig, tmp_path, 400) == {"benchmark": "COMPLETED"}
    assert marks.read_text() == "saved\n"


@pytest.mark.parametrize(("warn", "state"), [(120, "FAILED"), (119, "COMPLETED")])
def test_a_partitions_own_time_limit_must_be_above_the_warning(
    warn: int, state: str, rig: dict[str, str], tmp_path: Path
) -> None:
    """Where the cluster file says no time: the job would be asked to save as it starts, again and again. The launch
    refuses it; a script that is submitted all the same says it, too."""
    change = ('warn_seconds: 50\ndefault: {time: "00:20:00"}', f"warn_seconds: {warn}\ndefault: {{partition: short}}")
    path, refused = shim(tmp_path / "bin", "exit 0"), state == "FAILED"
    if refused:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            launch(rig, tmp_path, "benchmark", path=path, change=change)
        assert "jobs get 00:02:00 of partition short, not above warn_seconds (120)" in caught.value.stdout
    launch(rig, tmp_path, "benchmark", path=path, change=change, options=("--dry-run",) if refused else ())
    if refused:
        subprocess.run(["bash", str(tmp_path / "run/sbatch/submit.sh")], env=rig, check=True, capture_output=True)
    assert wait(rig, tmp_path, 200) == {"benchmark": state}
    (log,) = (tmp_path / "run/sbatch/logs").glob("*.benchmark-*")
    said = f"benchmark has 00:02:00, not above warn_seconds ({warn}): write a longer time"
    assert (said in log.read_text()) == (state == "FAILED")


def test_a_preempted_job_is_queued_again(rig: dict[str, str], tmp_path: Path) -> None:
    """A more urgent job takes the nodes: the step gets SIGTERM and saves, and completes after its second start."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    body = f'[ -e {saved} ] && exit 0\ntrap "touch {saved}; exit 75" TERM\ntouch {ready}\nwhile :; do sleep 0.2; done'
    launch(rig, tmp_path, "benchmark", path=shim(tmp_path / "bin", body))
    while not ready.exists():
        time.sleep(0.2)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, env=rig, check=True, stdout=subprocess.DEVNULL)
    assert wait(rig, tmp_path, 400) == {"benchmark": "COMPLETED"}
    assert saved.exists()


def test_a_cancelled_job_stays_cancelled(rig: dict[str, str], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    launch(rig, tmp_path, "benchmark", path=shim(tmp_path / "bin", f"touch {ready}; exec sleep 300"))
    while not ready.exists():
        time.sleep(0.2)
    subprocess.run(["scancel", "--name=run.benchmark"], env=rig, check=True)
    assert wait(rig, tmp_path, 60) == {"benchmark": "CANCELLED"}


def test_a_second_launch_is_refused_while_jobs_are_queued(rig: dict[str, str], tmp_path: Path) -> None:
    path = shim(tmp_path / "bin", "exec sleep 300")
    launch(rig, tmp_path, "benchmark", path=path)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        launch(rig, tmp_path, "benchmark", path=path)
    assert "queued already" in caught.value.stderr
    subprocess.run(["scancel", "--name=run.benchmark"], env=rig, check=True)
    wait(rig, tmp_path, 60)


def test_a_job_whose_node_dies_starts_elsewhere(rig: dict[str, str], tmp_path: Path) -> None:
    """slurmd and all processes of the job are killed, and the node is set down, as after its timeout."""
    starts = tmp_path / "starts"
    body = f'echo "$SLURM_JOB_ID $SLURMD_NODENAME" >>{starts}; [ "$(wc -l <{starts})" -gt 1 ] || exec sleep 300'
    launch(rig, tmp_path, "benchmark", path=shim(tmp_path / "bin", body))
    while not (starts.exists() and starts.read_text().endswith("\n")):
        time.sleep(0.2)
    job, node = starts.read_text().split()
    slurmd = Path(rig["SLURM_CONF"]).parent / f"slurmd.{node}.pid"
    os.kill(int(slurmd.read_text()), signal.SIGKILL)
    for process in processes_of(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    set_node(rig, node, "DOWN")
    assert wait(rig, tmp_path, 100) == {"benchmark": "COMPLETED"}
    journal = (tmp_path / "run/sbatch/journal/benchmark.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in journal] == ["start", "start", "end"]
    assert starts.read_text().split()[3] != node
    slurmd.unlink()
    subprocess.run(["slurmd", "-N", node, "-f", rig["SLURM_CONF"]], env=rig, check=True)  # and it is up again
    while not (slurmd.exists() and slurmd.read_text().strip()):  # by which the rig ends it
        time.sleep(0.1)


def test_who_does_not_save_in_time_is_killed_and_queued_again(rig: dict[str, str], tmp_path: Path) -> None:
    """The limit is a minute, the signal comes 50 s before, and 40 s later there must be an end."""
    body = f'[ -e {tmp_path}/again ] && exit 0\ntouch {tmp_path}/again; trap "" USR1; while :; do sleep 1; done'
    launch(rig, tmp_path, "benchmark", path=shim(tmp_path / "bin", body), minutes="01")
    assert wait(rig, tmp_path, 300) == {"benchmark": "COMPLETED"}
    end = json.loads((tmp_path / "run/sbatch/journal/benchmark.jsonl").read_text().splitlines()[2])
    assert (end["code"], end["decision"], end["costs"]) == (137, "queued again", 1)
    assert "not saved before it had to leave" in end["reason"]


def test_an_array_that_slurm_refuses_leaves_no_half_of_a_run(rig: dict[str, str], tmp_path: Path) -> None:
    """The cluster file says a larger max_array_size than Slurm has."""
    change = ("warn_seconds: 50", "warn_seconds: 50\nmax_array_size: 5000")
    kinds = "{problems.classify: {array: 2000}}"
    path = shim(tmp_path / "bin", "exit 0")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        launch(rig, tmp_path, "answered", path=path, kinds=kinds, change=change)
    assert "MaxArraySize" in caught.value.stdout  # launch asks Slurm before it submits
    launch(rig, tmp_path, "answered", path=path, kinds=kinds, change=change, options=("--dry-run",))
    submit = ["bash", str(tmp_path / "run/sbatch/submit.sh")]
    done = subprocess.run(submit, env=rig, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Invalid job array specification" in done.stderr
    assert set(states(rig, tmp_path / "run").values()) <= {"CANCELLED", "COMPLETED"}


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_file_system_that_is_full_for_a_while(rig: dict[str, str], tmp_path: Path) -> None:
    """The stage fills it and fails with a traceback; a minute later it is run again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        full = disk / "full"
        body = (
            f"[ -e {tmp_path}/again ] && exit 0\ntouch {tmp_path}/again; cat /dev/zero >{full}; echo {'x' * 99}; exit 1"
        )
        launch(rig, disk, "benchmark", path=shim(tmp_path / "bin", body))
        while not full.exists() or "benchmark" not in states(rig, disk / "run"):
            time.sleep(0.5)
        while states(rig, disk / "run")["benchmark"] != "PENDING":
            time.sleep(0.2)
        full.unlink()
        assert wait(rig, disk, 300) == {"benchmark": "COMPLETED"}
        (log,) = (disk / "run/sbatch/logs").glob("*.benchmark-*")
        assert "No space left on device" in log.read_text()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def processes_of(job: str) -> list[int]:
    """The processes of a job, and slurmstepd, which would tell that they ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if f"SLURM_JOB_ID={job}\0".encode() in words or f"slurmstepd: [{job}.".encode() in words:
                found.append(int(folder.name))
    return found


def set_node(rig: dict[str, str], node: str, state: str) -> None:
    command = ["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test"]
    subprocess.run(command, env=rig, check=True)


LOOP = """\
name: loop
student: {{kind: embedded, slots: 4, max_context: 512, threads: 1}}
stages:
  benchmark: {{run: demo.benchmark, problems: 4}}
  first_solved: {{run: rollout.generate, from: benchmark, engine: {base}, max_tokens: 8}}
  first_graded: {{run: solutions.grade, from: first_solved}}
  first_results: {{run: evaluation.metrics, from: first_graded, checkpoint: first, ks: [1]}}
  last: {{run: checkpoints.merge, from: {{models: [best, {base}]}}}}
iterations:
  most: 3
  start: {base}
  start_results: first_results
  model: model
  results: results
  metric: cot pass@1
  stop: {{gains_below_interval: 1}}
  stages:
    model: {{run: checkpoints.merge, from: {{models: [newest, {base}]}}}}
    solved: {{run: rollout.generate, from: benchmark, engine: model, max_tokens: 8}}
    graded: {{run: solutions.grade, from: solved}}
    results: {{run: evaluation.metrics, from: graded, ks: [1]}}
"""


def test_jobs_behind_the_end_of_a_loop_end_well(rig: dict[str, str], tmp_path: Path) -> None:
    """A model that solves nothing, three iterations queued at once, and a rule that ends after the first: jobs of the
    others make nothing and say why, and what reads the best model is made."""
    recipe, cluster, output = tmp_path / "loop.yaml", tmp_path / "cluster.yaml", tmp_path / "run"
    recipe.write_text(LOOP.format(base=ROOT / "examples" / "base"))
    kinds = "{rollout.generate: {array: 2}}"
    cluster.write_text(CLUSTER.format(templates=TEMPLATES, path=Path(sys.executable).parent, kinds=kinds, minutes="20"))
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "launch", str(recipe)]
    command += ["--cluster", str(cluster), "--output", str(output)]
    subprocess.run(command, env=rig, check=True, capture_output=True)
    assert set(wait(rig, tmp_path, 1500).values()) == {"COMPLETED"}
    made = {path.parent.name for path in output.glob("*/manifest.json")}
    assert {"results-1", "decision-1", "best", "last"} <= made
    assert not {name for name in made if name.endswith(("-2", "-3"))}
    logs = "".join(path.read_text() for path in (output / "sbatch" / "logs").glob("*-3-*.out"))
    assert "model-3 is not needed: the loop ended with decision-1: the gain was below the interval" in logs
    loop = json.loads((output / "iterations.json").read_text())
    assert (loop["best"]["iteration"], loop["stop"]["iteration"]) == (0, 1)
    assert subprocess.run(command, env=rig, check=True, capture_output=True, text=True).stdout.startswith("every stage")
