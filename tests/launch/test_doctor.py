"""``openmath doctor``: what each probe makes of what it sees, that nothing hangs, and one look at this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.launch import load_cluster
from nemo_openmath.launch.doctor import (
    Colour,
    Finding,
    Report,
    accelerators,
    machine,
    meeting,
    network,
    report_lines,
    schedulers,
    software,
    storage,
)
from nemo_openmath.launch.doctor.finding import FindingGroup
from nemo_openmath.launch.doctor.nodes import Visit, differences, plan_visits
from nemo_openmath.launch.doctor.probing import Probe, run_probes
from nemo_openmath.launch.doctor.show import WIDTH, node_lines
from nemo_openmath.launch.doctor.system import CommandAnswer, System
from tests.launch.slurm_rig import missing_programs, slurm

GREEN, YELLOW, RED, NOT_HERE = Colour.GREEN, Colour.YELLOW, Colour.RED, Colour.NOT_HERE
SMI = "0, NVIDIA H100 80GB HBM3, 81559, {used}, 550.54, {errors}, Default\n"
CONFIG = "JobRequeue = 1\nKillWait = 30 sec\nMaxArraySize = 1001\nPreemptMode = REQUEUE\nSLURM_VERSION = 23.11.4\n"
UNLIMITED = -1


def system(tmp_path: Path, answers: dict[str, CommandAnswer] | None = None, **environment: str) -> System:
    (tmp_path / "root").mkdir(exist_ok=True)
    return System(tmp_path, tmp_path / "root", environment, lambda words, limit_s=0: (answers or {}).get(words[0]))


def mount(kind: str, *options: str) -> storage.Mount:
    return storage.Mount("/shared", kind, "server:/x", options or ("rw",))


@pytest.mark.parametrize(
    ("finding", "colour"),
    [
        (software.packages([Requirement("numpy>=2,<3")], {"numpy": "2.1"}.get), GREEN),
        (software.packages([Requirement("numpy>=2,<3")], {"numpy": "1.9"}.get), YELLOW),
        (software.packages([Requirement("numpy>=2,<3")], {}.get), RED),
        (software.packages([Requirement("megatron-core==0.16.1")], {"megatron-core": "0.15"}.get), RED),
        (software.torch(("2.13.0+cpu", None), 0), GREEN),
        (software.torch(("2.13.0+cpu", None), 8), RED),
        (software.torch(("2.13.0", "12.8"), 0), GREEN),
        (software.compiler({"PATH": "/nowhere"}), YELLOW),
        (accelerators.runtime((12, 8), "12.8"), GREEN),
        (accelerators.runtime((12, 4), "12.8"), YELLOW),
        (accelerators.runtime((12, 8), "13.0"), RED),
        (machine.processors(64, 8, None), GREEN),
        (machine.processors(64, 64, 4.0), YELLOW),
        (machine.shared_memory(64 << 20, 8), RED),
        (machine.shared_memory(64 << 20, 0), YELLOW),
        (machine.limit("open files", 1024, 1024, infiniband=False), RED),
        (machine.limit("open files", 1024, 65536, infiniband=False), YELLOW),
        (machine.limit("address space", 8 << 30, UNLIMITED, infiniband=False), RED),
        (machine.limit("address space", UNLIMITED, UNLIMITED, infiniband=False), GREEN),
        (machine.limit("size of files", 1 << 30, 1 << 30, infiniband=False), RED),
        (machine.limit("locked memory", 8 << 20, 8 << 20, infiniband=True), RED),
        (machine.limit("locked memory", UNLIMITED, UNLIMITED, infiniband=True), GREEN),
        (network.host_name("n1", ["127.0.1.1"], cluster=True), YELLOW),
        (network.host_name("laptop", ["127.0.1.1"], cluster=False), GREEN),
        (network.host_name("n1", [], "unknown", cluster=True), RED),
        (network.proxies({"http_proxy": "http://proxy"}), YELLOW),
        (network.proxies({"http_proxy": "http://proxy", "no_proxy": "localhost,127.0.0.1"}), GREEN),
        (storage.kind("/shared/run", mount("nfs4"), cluster=True), GREEN),
        (storage.kind("/shared/run", mount("nfs4", "rw", "local_lock=all"), cluster=True), YELLOW),
        (storage.kind("/shared/run", mount("lustre", "rw", "localflock"), cluster=True), YELLOW),
        (storage.kind("/shared/run", mount("ext4"), cluster=True), YELLOW),
        (storage.kind("/shared/run", mount("ext4"), cluster=False), GREEN),
        (storage.kind("/shared/run", mount("ext4", "ro"), cluster=False), RED),
        (storage.locks({"flock": None, "fcntl": None}), YELLOW),
        (storage.locks({"flock": False, "fcntl": True}), RED),
        (storage.clock(100.0, 100.0, 100.1), GREEN),
        (storage.clock(90.0, 100.0, 100.1), YELLOW),
        (storage.speed(8 << 20, 1.0, 0.1, True), YELLOW),
        (storage.space(1 << 20, 1 << 40), RED),
        (meeting.clock(-4.0), YELLOW),
        (meeting.listing(30.0), YELLOW),
    ],
)  # fmt: skip
def test_what_is_seen_has_its_colour_and_its_remedy(finding: Finding, colour: Colour) -> None:
    assert finding.colour is colour, finding.text
    assert bool(finding.remedy) == (colour is not GREEN)


def colours(findings: Iterator[Finding]) -> dict[str, Colour]:
    return {finding.name: finding.colour for finding in findings}


def test_commands_and_devices_are_read(tmp_path: Path) -> None:
    """GPUs with errors and in use, Slurm's configuration, a controller that is away, InfiniBand, control groups."""
    smi = {"nvidia-smi": CommandAnswer(0, SMI.format(used=9000, errors=2))}
    assert colours(accelerators.look_at_driver(system(tmp_path, smi))) == {
        "GPUs": GREEN, "memory errors": RED, "memory in use": YELLOW,
    }  # fmt: skip
    assert colours(accelerators.look_at_driver(system(tmp_path, {"nvidia-smi": CommandAnswer(9, "no driver")}))) == {
        "GPUs": RED
    }
    assert colours(accelerators.look_at_driver(system(tmp_path))) == {"GPUs": NOT_HERE}
    nodes = "batch|up|3|1:00:00|64|500000|gpu:8|idle\nbatch|up|1|1:00:00|64|500000|gpu:8|down*\n"
    nodes += "old|up|2|1|8|1|(null)|drained\n"
    answers = {"scontrol": CommandAnswer(0, CONFIG), "sinfo": CommandAnswer(0, nodes)}
    answers |= dict.fromkeys(("sbatch", "srun", "squeue", "scancel"), CommandAnswer(0, "slurm 23.11.4"))
    assert colours(schedulers.look_at_slurm(system(tmp_path, answers))) == {
        "Slurm": GREEN, "requeue": GREEN, "end of a job": GREEN, "arrays": GREEN, "partition batch": GREEN,
        "partition old": YELLOW,
    }  # fmt: skip
    assert colours(schedulers.look_at_slurm(system(tmp_path, {"scontrol": CommandAnswer(1, "away")}))) == {
        "Slurm": YELLOW
    }
    assert colours(schedulers.look_at_slurm(system(tmp_path))) == {"Slurm": NOT_HERE}
    here = system(tmp_path)
    ports = here.root / "sys/class/infiniband/mlx5_0/ports"
    for number, state in (("1", "4: ACTIVE"), ("2", "1: DOWN")):
        (ports / number).mkdir(parents=True)
        (ports / number / "state").write_text(state)
    assert colours(network.look_at_infiniband(here))["InfiniBand"] is YELLOW
    group = here.root / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (here.root / "proc/self").mkdir(parents=True)
    (here.root / "proc/self/cgroup").write_text("0::/job/step\n")
    (group / "cpu.max").write_text("400000 100000\n")
    assert machine.cgroup_processors(here) == 4
    wrong = {"GLOO_SOCKET_IFNAME": "eth9", "NCCL_SOCKET_IFNAME": "eth", "NCCL_IB_DISABLE": "1"}
    assert colours(network.variables(wrong, ["lo", "eth0"], infiniband=True)) == {
        "GLOO_SOCKET_IFNAME": RED, "NCCL_IB_DISABLE": YELLOW, "variables": GREEN,
    }  # fmt: skip
    (here.root / "proc/self/mountinfo").write_text("36 35 98:0 / / rw - nfs4 server:/x rw\n")
    told = {
        "quota": CommandAnswer(0, "Disk quotas for user u:\n  Filesystem blocks quota limit\nserver:/x 95* 100 110 0\n")
    }
    (own,) = storage.quota(replace(here, ask=system(tmp_path, told).ask), tmp_path)
    assert (own.colour, own.text) == (YELLOW, "0 MiB of 0 MiB used")
    line = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - lustre mgs:/x rw,flock"
    assert storage.mounts(line) == [storage.Mount("/mnt/a b", "lustre", "mgs:/x", ("rw", "noatime", "rw", "flock"))]


def test_a_probe_that_hangs_or_crashes_is_red_and_holds_up_nobody(tmp_path: Path) -> None:
    group = FindingGroup("tests")

    def hangs(_: System) -> Iterator[Finding]:
        threading.Event().wait()
        yield group.green("never", "")

    def crashes(_: System) -> Iterator[Finding]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield group.green("never", "")

    def fails(_: System) -> Iterator[Finding]:
        yield group.green("before", "")
        raise OSError("gone")

    def looks(_: System) -> Iterator[Finding]:
        print("what a library says")
        yield group.green("well", "all is", number=1)

    begun = time.monotonic()
    probes = [Probe("tests", look.__name__, look, 0.5, "mend it") for look in (hangs, crashes, fails, looks)]
    findings = run_probes(probes, system(tmp_path))
    assert time.monotonic() - begun < 5
    assert [f.text for f in findings] == [
        "no answer within 0.5 s", "the probe was ended by SIGKILL", "OSError: gone", "all is",
    ]  # fmt: skip
    assert [f.colour for f in findings] == [RED, RED, RED, GREEN]
    report = Report("n1", 0.0, "/x", findings)
    assert report.exit_code is ExitCode.USER_ERROR
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    lines = [line.plain for line in report_lines(Report("n1", 0.0, "/x", [group.red("n", "word " * 60, "cure " * 40)]))]
    assert max(map(len, lines)) <= WIDTH
    assert sum("-> cure" in line for line in lines) == 1


def test_nodes_meet_and_compare_their_clocks(tmp_path: Path) -> None:
    """Where the first never comes, the others say so."""
    (tmp_path / "met").mkdir()
    places = [meeting.Meeting(tmp_path / "met", rank, 3, limit_s=20) for rank in range(3)]
    answers: dict[int, list[Finding]] = {}
    threads = [
        threading.Thread(target=lambda rank=rank: answers.update({rank: list(places[rank].findings())}))
        for rank in (1, 2, 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0][0].text == "2 of 2 others came"
    for rank in (1, 2):
        assert [f.colour for f in answers[rank]] == [GREEN] * len(answers[rank])
        assert abs(answers[rank][1].values["offset_s"]) < 0.5
    alone = meeting.Meeting(tmp_path / "alone", 1, 2, limit_s=0.2)
    assert [f.colour for f in alone.findings()] == [RED]
    job = system(tmp_path, SLURM_NNODES="4", SLURM_JOB_ID="7", SLURM_PROCID="3")
    assert meeting.Meeting.of_job(tmp_path, job) == meeting.Meeting(tmp_path / ".meeting-7-0", 3, 4)


def test_nodes_of_a_partition_are_compared(tmp_path: Path) -> None:
    """A job for each partition and container; the table shows what is not green everywhere, and what differs."""
    text = "partition: batch\nkinds: {training.sft: {gpus: 8}, rollout.generate: {gpus: 2, partition: small}}\n"
    text += "roles: {cpu: {partition: cores}}\nservers: {teacher: {engine: vllm, gpus: 4, model: /m, jobs: 1}}\n"
    (tmp_path / "c.yaml").write_text(text)
    cluster = load_cluster(tmp_path / "c.yaml", None)
    jobs = {job.name: job.gpus for job in plan_visits(cluster, None, 2)}
    assert jobs == {"doctor.cores": 0, "doctor.batch": 8, "doctor.small": 2}
    with pytest.raises(UserError, match="did you mean 'small'"):
        plan_visits(cluster, "smal", 2)
    group = FindingGroup("software")
    reports = [
        Report("n1", 0.0, "/x", [group.green("torch", "2.13", version="2.13"), group.not_here("vLLM")]),
        Report("n2", 0.0, "/x", [group.yellow("torch", "2.12", "update it", version="2.12"), group.not_here("vLLM")]),
    ]
    assert list(differences(reports)) == [("software: torch", "version", {'"2.13"': ["n1"], '"2.12"': ["n2"]})]
    (job,) = plan_visits(cluster, "batch", 2)
    lines = [line.plain.rstrip() for line in node_lines([Visit(job, "7", "", reports)])]
    assert lines[0] == "partition batch: 2 of 2 nodes"
    assert any(line.split() == ["software", "torch", ".", "Y"] for line in lines)
    assert any("n2: 2.12" in line for line in lines)
    assert not any("vLLM" in line for line in lines)


@pytest.mark.manual
@pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed here")
def test_nodes_of_a_real_slurm_are_looked_at(tmp_path: Path) -> None:
    """Two nodes meet; a partition whose nodes lack what the file asks for is red, and the others are looked at."""
    (tmp_path / "slurm").mkdir()
    bin_folder, cluster = tmp_path / "bin", tmp_path / "cluster.yaml"
    bin_folder.mkdir()
    program = bin_folder / "openmath"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m nemo_openmath.cli.main "$@"\n')
    program.chmod(0o755)
    text = f'environment: {{PATH: "{bin_folder}:/usr/sbin:/usr/bin:/sbin:/bin"}}\nwarn_seconds: 50\npartition: batch\n'
    cluster.write_text(text + "kinds: {training.sft: {gpus: 8, partition: urgent}}\n")
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "doctor", "--json", "--cluster", str(cluster)]
    with slurm(tmp_path / "slurm") as environment:
        words = [*command, "--output", str(tmp_path / "run")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    by_partition = {row["partition"]: row for row in json.loads(done.stdout)["partitions"]}
    assert "sbatch: error" in by_partition["urgent"]["problem"]
    reports = by_partition["batch"]["reports"]
    assert [report["host"] for report in reports] == ["n1", "n2"]
    texts = {f["text"] for report in reports for f in report["findings"] if f["group"] == "other nodes"}
    assert "1 of 1 others came" in texts
    assert not (tmp_path / "run").exists()


def test_this_machine_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU and a cluster nothing of them is red; the folder is left as it was."""
    begun = time.monotonic()
    code = run(["doctor", "--output", str(tmp_path / "not there yet"), "--json"])
    assert time.monotonic() - begun < 30
    report = json.loads(capsys.readouterr().out)
    by_name = {(f["group"], f["name"]): f for f in report["findings"]}
    assert report["host"] == socket.gethostname()
    assert len(by_name) > 40
    assert by_name["software", "sandbox"]["colour"] == "green"
    assert by_name["storage", "locks"]["values"] == {"flock": True, "fcntl": True}
    red = [f for f in report["findings"] if f["colour"] == "red"]
    assert code is (ExitCode.USER_ERROR if red else ExitCode.OK)
    assert not [f for f in red if f["group"] in ("GPU", "Slurm", "containers", "network")]
    assert not list(tmp_path.iterdir())


def test_words_that_would_be_passed_over_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(["doctor", "--output", str(tmp_path / "file")]) is ExitCode.USER_ERROR
    assert "--output is a file; name a folder" in capsys.readouterr().err
    assert run(["doctor", "--nodes", "4"]) is ExitCode.USER_ERROR
    assert "--nodes is of a cluster; add --cluster FILE" in capsys.readouterr().err


def test_a_package_that_a_folder_of_pythonpath_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(software.hidden(["pytest", "PyYAML"], str(tmp_path)))
    (tmp_path / "networkx.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "networkx", raising=False)
    (found,) = software.hidden(["networkx"], str(tmp_path))
    assert found.colour is RED
    assert f"networkx is read from {tmp_path}/networkx.py, which hides" in found.text
