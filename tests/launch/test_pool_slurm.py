"""A pool of servers and an array that asks it, on a real Slurm (by hand: `make test-slurm`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.core.records import Generation, read_records
from tests.launch.slurm_rig import missing_programs, slurm, wait_for
from tests.launch.test_serving import until

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.manual,
    pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed here"),
]
RECIPE = f"""\
name: pool
student: {{max_context: 512, threads: 1}}
sandbox: {{workers: 1}}
partitions: 6
stages:
  benchmark: {{run: demo.benchmark, problems: 40}}
  solved: {{run: rollout.generate, from: benchmark, engine: {ROOT}/examples/base, samples: 16, max_tokens: 64}}
"""
CLUSTER = f"""\
environment: {{OMP_NUM_THREADS: "1", PATH: "{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}}
warn_seconds: 50
default: {{time: "00:20:00"}}
servers: {{base: {{engine: openmath, jobs: 2, memory: 500M, start_seconds: 120, max_model_len: 512}}}}
stages: {{solved: {{array: 3}}}}
"""


def openmath(*arguments: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "nemo_openmath.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def solutions(run: Path) -> dict[str, tuple[str, str]]:
    """What was generated, by id."""
    return {
        g.id: (str(g.finish), getattr(g.transcript, "digest", "")) for g in read_records(run / "solved", Generation)
    }


def test_an_array_asks_a_pool_one_of_whose_servers_is_killed(tmp_path: Path) -> None:
    """Its results are those of the same recipe on this machine, and the servers end when nobody needs them."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "slurm").mkdir()
    recipe, run = str(tmp_path / "recipe.yaml"), tmp_path / "run"
    with slurm(tmp_path / "slurm", nodes=4) as rig:
        rig = {**rig, "http_proxy": "http://127.0.0.1:9"}  # no job may ask a proxy for its own node
        openmath("launch", recipe, "--cluster", f"{tmp_path}/cluster.yaml", "--output", str(run), environment=rig)
        urls = run / "sbatch/servers/base"
        until(lambda: list(urls.glob("*.url")), 240)
        name = next(urls.glob("*.url")).name
        os.kill(server_of(run, name[0]), signal.SIGKILL)
        assert set(wait_for(rig, run, 400).values()) == {"COMPLETED"}
    journals = (run / "sbatch/journal").glob("server.base.*.jsonl")
    ends = [json.loads(journal.read_text().splitlines()[-1]) for journal in journals]
    assert [(end["event"], end["decision"]) for end in ends] == [("end", "done")] * 2
    assert not list(urls.glob("*.url"))
    logs = (run / "sbatch/logs").glob("run.server.base-*.out")
    assert sum(log.read_text().count("started again (1 of 3)") for log in logs) == 1
    openmath("recipe", "run", recipe, "--output", str(tmp_path / "local"), environment=dict(os.environ))
    assert solutions(run) == solutions(tmp_path / "local")


def server_of(run: Path, task: str) -> int:
    """The process of the server that a task of the pool watches."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_bytes().split(b"\0")
            words = (environ.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = f"OPENMATH_FOLDER={run}/sbatch/servers/base".encode() in variables
        if ours and f"OPENMATH_FILE={task}".encode() in variables and b"serve" in words:
            return int(environ.parent.name)
    raise AssertionError("no server runs")
