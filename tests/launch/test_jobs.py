"""`openmath jobs`: what is said of runs in odd states. Files are written by hand, and squeue says what it is told."""

from __future__ import annotations

import json
import os
import time
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.launch.run_files import read_run
from nemo_openmath.launch.run_state import run_state
from nemo_openmath.launch.slurm_query import why_pending
from nemo_openmath.launch.view_graph import Node, direct, graph_lines, graph_svg
from nemo_openmath.launch.view_status import status_data, status_lines

NOW = 1_800_000_000


def planned(name: str, *after: str, array: int = 1, work: str = "stage", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "k", "work": work, "stages": [name], "after": list(after), "array": array, **more}


class Launched:
    """A launched run, written by hand."""

    def __init__(self, folder: Path, *jobs: dict[str, Any]):
        self.output = folder / "run"
        self.sbatch = self.output / "sbatch"
        for name in ("journal", "logs", "bin"):
            (self.sbatch / name).mkdir(parents=True)
        (self.sbatch / "jobs.json").write_text(json.dumps({"format": 1, "jobs": jobs}))
        self.rows: list[str] = []

    def submitted(self, **ids: str) -> Launched:
        with (self.sbatch / "submitted.jsonl").open("a") as file:
            for job, id in ids.items():
                file.write(json.dumps({"job": job, "id": id, "task": None, "time": NOW - 1000}) + "\n")
        return self

    def event(self, journal: str, event: str, id: str = "1", ago: float = 500, **fields: Any) -> Launched:
        line = json.dumps({"time": NOW - ago, "event": event, "id": id, "attempt": 1, **fields})
        with (self.sbatch / f"journal/{journal}.jsonl").open("a") as file:
            file.write(line + "\n")
        return self

    def squeue(self, id: str, state: str, reason: str = "None", elapsed: str = "1:40", nodes: str = "n1") -> Launched:
        row = [id, state, reason, elapsed, "1:00:00", "58:20", "N/A", "N/A", nodes, str(self.output)]
        self.rows.append("\x1f".join(row))
        return self

    def state(self, monkeypatch: pytest.MonkeyPatch, slurm: bool = True) -> dict[str, Any]:
        """What `openmath jobs status --json` says, by job."""
        program = self.sbatch / "bin/squeue"
        (self.sbatch / "rows").write_text("\n".join(self.rows) + "\n")
        program.write_text(f"#!/bin/sh\n/bin/cat {self.sbatch}/rows\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(self.sbatch / "bin") if slurm else str(self.output))
        self.whole = run_state(read_run(self.output), NOW)
        self.text = "\n".join(line.plain for line in status_lines(self.whole))
        data = status_data(self.whole)
        assert json.loads(json.dumps(data)) == data
        return {"": data["state"]} | {job["name"]: job for job in data["jobs"]}


def test_a_failure_is_told_with_its_reason_and_stops_what_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without Slurm: it has forgotten all of them."""
    jobs = [
        planned("a"),
        planned("b", "a"),
        planned("c", "b"),
        planned("d"),
        planned("report", "c", "d", work="report"),
    ]
    odd = Launched(tmp_path, *jobs).submitted(a="1", b="2", c="3", d="4", report="5")
    odd.event("a", "start", nodes="n[1-2]").event("a", "end", ago=400, code=2, decision="failed", reason="bad row")
    odd.event("d", "start", "4").event("d", "end", "4", ago=300, code=0, decision="done")
    odd.event("report", "start", "5").event("report", "end", "5", ago=300, code=0, decision="done")
    for slurm in (True, False):
        said = odd.state(monkeypatch, slurm)
        assert {n: j["state"] for n, j in said.items() if n} == {
            "a": "failed", "b": "cancelled", "c": "cancelled", "d": "done", "report": "done",
        }  # fmt: skip
        assert said[""] == "failed"
        assert said["a"]["reason"] == "bad row (exit code 2)"
        assert said["b"]["reason"] == said["c"]["reason"] == "because a failed"
        assert ("no Slurm on this machine" in odd.text) == (not slurm)
        assert odd.text.endswith(f"to go on, once what is named is mended: openmath jobs resume {odd.output}")


def test_a_job_that_nobody_knows_and_that_wrote_no_end_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Launched(tmp_path, planned("a"), planned("b", "a")).submitted(a="1", b="2").event("a", "start")
    said = odd.state(monkeypatch)
    assert (said["a"]["state"], said["b"]["state"]) == ("gone", "cancelled")
    assert said["a"]["reason"].startswith("killed from outside")
    assert odd.state(monkeypatch, slurm=False)["a"]["state"] == "running"  # as far as its files tell
    known = run_state(read_run(odd.output), NOW, ended=True)
    assert [view.state for view in known.jobs.values()] == ["gone", "cancelled"]
    (odd.output / "a").mkdir()
    (odd.output / "a/manifest.json").write_text("{}")  # it had been finished all the same
    os.utime(odd.output / "a/manifest.json", (NOW, NOW))
    assert odd.state(monkeypatch)["a"]["state"] == "done"


def test_an_array_is_summed_up_and_its_worst_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Launched(tmp_path, planned("a", array=4)).submitted(a="7")
    odd.event("a.0", "start", "7").event("a.0", "end", "7", code=0, decision="done")
    odd.event("a.1", "start", "8").event("a.1", "end", "8", code=1, decision="failed", reason="no space left")
    odd.squeue("7_2", "RUNNING").squeue("7_3", "PENDING", "JobArrayTaskLimit")
    said = odd.state(monkeypatch)
    assert "tasks: 1 of 4 done, 1 running, 1 queued, 1 failed" in odd.text
    assert "task 1: no space left (exit code 1)" in odd.text
    assert said["a"]["state"] == "running"
    assert [t["state"] for t in said["a"]["tasks"]] == ["done", "failed", "running", "queued"]


def test_a_job_that_is_queued_again_or_handed_on_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Launched(tmp_path, planned("a"), planned("b"), planned("c", "a")).submitted(a="1", b="2", c="9")
    odd.event("a", "start")  # lost with its node
    odd.event("a", "start").event("a", "end", code=1, decision="queued again", reason="NCCL: link down", costs=1)
    odd.squeue("1", "PENDING", "BeginTime", "0:00", "").squeue("9", "PENDING", "Dependency", "0:00", "")
    odd.event("b", "start", "2").event("b", "end", "2", code=75, decision="handed on", next="5")
    odd.submitted(b="5").squeue("5", "RUNNING").event("b", "start", "5", ago=100, attempt=2)
    said = odd.state(monkeypatch)
    assert (said["a"]["state"], said["a"]["retries_spent"]) == ("queued again", 2)
    assert said["a"]["reason"].startswith("NCCL: link down; waits for its begin time")
    assert (said["b"]["state"], said["b"]["tasks"][0]["id"], said["b"]["tasks"][0]["attempt"]) == ("running", "5", 2)
    assert said["c"]["reason"] == "after a"


def test_a_second_launch_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Launched(tmp_path, planned("a"), planned("b", "a")).submitted(a="1", b="2")
    odd.event("a", "start").event("a", "end", code=0, decision="done")
    odd.event("b", "start", "2", nodes="n1").event("b", "end", "2", code=2, decision="failed", reason="bad row")
    odd.submitted(a="12", b="13").squeue("12", "PENDING", "Priority", "0:00", "")
    said = odd.squeue("13", "PENDING", "Dependency", "0:00", "").state(monkeypatch)
    assert (said["a"]["state"], said["a"]["reason"]) == ("queued", "others have a higher priority")
    assert (said["b"]["state"], said["b"]["reason"]) == ("queued", "after a")
    odd.event("a", "start", "12").event("a", "end", "12", code=2, decision="failed", reason="no such file")
    odd.rows.clear()
    said = odd.squeue("13", "CANCELLED", "Dependency", "0:00", "").state(monkeypatch)
    assert (said["b"]["state"], said["b"]["reason"]) == ("cancelled", "because a failed")


def test_progress_servers_and_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [planned("server.m", work="server"), planned("a", servers=["server.m"]), planned("t", work="training")]
    odd = Launched(tmp_path, *jobs).submitted(**{"server.m": "1", "a": "2", "t": "3"})
    odd.event("server.m", "start").event("server.m", "ready", ago=400).squeue("1", "RUNNING").squeue("2", "RUNNING")
    (odd.sbatch / "servers/m").mkdir(parents=True)
    (odd.sbatch / "servers/m/0.url").write_text("http://n1:8000\n")
    (odd.sbatch / "code.json").write_text('{"digest": "x"}')
    odd.event("a", "start", "2").event("a", "code", "2", version="0.3", commit=None, digest="y")
    (odd.output / ".progress").mkdir()
    note = {"done": 250, "total": 1000, "failed": 3, "rate": 2.5, "time": NOW}
    (odd.output / ".progress/a.00000-of-00001.json").write_text(json.dumps(note))
    odd.event("t", "start", "3").squeue("3", "RUNNING")
    (odd.output / "t").mkdir()
    steps = [json.dumps({"step": i, "seconds": 2.0}) for i in range(1, 11)]
    (odd.output / "t/metrics.jsonl").write_text("\n".join([*steps, '{"step": 11, "sec']))  # torn by a kill
    os.utime(odd.output / "t/metrics.jsonl", (NOW, NOW))
    (odd.output / "t/job.yaml").write_text('{"data": {"steps": 40}}')
    (odd.output / "t/.heartbeat").mkdir()
    (odd.output / "t/.heartbeat/rank0").touch()
    os.utime(odd.output / "t/.heartbeat/rank0", (NOW - 300, NOW - 300))
    said = odd.state(monkeypatch)
    assert "no sign of life for 5 min 00 s: it may hang" in odd.text
    assert (said["server.m"]["state"], said["server.m"]["addresses"]) == ("ready", ["http://n1:8000"])
    assert said["a"]["progress"]["seconds_left"] == 300
    assert "250 of 1,000 units, 3 failed, 2.5 a second, ends " in odd.text
    assert "step 10 of 40, 2 s a step, ends " in odd.text
    assert "(in 1 min 00 s), 58 min 20 s left of the time limit" in odd.text
    assert said["a"]["other_code"] == "ran version 0.3, which is not the code of the launch"
    os.utime(odd.output / "t/metrics.jsonl", (NOW - 240, NOW - 240))
    (odd.sbatch / "servers/m/0.url").unlink()
    said = odd.state(monkeypatch)
    assert "step 10 of 40, nothing new for 1 min 40 s, 58 min 20 s left of the time limit" in odd.text
    assert said["server.m"]["state"] == "starting"
    assert said["a"]["reason"] == "asks server.m, which is starting"
    assert said["server.m"]["reason"] == "it has answered, and none of its servers does now"


def test_what_is_no_launched_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = Launched(tmp_path, planned("train1", array=2))
    out = odd.output
    (odd.output / "old").mkdir()
    (odd.output / "old/manifest.json").write_text("{}")
    for words, line in (
        (f"status {tmp_path}", f"{tmp_path}: no launched run here (no sbatch/jobs.json); give the --output of launch"),
        (f"status {odd.sbatch}", f"{out}/sbatch: is a folder of a launched run; name the run: {out}"),
        (f"logs {out} trian1", f"{out}: no job or stage 'trian1' in this run; did you mean 'train1'?"),
        (f"logs {out} train1.2", f"{out}: no task 2 of 'train1': it has tasks 0 to 1; name train1, or one of them"),
        (f"logs {out} old", f"{out}: stage 'old' was finished before the launch; it has no job"),
        (f"watch {out}", f"not submitted: {out}: 0 of 1 jobs done; submit it: bash {out}/sbatch/submit.sh"),
    ):  # fmt: skip
        assert run(["jobs", *words.split()]) is ExitCode.USER_ERROR
        assert capsys.readouterr().err == f"openmath: {line}\n"


def test_logs_of_an_attempt(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    odd = Launched(tmp_path, planned("a")).submitted(a="1")
    log = odd.sbatch / "logs/run.a-1.out"
    odd.event("a", "start", log=str(log)).event("a", "end", code=1, decision="queued again")
    odd.event("a", "start", log=str(log), attempt=2).event("a", "end", code=0, decision="done")
    log.write_text("--- attempt 1 of a: job 1\nfirst\n--- attempt 2 of a: job 1\nsecond\n")
    (odd.output / "a/stacks").mkdir(parents=True)
    (odd.output / "a/stacks/rank0.txt").write_text("")
    assert run(["jobs", "logs", str(odd.output), "a", "--attempt", "1"]) is ExitCode.OK
    told = capfdbinary.readouterr()
    assert told.out == b"--- attempt 1 of a: job 1\nfirst\n"
    assert f"stacks of a hang: {odd.output}/a/stacks (1 files)".encode() in told.err
    assert run(["jobs", "logs", str(odd.output), "a", "-n", "1"]) is ExitCode.OK
    assert capfdbinary.readouterr().out == b"second\n"


def test_reasons_of_slurm_in_words() -> None:
    assert why_pending("(Resources)") == "waits for free nodes"
    assert why_pending("ReqNodeNotAvail, UnavailableNodes:n[1-2]").endswith("reserved (n[1-2])")
    assert why_pending("QOSMaxWallDurationPerJobLimit").startswith("a limit of your QOS is reached (QOSMaxWall")


def test_a_graph_of_many_jobs_fits(tmp_path: Path) -> None:
    names = [f"a-stage-with-a-long-name-{i}" for i in range(60)]
    nodes = [Node(name, tuple(names[max(0, i - 9) : i])) for i, name in enumerate(names)]
    assert direct(nodes)[nodes[9].name] == (nodes[8].name,)  # the others are implied
    wide = [*nodes, Node("<end>", tuple(f"x{i}" for i in range(40)), "failed")]
    lines = graph_lines([*(Node(f"x{i}", ()) for i in range(40)), *wide])
    assert max(map(len, lines)) <= 100
    assert lines[-1].endswith(" more")
    picture = xml.dom.minidom.parseString(graph_svg(wide, 'the jobs of "a" & <b>'))
    assert len(picture.getElementsByTagName("rect")) == 61
    assert picture.documentElement.getAttribute("aria-label") == 'the jobs of "a" & <b>'


@pytest.mark.manual
def test_many_jobs_are_read_in_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 stages of 64 tasks."""
    names = [f"stage{i}" for i in range(60)]
    odd = Launched(tmp_path, *(planned(name, *names[max(0, i - 1) : i], array=64) for i, name in enumerate(names)))
    odd.submitted(**{name: str(1000 + 100 * i) for i, name in enumerate(names)})
    for i, name in enumerate(names):
        for task in range(64):
            odd.event(f"{name}.{task}", "start", str(1000 + 100 * i + task))
            odd.squeue(f"{1000 + 100 * i}_{task}", "RUNNING")
            for file in (f".progress/{name}.{task:05d}-of-00064.json", f"{name}/.heartbeat/{task:05d}-of-00064"):
                (odd.output / file).parent.mkdir(parents=True, exist_ok=True)
                (odd.output / file).write_text('{"done": 250, "total": 1000, "failed": 3, "rate": 2.5, "time": 1}')
    begun = time.perf_counter(), time.process_time()
    odd.state(monkeypatch)
    seconds = time.process_time() - begun[1]
    print(f"{seconds:.2f} s of work, {time.perf_counter() - begun[0]:.2f} s waited")
    assert seconds < 1
