"""`openmath launch --check`: what it says of the shipped recipes and cluster files is true, and all that there is to
say; each mistake that would end a run after days is named before anything is submitted."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.launch.slurm_limits import gpus_of, slurm_limits
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.launch_check.checks import check_launch
from nemo_openmath.recipe.launch_check.findings import Check, Findings
from nemo_openmath.recipe.slurm import plan_launch
from nemo_openmath.training.planning.models import known_model

ROOT = Path(__file__).parents[2]
PAPER = [
    "sft-curriculum",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen2.5-math-1.5b",
    "qwen2.5-math-7b",
    "kaggle",
    "data-generation",
]
CLUSTERS = ["slurm-pyxis", "slurm-apptainer"]

# What the models' own config.json says, where it is not what the sizes of its kind say.
POSITIONS = {
    "Qwen2.5-Math-1.5B": 4096,
    "Qwen2.5-Math-7B": 4096,
    "Qwen2.5-Math-72B-Instruct": 4096,
    "Qwen2.5-32B-Instruct": 32768,
    "LIMO-Qwen-32B": 32768,
    "QwQ-32B": 40960,
}
DEEPSEEK_R1 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128, "hidden_size": 7168,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "max_position_embeddings": 163840,
}  # fmt: skip
DEEPSEEK_R1_BYTES = 688_586_727_753
ASKED = [
    r"no such file or folder: (?P<path>/.+?)(?: \(also for .*\))?; put it there",
    r"no (?:file|folder) (?P<path>/.+?); (?:put|give) ",
]


class Site:
    """A shared file system with the recipes and cluster files as they are shipped, and nothing else."""

    def __init__(self, folder: Path):
        self.folder = folder / "shared"
        self.recipes = self.folder / "recipes"
        self.recipes.mkdir(parents=True)
        for recipe in (ROOT / "examples").glob("*.yaml"):
            shutil.copy(recipe, self.recipes)
        shutil.copytree(ROOT / "examples/prompts", self.recipes / "prompts")
        for cluster in (ROOT / "launcher_scripts").glob("*.yaml"):
            (self.recipes / cluster.name).write_text(cluster.read_text().replace("/shared", str(self.folder)))

    def check(self, recipe: str, cluster: str, *overrides: str, output: Path | None = None) -> Findings:
        """What a launch is told."""
        loaded = load_recipe(self.recipes / f"{recipe}.yaml", overrides)
        launch = plan_launch(loaded, self.recipes / f"{cluster}.yaml", output or self.folder / "runs" / "run")
        return check_launch(launch)

    def cluster(self, name: str, text: str, base: str = "slurm-pyxis") -> None:
        """Write a cluster file that extends a shipped one."""
        (self.recipes / f"{name}.yaml").write_text(f"extends: {base}.yaml\n{text}\n")

    def provide(self, path: Path) -> None:
        """Make a file or folder that was asked for: of a model its config.json, and empty files of weights."""
        assert not path.exists(), path
        if path.parent.name == "models":
            path.mkdir(parents=True)
            config, size = model(path.name)
            (path / "config.json").write_text(json.dumps(config))
            index = {"metadata": {"total_size": size}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
            (path / "model-00001-of-00001.safetensors").touch()
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(ROOT / "examples" / "base" / name, path)
        elif path.parent.name == "data":
            file = path if path.suffix else path / "rows.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            row = {"problem": "1+1?", "expected_answer": "2", "forum_post": "1+1?", "forum_discussions": "2"}
            file.write_text(json.dumps(row))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def provide_all(self, recipe: str, cluster: str) -> Findings:
        """Make what a check asks for, until it asks for nothing more; each thing that it asks for must be missing."""
        (self.folder / "images").mkdir(exist_ok=True)
        while (findings := self.check(recipe, cluster)).is_bad:
            asked = [path for line in lines(findings) if (path := asked_path(line)) is not None]
            assert len(asked) == findings.num_wrong, lines(findings)  # nothing but files is missing
            for path in dict.fromkeys(asked):
                self.provide(path)
        return findings


def model(name: str) -> tuple[dict[str, object], int]:
    """config.json of a model, and the bytes of its weights."""
    if name == "DeepSeek-R1":
        return DEEPSEEK_R1, DEEPSEEK_R1_BYTES
    shape = known_model(name)
    assert shape is not None
    shape = shape.with_changes(max_position_embeddings=POSITIONS.get(name, shape.max_position_embeddings))
    return shape.to_hf(), 2 * shape.num_parameters


def lines(findings: Findings) -> list[str]:
    return [text for texts in findings.wrong.values() for text in texts] + findings.defects


def asked_path(line: str) -> Path | None:
    return next((Path(match["path"]) for pattern in ASKED if (match := re.search(pattern, line))), None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    disk = SimpleNamespace(total=10**16, used=0, free=10**16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)  # this machine's is no cluster's
    monkeypatch.setenv("PATH", str(tmp_path))  # and whether it has a Slurm says nothing
    return Site(tmp_path)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("recipe", PAPER)
def test_a_shipped_recipe_asks_for_its_files_and_for_nothing_else(recipe: str, cluster: str, site: Site) -> None:
    """Every line names what is missing indeed; with all of it there, nothing is wrong."""
    findings = site.provide_all(recipe, cluster)
    assert not any("layout" in line or "how large" in line for line in findings.unseen), findings.unseen
    assert not [
        note for note in findings.notes if not re.search("GB/s|too near|GPU-hours|CoT runs no programs", note)
    ], findings.notes
    assert not (site.folder / "runs").exists()  # nothing is written


MISTAKES = {
    "24 ranks": (
        "qwen2.5-14b", "kinds: {training.sft: {nodes: 3, gpus: 8}}",
        r"kinds\.training\.sft\.(nodes|gpus): train1 has 24 ranks \(3 nodes x 8\), no multiple of .* = 8 x 1 x 2 = 16"
        ".*give 2 nodes, or a multiple",
    ),
    "4 ranks": (
        "qwen2.5-14b", "kinds: {training.sft: {nodes: 1, gpus: 4}}", r"train1 has 4 ranks \(1 nodes x 4\), no multiple",
    ),
    "too little memory": (
        "qwen2.5-32b", "kinds: {training.sft: {nodes: 4, gpus: 8, gpu: l4}}",
        r"train1\.training: needs some \d+\.\d GiB a GPU .*, of 22 \(l4\)",
    ),
    "host memory": (
        "qwen2.5-14b", "kinds: {training.sft: {nodes: 2, memory: 10G}}",
        r"kinds\.training\.sft\.memory: 10G a node, and the 8 ranks of train1 need \d+\.\d GB for checkpoints",
    ),
    "a judge at its own node": (
        "qwen2.5-14b", "servers: {teacher: null}",
        r"sft\.yaml:\d+: teacher\.url: http://127\.0\.0\.1:8000/v1 is the node of each job itself, and nothing is "
        r"started there \(model1_judged, model2_judged\); give the cluster file a server for Qwen2\.5-32B-Instruct",
    ),
    "nobody serves a model": (
        "qwen2.5-14b", "servers: {default: null}", r"student\.kind: is http, and nobody serves model1, model2",
    ),
    "the hub is off": (
        "qwen2.5-14b", "roles: {cpu: {environment: {HF_HUB_OFFLINE: '1'}}}",
        r"stages\.cot_rows\.dataset: nvidia/OpenMathReasoning is read from the Hugging Face Hub \(cot_rows, tir_rows, "
        r"genselect_rows\), and HF_HUB_OFFLINE switches it off \(.*cluster\.yaml:2\)",
    ),
    "a teacher without a GPU": (
        "data-generation", "servers: {teacher: {gpus: 0, replicas: 1}}",
        r"servers\.teacher\.gpus: teacher \(65\.5 GB\) is served without a GPU",
    ),
    "72B on one GPU": (
        "data-generation", "servers: {Qwen2.5-Math-72B-Instruct: {replicas: 8}}",
        r"cluster\.yaml:2: servers\.Qwen2\.5-Math-72B-Instruct: .* 145\.4 GB .* 1 x h100.* spread it over 4 GPUs",
    ),
    "R1 on one node": (
        "data-generation", "servers: {DeepSeek-R1: {nodes: 1, pipeline_parallel: 1}}",
        r"688\.6 GB .* too much for 8 x h100",
    ),
    "a context that the model has not": (
        "data-generation", "servers: {Qwen2.5-Math-72B-Instruct: {max_model_len: 8192}}",
        r"max_model_len: 8192 tokens, and config\.json of Qwen2\.5-Math-72B-Instruct says 4096",
    ),
    "answers longer than the context": (
        "qwen2.5-14b", "servers: {default: {max_model_len: 32768}}",
        r"stages\.model1_cot\.max_tokens: 32768, and the server of model1 has room for 32768 tokens with the prompt",
    ),
    "a slow file system": (
        "qwen2.5-14b", "write_gb_per_second: 0.5",
        r"warn_seconds: a checkpoint of train1, train2 \(206\.8 GB\) takes 414 s at 0\.5 GB/s",
    ),
    "the folder of the runs mounted read-only": (
        "qwen2.5-14b", 'container: {mounts: ["{shared}:{shared}:ro"]}',
        r"container\.mounts: {shared}/runs/run, which jobs write, is mounted read-only; take :ro away",
    ),
    "lines of shell with a quote that nothing closes": (
        "qwen2.5-14b", """setup: ['echo "x']""", r"cluster\.yaml:2: setup: bash cannot read it \(line 1: unexp",
    ),
    "a large training without GPUs": (
        "qwen2.5-14b", "kinds: {training.sft: {gpus: 0}}",
        r"kinds\.training\.sft\.gpus: train1 has no GPU, and a checkpoint of its model is of 206\.8 GB; give it gpus:",
    ),
    "another name inside": (
        "qwen2.5-14b", "container: {mounts: ['{shared}:/data']}",
        r"container\.mounts: {shared}/runs/run is /data/runs/run inside; .*under its own name",
    ),
    "a training on GPUs that it has not": (
        "qwen2.5-14b stages.train1.training.device=cuda", "kinds: {training.sft: {gpus: 0}}",
        r"stages\.train1\.training\.device: cuda, and its jobs have no GPU; give train1 gpus: in",
    ),
    "a mount that is not there": (
        "qwen2.5-14b", "container: {mounts: ['{shared}:{shared}', '{shared}/none:/x']}", r"no folder {shared}/none",
    ),
    "a sandbox at its own node": (
        "qwen2.5-14b sandbox={url: http://localhost:8700}", "", r"sandbox\.url: http://localhost:8700 is the node",
    ),
    "a secret": ("qwen2.5-14b", "secrets: [HF_TOKEN_OF_NOBODY]", "HF_TOKEN_OF_NOBODY is not set"),
}  # fmt: skip


@pytest.fixture(scope="module")
def provided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with the files of all recipes that mistakes are made in."""
    with pytest.MonkeyPatch.context() as patch:
        site = Site(tmp_path_factory.mktemp("site"))
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**16, used=0, free=10**16))
        patch.setenv("PATH", str(site.folder))
        for recipe in ("qwen2.5-14b", "qwen2.5-32b", "data-generation"):
            site.provide_all(recipe, "slurm-pyxis")
        yield site


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_place_and_remedy(mistake: str, provided: Site) -> None:
    recipe_and_overrides, text, pattern = MISTAKES[mistake]
    recipe, *overrides = recipe_and_overrides.split(" ", 1)
    provided.cluster("cluster", text.replace("{shared}", str(provided.folder)))
    found = lines(provided.check(recipe, "cluster", *overrides))
    assert [line for line in found if re.search(pattern.replace("{shared}", str(provided.folder)), line)], found
    assert all(".yaml:" in line or line.startswith("override: ") for line in found), found


def test_an_output_outside_all_mounts_is_named_and_one_with_blanks_is_fine(provided: Site, tmp_path: Path) -> None:
    outside = lines(provided.check("qwen2.5-14b", "slurm-pyxis", output=tmp_path / "run"))
    assert [line for line in outside if f"{tmp_path}/run is below no mount" in line], outside
    blanks = provided.check("qwen2.5-14b", "slurm-pyxis", output=provided.folder / "my runs" / "it's 14b")
    assert not blanks.is_bad, lines(blanks)


def test_what_a_run_survives_is_a_note(provided: Site) -> None:
    provided.cluster("cluster", "warn_seconds: 0\nenvironment: {CACHE: $SCRATCH/x}\nstages: {model1_tir: {cpus: 8}}")
    findings = provided.check("qwen2.5-14b", "cluster")
    assert not findings.is_bad, lines(findings)
    notes = "\n".join(findings.notes)
    assert "warn_seconds is 0, so a job that reaches its time limit saves nothing" in notes
    assert "model1_tir: 32 programs at a time (sandbox.workers) share 8 cores; write cpus: 34" in notes
    assert "model1_cot, model2_cot: 34 cores, and CoT runs no programs" in notes
    assert "cluster.yaml:3: environment.CACHE: '$SCRATCH/x' is taken as it stands" in notes


def test_files_that_are_links_to_what_is_not_mounted(site: Site, tmp_path: Path) -> None:
    """As in the Hub's cache, of which a snapshot holds links to blobs."""
    site.provide_all("kaggle", "slurm-pyxis")
    config, blob = site.recipes / "models" / "Qwen2.5-14B" / "config.json", tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    shutil.move(config, blob)
    config.symlink_to(blob)
    (found,) = lines(site.check("kaggle", "slurm-pyxis"))
    assert f"{blob} is below no mount" in found


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("data/comp-math-24-25.jsonl", '{"question": "1+1?"}', "jsonl:1: no 'problem'; the row has 'question'"),
        ("data/comp-math-24-25.jsonl", "", "there is no row in"),
        ("data/comp-math-24-25.jsonl", "1+1?", "jsonl:1: not JSON"),
        ("models/Qwen2.5-14B/config.json", '{"model_type": "gemma"}', "train1.from.model: "),
        ("models/Qwen2.5-14B/model.safetensors.index.json", "[]", "the index of the weights in"),
        ("models/Qwen2.5-14B/tokenizer.json", "{", "cannot read the tokenizer"),
    ],
)  # fmt: skip
def test_files_that_are_there_and_are_no_good(file: str, text: str, said: str, provided: Site) -> None:
    path = provided.recipes / file
    before = path.read_bytes()
    path.write_text(text)
    try:
        found = lines(provided.check("qwen2.5-14b", "slurm-pyxis"))
    finally:
        path.write_bytes(before)
    assert [line for line in found if said in line], found


def test_weights_that_were_not_copied_to_the_end(provided: Site) -> None:
    weights = provided.recipes / "models" / "Qwen2.5-14B" / "model-00001-of-00001.safetensors"
    weights.rename(weights.with_suffix(".partial"))
    try:
        found = lines(provided.check("qwen2.5-14b", "slurm-pyxis"))
    finally:
        weights.with_suffix(".partial").rename(weights)
    assert len(found) == 1
    assert "train1.from.model: 1 of 1 files of weights are missing" in found[0]


def test_a_full_disk(provided: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, used=0, free=10**12))
    (found,) = lines(provided.check("qwen2.5-14b", "slurm-pyxis"))
    assert "1,000.0 GB free, and the stages write some" in found


@pytest.fixture
def teacher() -> Iterator[Callable[[str], str]]:
    """A server that has the model QwQ-32B: its address under a name of this machine."""

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "QwQ-32B"}]}')

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("0.0.0.0", 0), Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda host: f"http://{host}:{server.server_address[1]}/v1"
        server.shutdown()


def test_the_server_of_a_url_is_asked_for_its_models(provided: Site, teacher: Callable[[str], str]) -> None:
    provided.cluster("cluster", "servers: {teacher: null}")
    assert (
        "is the node of each job itself"
        in lines(provided.check("qwen2.5-14b", "cluster", f"teacher.url={teacher('0.0.0.0')}"))[0]
    )
    url = teacher(socket.gethostname())
    (found,) = lines(provided.check("qwen2.5-14b", "cluster", f"teacher.url={url}"))
    assert "has no model 'Qwen2.5-32B-Instruct'; it has QwQ-32B" in found
    assert not lines(provided.check("qwen2.5-14b", "cluster", f"teacher.url={url}", "teacher.model=QwQ-32B"))


SCONTROL = """\
case "$*" in
*partition*)
  echo "PartitionName=batch Default=YES AllowAccounts=lab DefaultTime=NONE MaxNodes=8 MaxTime=12:00:00 State=UP"
  echo "PartitionName=night Default=NO AllowAccounts=ALL DefaultTime=NONE MaxTime=UNLIMITED State=UP";;
*config*) echo "MaxArraySize            = 9";;
esac"""
SINFO = "echo 'batch|16|96|1000000|gpu:a100:4(S:0-1)'; echo 'night|2|128|500000|(null)'"


def test_what_slurm_gives_less_of(provided: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (("scontrol", SCONTROL), ("sinfo", SINFO), ("sacctmgr", "echo lab; echo other")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    text = "account: labb\nstages: {train1: {partition: nigth}}\nkinds: {sft.read: {memory: 2T}}\n"
    provided.cluster("cluster", text + "servers: {default: {jobs: 16}}")
    found = "\n".join(lines(provided.check("qwen2.5-14b", "cluster")))
    for pattern in (
        r"stages\.train1\.partition: no partition 'nigth' here \(train1\); did you mean 'night'\?",
        r"kinds\.training\.sft\.nodes: 16 nodes, and partition batch gives 8 \(train2\)",
        r"kinds\.training\.sft\.gpus: 8 GPUs of a node, and the nodes of partition batch have 4 \(train2\)",
        r"kinds\.training\.sft\.time: 24:00:00, and partition batch gives 12:00:00 at most \(train2\)",
        r"kinds\.sft\.read\.memory: 2097152 MB of memory of a node, and the nodes of partition batch have 1000000",
        r"servers\.teacher\.gpus: 8 GPUs of a node, .* \(server\.teacher",
        r"servers\.default\.jobs: 16 nodes of 16 in partition batch, with no room for the jobs that ask them \(",
        r"default\.gpu: h100, and the GPUs of partition batch are a100 \(.*train2",
        r"account: this user has no account 'labb' .*; did you mean 'lab'\?",
        r"kinds\.rollout\.generate\.array: 16 jobs, and Slurm's MaxArraySize here is 9",
    ):
        assert re.search(pattern, found), (pattern, found)
    limits = slurm_limits()
    assert limits is not None
    both = limits.partition("batch,night")
    assert both is not None
    assert (both.max_seconds, len(both.nodes), limits.partition("batch,none")) == (float("inf"), 2, None)
    assert limits.accounts == {"lab", "other"}
    assert [gpus_of(text) for text in ("gpu:h100:8(S:0-1),nvme:1", "gpu:2,gpu:a:2", "(null)", "mps:8")] == [8, 4, 0, 0]


def test_a_check_that_fails_hides_no_other(provided: Site) -> None:
    def broken(_: object) -> Iterator[UserError]:
        yield UserError("first")
        raise KeyError("x")

    findings = Findings()
    launch = plan_launch(
        load_recipe(provided.recipes / "qwen2.5-14b.yaml"),
        provided.recipes / "slurm-pyxis.yaml",
        provided.folder / "runs",
    )
    findings.run([Check("disk", "one", broken), Check("time", "two", lambda _: [UserError("second")])], launch)
    assert (findings.wrong["disk"], findings.wrong["time"]) == (["first"], ["second"])
    assert findings.defects == ["one: not checked, for a defect of the check (KeyError('x'))"]
    assert findings.checked == ["two"]


def test_exit_codes_and_what_is_written(provided: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """--check and launch refuse, and write nothing; --dry-run says the same and writes the scripts."""
    provided.cluster("bad", "kinds: {training.sft: {nodes: 3}}")
    output = provided.folder / "runs" / "codes"
    arguments = ["launch", str(provided.recipes / "qwen2.5-14b.yaml"), "--output", str(output), "--cluster"]
    good, bad = str(provided.recipes / "slurm-pyxis.yaml"), str(provided.recipes / "bad.yaml")
    assert run([*arguments, good, "--check"]) is ExitCode.OK
    assert "nothing is wrong" in capsys.readouterr().out
    for option in (["--check"], []):
        assert run([*arguments, bad, *option]) is ExitCode.USER_ERROR
        said = capsys.readouterr()
        assert "train1 has 24 ranks" in said.out
        assert said.err == "openmath: 2 things are wrong; nothing was submitted; mend the list above\n"
    assert not output.exists()
    assert run([*arguments, bad, "--dry-run"]) is ExitCode.OK
    assert "train1 has 24 ranks" in capsys.readouterr().out
    assert (output / "sbatch" / "train1.sh").exists()


def test_the_folder_of_another_run_is_listed_with_the_rest(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (site.folder / "results").mkdir()
    (site.folder / "results" / "thesis.tex").touch()
    arguments = ["launch", str(site.recipes / "qwen2.5-14b.yaml"), "--cluster", str(site.recipes / "slurm-pyxis.yaml")]
    assert run([*arguments, "--output", str(site.folder / "results"), "--check"]) is ExitCode.USER_ERROR
    said = capsys.readouterr().out
    assert "recipe\n  - " in said
    assert "thesis.tex" in said
    assert "no such file or folder" in said


def test_a_cluster_file_that_cannot_be_read_hides_no_missing_file(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.cluster("wrong", "kinds: {sft.pack: {array: 2}}")
    arguments = ["launch", str(site.recipes / "qwen2.5-14b.yaml"), "--cluster", str(site.recipes / "wrong.yaml")]
    assert run([*arguments, "--output", str(site.folder / "run"), "--check"]) is ExitCode.USER_ERROR
    said = capsys.readouterr().out
    assert "'packs1' (sft.pack) cannot be split into an array of 2 jobs" in said
    assert "no such file or folder" in said
