"""What becomes of jobs that fail, hang or are asked to leave, on a real Slurm: the decisions of functions.sh.

All runs of this file are submitted at once, and share four pretended nodes; each test looks at one of them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.launch import StageInfo, load_cluster, plan_jobs, write_scripts
from tests.launch.slurm_rig import SlurmNotStarted, missing_programs, slurm, wait_for

pytestmark = pytest.mark.skipif(bool(missing_programs()), reason=f"Slurm is not installed: {missing_programs()}")

FIRST = StageInfo("first", "rollout.generate", splits=True)
SECOND = StageInfo("second", "solutions.grade", ("first",))
TRAIN = StageInfo("train", "training.sft", trains=True)
ARRAY = "stages: {first: {array: 3}}"
NODES = "suspect_after: 1\nstages: {train: {nodes: 3}}"
AGAIN = 'n=$(ls "$marks" | wc -l); touch "$marks/$BASHPID"'  # n: how often it ran before


@dataclass(frozen=True)
class Scenario:
    """A run of its own: what `openmath` does in its jobs, and what the cluster file adds."""

    body: str
    cluster: str = ""
    stages: Sequence[StageInfo] = (FIRST, SECOND)
    overrides: Sequence[str] = ()
    name: str = "run"


SCENARIOS = {
    "wrong input": Scenario('echo "openmath: r.yaml:3: no such \\"model\\"; write one" >&2; exit 2'),
    "defect": Scenario("echo 'openmath: defect: KeyError: 7' >&2; exit 1"),
    "bad node": Scenario(
        "if [ $SLURMD_NODENAME = n1 ]; then echo '[rank0] ncclSystemError: System call failed' >&2; exit 1; fi", ARRAY
    ),
    "budget": Scenario("echo 'the machine failed' >&2; exit 77", "retries: 1"),
    "run's budget": Scenario("exit 77", "run_retries: 0"),
    "chained array": Scenario(
        'case "$*" in *second*) ;; *--shard*1/3*) [ -e "$marks/saved" ] || { touch "$marks/saved"; exit 75; }; '
        'sleep 1; touch "$marks/finished" ;; esac; case "$*" in *second*) [ -e "$marks/finished" ] || exit 3 ;; esac',
        ARRAY + "\nrequeue: chain",
    ),
    "refused": Scenario(f"{AGAIN}; [ $n -gt 0 ] || {{ scontrol update JobId=$SLURM_JOB_ID Requeue=0; exit 75; }}"),
    "stopped": Scenario(
        f'{AGAIN}; [ $n -gt 0 ] || {{ mkdir -p "$PWD/first/.heartbeat"; sleep 1; touch "$PWD/first/.heartbeat/rank-0"; '
        "kill -STOP $$; }",
        "hang_seconds: 3",
    ),
    "full disk": Scenario(f"{AGAIN}; [ $n -gt 0 ] || exit 75", stages=(FIRST,)),
    "peer": Scenario(f"{AGAIN}; [ $n -gt 0 ] || {{ echo 'RuntimeError: Connection closed by peer' >&2; exit 1; }}"),
    "peer of a defect": Scenario("echo 'RuntimeError: Connection closed by peer\nValueError: no' >&2; exit 1"),
    "signal": Scenario(f"{AGAIN}; [ $n -gt 0 ] || kill -SEGV $$"),
    "lost": Scenario("exit 0", "retries: 0"),
    "fruitless": Scenario("exit 75", "fruitless_leaves: 1"),
    "names": Scenario(
        'printf "%s\\n" "$@" >"$marks/words"', overrides=('a.b=it\'s "$HOME"; #c',), name='it\'s %j & "b" #c;$HOME'
    ),
    "ranks": Scenario(
        'case "$*" in *worker*) echo "$RANK $WORLD_SIZE $GLOO_SOCKET_IFNAME $SLURMD_NODENAME" >>"$marks/ranks"; '
        "[ $RANK != 1 ] || [ -e $marks/bad ] || echo $SLURMD_NODENAME >$marks/bad; "
        "[ ! -e $marks/bad ] || [ $SLURMD_NODENAME != $(<$marks/bad) ] || exit 77 ;; "
        '*--prepare*) ;; *) echo "$SLURM_JOB_NUM_NODES" >"$marks/finishing" ;; esac; exit 0',
        NODES,
        stages=(TRAIN,),
    ),
}


SCENARIOS["suspects of before"] = Scenario("exit 0", "sbatch: [--exclude=n4]", stages=(FIRST,))
SCENARIOS["more suspects than nodes"] = Scenario("exit 0", "stages: {train: {nodes: 3}}", stages=(TRAIN,))
SCENARIOS["two bad nodes"] = Scenario(
    'case "$*" in *worker*) [ -e $marks/again ] && exit 0; sleep 1; touch $marks/again; '
    '[ $RANK = 2 ] && exit 75; echo "rank $RANK: CUDA error: uncorrectable ECC error" >&2; exit 77 ;; esac',
    "stages: {train: {nodes: 3}}",
    stages=(TRAIN,),
)
SCENARIOS["hardware"] = Scenario(
    'case "$*" in *worker*) [ -e $marks/bad ] && exit 0; if [ $RANK = 2 ]; then '
    "echo 'rank 2: the machine failed (CUDA error: uncorrectable ECC error)' >&2; echo $SLURMD_NODENAME >$marks/node; "
    "fi; sleep 2; touch $marks/bad; exit 77 ;; esac",
    "stages: {train: {nodes: 3}}",
    stages=(TRAIN,),
)


@dataclass
class Outcome:
    """A run when all its jobs have ended."""

    folder: Path
    states: dict[str, str]
    marks: Path
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def ends(self, job: str) -> list[tuple[int, str]]:
        return [(e["code"], e["decision"]) for e in self.events[job] if e["event"] == "end"]

    def last(self, job: str) -> dict[str, Any]:
        return self.events[job][-1]

    def nodes(self, job: str) -> list[str]:
        return [e["nodes"] for e in self.events[job] if e["event"] == "start"]

    def log(self, job: str) -> str:
        return "".join(p.read_text() for p in (self.folder / "sbatch/logs").glob(f"*.{job}-*"))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm(tmp_path_factory.mktemp("slurm"), nodes=4, cpus=8))
        except SlurmNotStarted as error:
            pytest.skip(f"Slurm is installed and does not start here: {error}")
        yield environment


@pytest.fixture(scope="module")
def outcomes(rig: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    started = {name: _start(rig, tmp_path_factory.mktemp("run"), scenario) for name, scenario in SCENARIOS.items()}
    for outcome in started.values():
        outcome.states = wait_for(rig, outcome.folder, 100)
        for path in (outcome.folder / "sbatch/journal").glob("*.jsonl"):
            if path.is_file():
                outcome.events[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    return started


def _start(rig: dict[str, str], folder: Path, scenario: Scenario) -> Outcome:
    output, marks, programs = folder / scenario.name, folder / "marks", folder / "bin"
    marks.mkdir()
    programs.mkdir()
    for program in ("openmath", "python"):
        path = programs / program
        path.write_text(f"#!/bin/bash\nmarks={marks}\n{scenario.body}\n")
        path.chmod(0o755)
    file = folder / "cluster.yaml"
    file.write_text(
        f"environment: {{PATH: '{programs}:/usr/sbin:/usr/bin:/sbin:/bin'}}\nwarn_seconds: 50\n{scenario.cluster}\n"
    )
    cluster = load_cluster(file, [stage.name for stage in scenario.stages])
    script = write_scripts(plan_jobs(scenario.stages, cluster), cluster, folder / "r.yaml", output, scenario.overrides)
    if scenario is SCENARIOS["full disk"]:
        (output / "sbatch/journal/first.jsonl").symlink_to("/dev/full")
    if scenario is SCENARIOS["lost"]:
        start = {"time": 4102444800, "event": "start", "id": "1", "attempt": 1, "nodes": "n1", "progress": "0"}
        (output / "sbatch/journal/first.jsonl").write_text(json.dumps(start, separators=(",", ":")))  # cut: no line end
    if scenario is SCENARIOS["suspects of before"]:
        (output / "sbatch/suspects").write_text("n1 1 broken\nn2 2 broken\n")
    if scenario is SCENARIOS["more suspects than nodes"]:
        (output / "sbatch/suspects").write_text("".join(f"n{i} {i} broken\n" for i in range(1, 5)))
    subprocess.run(["bash", str(script)], env=rig, check=True, stdout=subprocess.DEVNULL)
    return Outcome(output, {}, marks)


def test_a_users_mistake_ends_the_job_and_those_behind_it(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["wrong input"]
    assert run.states == {"first": "FAILED", "second": "CANCELLED"}
    assert run.ends("first") == [(2, "failed")]
    assert run.last("first")["reason"] == 'exit code 2, wrong input: openmath: r.yaml:3: no such "model"; write one'
    assert outcomes["defect"].states == {"first": "FAILED", "second": "CANCELLED"}
    assert outcomes["defect"].ends("first") == [(1, "failed")]


def test_a_bad_node_is_avoided_after_its_first_failures(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["bad node"]
    assert set(run.states.values()) == {"COMPLETED"}
    node, _, reason = (run.folder / "sbatch/suspects").read_text().rstrip("\n").split(" ", 2)
    assert node == "n1"
    assert "ncclSystemError" in reason
    for job in run.events:  # on n1 once at most, and not last
        assert run.nodes(job).count("n1") <= 1
        assert run.nodes(job)[-1] != "n1"
    assert run.nodes("second") == [run.nodes("second")[-1]]  # it was waiting when the node became a suspect


def test_retries_are_counted_by_job_and_by_run(outcomes: dict[str, Outcome]) -> None:
    job, run = outcomes["budget"], outcomes["run's budget"]
    assert job.ends("first") == [(77, "queued again"), (77, "failed")]
    assert job.last("first")["reason"].endswith("the machine failed; that was retry 1 of 1")
    assert run.ends("first") == [(77, "failed")]
    assert run.last("first")["reason"].endswith("the run's retries are used up (0)")
    assert job.states["second"] == run.states["second"] == "CANCELLED"


def test_a_task_of_an_array_is_handed_on_and_those_behind_wait_for_the_new_job(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["chained array"]
    assert set(run.states.values()) == {"COMPLETED"}
    assert run.ends("first.0") == run.ends("first.2") == run.ends("second") == [(0, "done")]
    assert run.ends("first.1") == [(75, "handed on"), (0, "done")]
    (handed,) = [e for e in run.events["first.1"] if e["event"] == "end" and e["code"] == 75]
    submitted = [json.loads(line) for line in (run.folder / "sbatch/submitted.jsonl").read_text().splitlines()]
    assert submitted[-1] == {"job": "first", "id": handed["next"], "task": 1, "time": submitted[-1]["time"]}
    assert run.events["second"][0]["time"] >= run.last("first.1")["time"]


def test_where_requeue_is_refused_the_job_is_handed_on(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["refused"]
    assert run.ends("first") == [(75, "handed on"), (0, "done")]
    assert run.ends("second") == [(0, "done")]


def test_processes_that_are_stopped_are_killed_and_the_job_is_queued_again(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["stopped"]
    assert run.ends("first") == [(76, "queued again"), (0, "done")]
    assert run.ends("second") == [(0, "done")]
    assert run.events["first"][1]["event"] == "suspect"
    assert run.events["first"][2]["reason"] == "hang: no heartbeat for 3 s"
    assert run.nodes("first")[0] != run.nodes("first")[1]


def test_a_full_disk_loses_no_decision(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["full disk"]
    assert run.states == {"first": "COMPLETED"}
    assert '"decision":"queued again"' in run.log("first")  # what the journal did not take


def test_a_lost_connection_counts_where_no_other_error_is_told(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["peer"].ends("first") == [(1, "queued again"), (0, "done")]
    assert outcomes["peer of a defect"].ends("first") == [(1, "failed")]
    assert outcomes["signal"].ends("first") == [(139, "queued again"), (0, "done")]


def test_an_attempt_that_was_lost_with_its_node_costs_a_retry(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["lost"]
    assert run.ends("first") == [(1, "failed")]
    assert "killed from outside" in run.last("first")["reason"]


def test_a_job_that_leaves_again_and_again_without_saving_fails(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["fruitless"]
    assert run.states == {"first": "FAILED", "second": "CANCELLED"}
    assert "nothing new was saved" in run.last("first")["reason"]


def test_names_and_values_arrive_as_written(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["names"]
    assert set(run.states.values()) == {"COMPLETED"}
    assert (run.marks / "words").read_text().splitlines()[-1] == 'a.b=it\'s "$HOME"; #c'
    assert run.events["first"][0]["log"].startswith(f"{run.folder}/sbatch/logs/")


def test_ranks_start_elsewhere_without_the_node_that_failed(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["ranks"]
    assert run.ends("train") == [(77, "queued again"), (0, "done")]
    bad = (run.marks / "bad").read_text().strip()
    assert [e["node"] for e in run.events["train"] if e["event"] == "suspect"] == [bad]
    ranks = [line.split() for line in (run.marks / "ranks").read_text().splitlines()]
    assert sorted(ranks[-3:])[0][:3] == ["0", "3", "lo"]
    assert bad not in {line[3] for line in ranks[-3:]}
    assert (run.marks / "finishing").read_text() == "1\n"  # the other nodes were given back


def test_the_rank_that_tells_of_its_hardware_names_the_node(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["hardware"]
    assert run.ends("train") == [(77, "queued again"), (0, "done")]
    assert (run.folder / "sbatch/suspects").read_text().split()[0] == (run.marks / "node").read_text().strip()


def test_suspects_are_avoided_as_long_as_enough_nodes_are_left(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["suspects of before"]
    assert run.nodes("first") == ["n3"]  # n1 and n2 are suspects, n4 is excluded by the user
    many = outcomes["more suspects than nodes"]
    assert many.ends("train") == [(0, "done")]
    assert many.nodes("train") == ["n[1-3]"]  # one can be spared: the newest
    bad = outcomes["two bad nodes"]
    assert bad.ends("train") == [(77, "queued again"), (0, "done")]
    assert len((bad.folder / "sbatch/suspects").read_text().splitlines()) == 2  # of four nodes, and it needs three
