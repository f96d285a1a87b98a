"""`openmath launch`: cluster files, jobs and their scripts, without a Slurm."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.launch import (
    TEMPLATES,
    AskedModel,
    SlurmJob,
    StageInfo,
    load_cluster,
    plan_jobs,
    submit,
    write_scripts,
)
from nemo_openmath.launch.cluster import GpuKind
from nemo_openmath.launch.scripts import COPIED
from nemo_openmath.launch.values import time_limit
from nemo_openmath.training.planning.gpus import GPUS

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "launcher_scripts"

TEACHER = AskedModel("teacher", "/models/teacher", "big-model", urls=("http://127.0.0.1:8000/v1",))
MODEL = AskedModel("model", "/runs/model", "/runs/model", "model", urls=())
STAGES = [
    StageInfo("problems", "problems.read_problems", splits=True),
    StageInfo("judged", "judging.judge", ("problems",), splits=True, models=(TEACHER,)),
    StageInfo("packs", "sft.pack", ("judged",)),
    StageInfo("train", "training.sft", ("packs",), trains=True),
    StageInfo("model", "checkpoints.average", ("train",)),
    StageInfo("solve", "rollout.generate", ("problems", "model"), splits=True, models=(MODEL,)),
]
CLUSTER = """\
templates: {templates}
servers:
  default: {{engine: command, command: serve "$MODEL" --port "$PORT"}}
  teacher: {{engine: command, command: serve "$MODEL" --port "$PORT"}}
default: {{cpus: 2, time: "01:00:00"}}
kinds: {{training.sft: {{nodes: 2, gpus: 4, cpus: 8}}, rollout.generate: {{array: 3, running: 2, time: "02:00:00"}}}}
stages: {{solve: {{array: 5}}}}
"""
SERVED = "servers: {{default: {{}}, teacher: {{}}}}\n"


def cluster_file(folder: Path, text: str = CLUSTER) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text.format(templates=TEMPLATES))
    return path


def jobs(folder: Path, text: str = CLUSTER, finished: frozenset[str] = frozenset()) -> dict[str, SlurmJob]:
    cluster = load_cluster(cluster_file(folder, text), [s.name for s in STAGES])
    return {job.name: job for job in plan_jobs(STAGES, cluster, finished=finished)}


def scripts(folder: Path, text: str = CLUSTER) -> dict[str, str]:
    cluster = load_cluster(cluster_file(folder, text), [s.name for s in STAGES])
    planned = plan_jobs(STAGES, cluster)
    write_scripts(planned, cluster, folder / "my recipe.yaml", folder / "run", ["a.b=c d"])
    return {path.stem: path.read_text() for path in (folder / "run" / "sbatch").glob("*.sh")}


def write_scripts_of(folder: Path, text: str = CLUSTER) -> Path:
    scripts(folder, text)
    return folder / "run/sbatch"


@pytest.mark.parametrize("cluster", ["slurm-pyxis", "slurm-apptainer"])
@pytest.mark.parametrize("recipe", ["smoke", "qwen2.5-14b", "kaggle", "data-generation"])
def test_every_script_is_bash_and_every_stage_has_one(recipe: str, cluster: str, tmp_path: Path) -> None:
    arguments = ["launch", str(ROOT / f"examples/{recipe}.yaml"), "--cluster", str(SCRIPTS / f"{cluster}.yaml")]
    assert run([*arguments, "--output", str(tmp_path / "run"), "--dry-run", "seed=3"]) is ExitCode.OK
    written = [path for path in sorted((tmp_path / "run" / "sbatch").glob("*.sh")) if path.name not in COPIED]
    for path in written:
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.name == "submit.sh" or f"{tmp_path}/run/sbatch/recipe.yaml" in path.read_text()
    submitted = re.findall(r"^submit(?:_last)? (\S+)", (tmp_path / "run/sbatch/submit.sh").read_text(), re.M)
    assert sorted(submitted) == sorted(p.stem for p in written if p.stem != "submit")


def test_layers_of_resources(tmp_path: Path) -> None:
    got = jobs(tmp_path)
    assert (got["solve"].array, got["solve"].running, got["solve"].time, got["solve"].cpus) == (5, 2, "02:00:00", 3)
    assert (got["train"].nodes, got["train"].gpus, got["train"].cpus, got["train"].time) == (2, 4, 8, "01:00:00")
    assert (got["packs"].nodes, got["packs"].gpus, got["packs"].array) == (1, 0, 1)


def test_finished_stages_are_left_out_unless_something_before_them_runs(tmp_path: Path) -> None:
    left = jobs(tmp_path, finished=frozenset({"problems", "judged", "packs"}))
    assert {name: job.after for name, job in left.items()} == {"train": (), "model": ("train",), "solve": ("model",)}
    again = jobs(tmp_path, finished=frozenset({"problems", "packs", "train", "model", "solve"}))
    assert list(again) == ["judged", "packs", "train", "model", "solve"]


def test_jobs_serve_the_models_they_generate_with(tmp_path: Path) -> None:
    got = jobs(tmp_path)
    (teacher,), (student,) = got["judged"].servers, got["solve"].servers
    assert (teacher.folder, teacher.model.name, teacher.label) == ("/models/teacher", "big-model", "teacher")
    assert (student.folder, student.model.name, student.label) == ("/runs/model", "/runs/model", "model")
    assert got["packs"].servers == got["packs"].asks == ()
    told = json.loads((write_scripts_of(tmp_path) / "servers/solve.json").read_text())
    folder = f"{tmp_path}/run/sbatch/servers/solve.${{SLURM_JOB_ID}}/model"
    assert told == {"model": {"addresses": folder, "name": "/runs/model", "wait_s": 3600}}


def test_what_a_script_says(tmp_path: Path) -> None:
    made = scripts(tmp_path)
    assert "#SBATCH --array=0-4%2" in made["solve"]
    assert '--shard "$SLURM_ARRAY_TASK_ID/5"' in made["solve"]
    assert f"'{tmp_path}/my recipe.yaml'" in made["solve"]
    assert "'a.b=c d'" in made["train"]
    assert "#SBATCH --ntasks-per-node=4" in made["train"]
    assert made["train"].index("--prepare") < made["train"].index("nemo_openmath.training.worker")
    assert "#SBATCH --signal=B:USR1@300" in made["packs"]
    assert "submit solve problems model\n" in made["submit"]
    assert "--kill-on-invalid-dep=yes" in made["submit"]


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            "{runtime: pyxis, image: /i.sqsh, mounts: ['/a:/b', '/c:/d']}",
            '--container-mounts=/a:/b,/c:/d --container-workdir="$PWD" --container-env=PYTHONPATH openmath',
        ),
        (
            "{runtime: apptainer, image: '/my images/i.sif', mounts: ['/a:/b']}",
            "apptainer exec --bind /a:/b --pwd \"$PWD\" '/my images/i.sif' openmath",
        ),
    ],
)  # fmt: skip
def test_containers(container: str, words: str, tmp_path: Path) -> None:
    made = scripts(tmp_path, CLUSTER + f"container: {container.replace('{', '{{').replace('}', '}}')}\n")
    assert words in " ".join(made["packs"].replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("partitoin: batch", "did you mean 'partition'"),
        ("kinds: {{training.sfd: {{gpus: 8}}}}", "did you mean 'training.sft'"),
        ("stages: {{solv: {{gpus: 8}}}}", "did you mean 'solve'"),
        ("default: {{gpu: 8}}", "default.gpu: 8 is not a choice; known: h100, "),
        ("default: {{nodes: 0}}", "nodes: 0 is out of range"),
        ("default: {{time: 4h}}", "time '4h' is no time limit of Slurm"),
        ("default: {{time: 30}}", "expected a text, got 30; write it in quotes"),
        ("default: {{array: 1:30}}", "expected a whole number, got '1:30'"),
        ('default: {{partition: "a\\nb"}}', "has a line break"),
        ("default: {{memory: lots}}", "memory 'lots' is no amount of memory"),
        ("warn_seconds: -3", "warn_seconds: -3 is out of range; choose 0 or more, at most 65535"),
        ("environment: {{A B: c}}", "environment.A B: no name of a variable"),
        ("sbatch: [qos=high]", "'qos=high' is no option of sbatch"),
        ("sbatch: [--time=1]", "--time is written by the launcher; what says it is time:"),
        ("sbatch: [--tim 1]", "--time is written by the launcher"),
        ("sbatch: [-N 4]", "-N is written by the launcher; what says it is nodes:"),
        ("servers: {{default: {{arguments: [--max_model_len=8]}}}}", "--max-model-len, which the launcher writes"),
        ("servers: {{default: {{arguments: [--quantization fp8]}}}}", "write --quantization, fp8"),
        ("kinds: {{rollout.generate: {{array: 2000}}}}", "array: 2000 jobs are more than this cluster's"),
        ("stages: {{solve: {{array: 101}}}}\nmax_array_size: 100", "(max_array_size: 100)"),
        ("container: {{runtime: pyxis}}", "needs an image"),
        ("container: {{runtime: docker, image: i}}", "known: none, pyxis, apptainer"),
        ("server: {{command: serve}}", "servers are set by model; write its command under servers: {default"),
        ("kinds: {{judging.judge: {{server: serve}}}}", "servers are set by model"),
        ("servers: {{default: {{engine: command, command: serve}}}}", 'must use "$MODEL"'),
        ("servers: {{default: {{command: serve}}}}", "command and engine: command need each other"),
        ("servers: {{default: {{gpus: 8, replicas: 3}}}}", "8 GPUs cannot be divided among 3 replicas"),
        ("servers: {{default: {{gpus: 8, tensor_parallel: 4}}}}", "is 4, and a server has 8 GPUs"),
        ("servers: {{default: {{nodes: 2, gpus: 8, replicas: 2}}}}", "replicas are on one node"),
        ("servers: {{default: {{time: '02:00:00'}}}}", "time and partition are those of a pool's jobs"),
        ("servers: {{default: {{jobs: 1, time: '00:01:00'}}}}", "servers.default.time: '00:01:00' is not above"),
        ("roles: {{cpus: {{partition: x}}}}", "did you mean 'cpu'"),
        ("roles: {{cpu: {{sbatch: [qos]}}}}", "roles.cpu.sbatch.0: 'qos' is no option of sbatch"),
        ("secrets: [HF-TOKEN]", "no name of a variable"),
    ],
)  # fmt: skip
def test_mistakes_name_line_and_remedy(line: str, said: str, tmp_path: Path) -> None:
    path = cluster_file(tmp_path, "templates: {templates}\n" + line + "\n")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        load_cluster(path, [s.name for s in STAGES])
    assert "cluster.yaml:2: " in str(caught.value)


def test_what_cannot_be_split_or_spread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'packs'.*cannot be split"):
        jobs(tmp_path, SERVED + "stages: {{packs: {{array: 2}}}}\n")
    with pytest.raises(UserError, match=r"'model'.*one node"):
        jobs(tmp_path, SERVED + "stages: {{model: {{nodes: 2}}}}\n")


def test_a_copied_cluster_file_finds_the_templates_of_the_package(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "slurm-pyxis.yaml", tmp_path / "mine.yaml")
    assert load_cluster(tmp_path / "mine.yaml", []).templates == TEMPLATES
    assert (SCRIPTS / "templates").resolve() == TEMPLATES
    shutil.copy(SCRIPTS / "slurm-apptainer.yaml", tmp_path / "other.yaml")
    with pytest.raises(UserError, match=r"other\.yaml:4: extends: no file .*; copy that file too"):
        load_cluster(tmp_path / "other.yaml", [])


def test_a_users_own_template(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    for source in TEMPLATES.glob("*.j2"):
        (own / source.name).write_text(source.read_text())
    text = CLUSTER.replace("{templates}", "./mine")
    (own / "stage.sh.j2").write_text("#!/bin/bash\necho {{ job.stage }}\n")
    assert scripts(tmp_path, text)["packs"] == "#!/bin/bash\necho packs\n"
    (own / "stage.sh.j2").write_text("line one\n{{ job.stagge }}\n")
    before = sorted((tmp_path / "run/sbatch").glob("*.sh"))
    with pytest.raises(UserError, match="stagge"):
        scripts(tmp_path, text)
    assert sorted((tmp_path / "run/sbatch").glob("*.sh")) == before
    (own / "stage.sh.j2").write_text("line one\n{% if %}\n")
    with pytest.raises(UserError, match=re.escape("stage.sh.j2:2: ")):
        scripts(tmp_path, text)


def test_without_sbatch_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        submit(tmp_path / "submit.sh")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("240", 14400), ("4:30", 270), ("04:00:00", 14400), ("1-0", 86400), ("2-12", 216000), ("1-02:30", 95400),
        ("1-02:30:15", 95415), ("90:00", 5400), ("UNLIMITED", math.inf), ("infinite", math.inf), ("0", math.inf),
    ],
)  # fmt: skip
def test_time_limits_of_slurm(written: str, seconds: float) -> None:
    assert time_limit(written) == seconds


@pytest.mark.parametrize("written", ["", "4h", "-1", "1-", "1:2:3:4", "1-2:3:4:5", "1.5", "٣", " 4", "tomorrow"])
def test_what_is_no_time_limit(written: str) -> None:
    with pytest.raises(ValueError, match="no time limit of Slurm"):
        time_limit(written)


@pytest.mark.parametrize(
    ("time", "fits"), [("00:04:00", False), ("5", False), ("05:01", True), ("0-0:5", False), ("0", True)]
)
def test_a_time_limit_must_be_above_the_warning(time: str, fits: bool, tmp_path: Path) -> None:
    """Else a job is asked to save as soon as it starts, and is queued again for ever."""
    text = (
        f'templates: {{templates}}\nwarn_seconds: 300\nkinds: {{{{rollout.generate: {{{{time: "{time}"}}}}}}}}\n'
        + SERVED
    )
    if fits:
        assert jobs(tmp_path, text)["solve"].time == time
        return
    with pytest.raises(UserError, match=r"not above warn_seconds \(300\)") as caught:
        jobs(tmp_path, text)
    assert f"cluster.yaml:3: kinds.rollout.generate.time: {time!r}" in str(caught.value)


def test_an_array_may_have_as_many_jobs_as_the_cluster_allows(tmp_path: Path) -> None:
    text = SERVED + "stages: {{solve: {{array: 1001}}}}\n"
    assert jobs(tmp_path, text)["solve"].array == 1001
    more = SERVED + "max_array_size: 2000\nstages: {{solve: {{array: 2000}}}}\n"
    assert jobs(tmp_path, more)["solve"].array == 2000


ODD = 'it\'s $(touch x) `a` "b" #c;%j'


def test_values_with_blanks_and_signs_of_the_shell_are_quoted(tmp_path: Path) -> None:
    """Every value of an #SBATCH line is one word to a reader of quotes; sbatch is one (test_slurm.py)."""
    text = (
        CLUSTER
        + "account: {odd}\npartition: {odd}\nsbatch: [{comment}, --qos high, '--comment=\"x y\"', --exclusive]\n"
    )
    text = text.replace("{odd}", json.dumps(ODD)).replace("{comment}", json.dumps(f"--comment={ODD}"))
    cluster = load_cluster(cluster_file(tmp_path, text), [s.name for s in STAGES])
    output = tmp_path / ODD
    write_scripts(plan_jobs(STAGES, cluster), cluster, tmp_path / "r.yaml", output)
    for script in set((output / "sbatch").glob("*.sh")) - {output / "sbatch/functions.sh"}:
        subprocess.run(["bash", "-n", str(script)], check=True)
        lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
        words = [shlex.split(line.removeprefix("#SBATCH ")) for line in lines]
        if script.name == "submit.sh" or script.name in COPIED:
            continue
        given = dict(w[0].split("=", 1) for w in words if "=" in w[0])
        assert given["--account"] == given["--partition"] == ODD
        assert given["--chdir"] == str(output)
        assert given["--job-name"] == f"{ODD}.{script.stem}"
        assert given["--output"].startswith(str(output).replace("%", "%%"))
        assert [w for w in words if w[0].startswith(("--comment", "--qos", "--exclusive"))] == [
            [f"--comment={ODD}"], ["--qos", "high"], ["--comment=x y"], ["--exclusive"],
        ]  # fmt: skip


def test_a_path_with_a_line_break_is_refused(tmp_path: Path) -> None:
    cluster = load_cluster(cluster_file(tmp_path), [s.name for s in STAGES])
    with pytest.raises(UserError, match="line break"):
        write_scripts([], cluster, tmp_path / "r.yaml", tmp_path / "a\nb")


def leave_of_a_job(folder: Path, **variables: str) -> list[str]:
    """What a job that has saved says to a scontrol that answers for Slurm, by the functions of a run."""
    scripts(folder)
    commands = folder / "commands"
    program = (
        f'scontrol() {{ echo "$*" >>{commands}; '
        "echo 'JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=0 TimeLimit=01:00:00 '; }\n"
        f"output={folder}/run name=solve stages=(solve) warn_seconds=50 hang_seconds=0 retries=3 run_retries=9\n"
        "suspect_after=2 fruitless_leaves=5 requeue=scontrol\n"
        'source "$output/sbatch/functions.sh"; begin; leave 75'
    )
    variables |= {"PATH": "/usr/bin:/bin", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash", "-uc", program], env=variables, check=False)
    assert done.returncode == 75
    return commands.read_text().splitlines()


def test_a_task_of_an_array_queues_itself_again_and_no_other(tmp_path: Path) -> None:
    """The last task's job id is the array's own: by it, scontrol would mean all tasks."""
    ids = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4"}
    assert "requeue 7_4" in leave_of_a_job(tmp_path, **ids)
    journal = [json.loads(line) for line in (tmp_path / "run/sbatch/journal/solve.4.jsonl").read_text().splitlines()]
    assert [(line["event"], line["id"], line["attempt"]) for line in journal] == [("start", "7", 1), ("end", "7", 1)]
    assert (journal[1]["code"], journal[1]["decision"], journal[1]["costs"]) == (75, "queued again", 0)
    assert "requeue 7" in leave_of_a_job(tmp_path, SLURM_JOB_ID="7")


def test_a_cluster_file_knows_the_gpus_that_the_planner_knows() -> None:
    assert set(get_args(GpuKind)) == set(GPUS)
