"""What a launched run keeps of its recipe, its cluster file and its code: an edit changes nothing that is queued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.launch import code_snapshot
from nemo_openmath.recipe.command import open_run
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.snapshot import changed_inputs

ROOT = Path(__file__).parents[2]
ABOVE = """\
extends: below/recipe.yaml
stages:
  mine: {run: problems.read_problems, from: data/mine.jsonl}
  sorted: {run: problems.classify, from: mine, engine: teacher, proof_prompt: data/prompt.md}
"""
BELOW = """\
name: snapped
x-note: &text "a: b # c"
note: *text
teacher: {tokenizer: {base}}
stages:
  theirs: {run: problems.read_problems, from: data/mine.jsonl}
"""
PROMPT = "Classify.\n\n{problem}\n"


def recipe_files(folder: Path) -> Path:
    """A recipe that extends one of another folder: both read data/mine.jsonl, each its own."""
    for name, answer in (("above", "1"), ("above/below", "2")):
        (folder / name / "data").mkdir(parents=True)
        row = f'{{"problem": "What is {answer}?", "expected_answer": "{answer}"}}\n'
        (folder / name / "data/mine.jsonl").write_text(row)
    (folder / "above/data/prompt.md").write_text(PROMPT)
    (folder / "above/below/recipe.yaml").write_text(BELOW.replace("{base}", str(ROOT / "examples/base")))
    (folder / "above/recipe.yaml").write_text(ABOVE)
    (folder / "cluster.yaml").write_text(
        f"templates: {os.path.relpath(ROOT / 'nemo_openmath/launch/templates', folder)}\n"
    )
    return folder / "above/recipe.yaml"


def launch(folder: Path, recipe: Path, *overrides: str) -> Path:
    arguments = ["launch", str(recipe), "--cluster", str(folder / "cluster.yaml"), "--output", str(folder / "run")]
    assert run([*arguments, "--dry-run", *overrides]) is ExitCode.OK
    return folder / "run/sbatch/recipe.yaml"


def settings(path: Path, *overrides: str) -> dict[str, object]:
    recipe = load_recipe(path, overrides)
    values = {v.key: v.value for v in recipe.values}
    inputs = {entry.name: {p: [Path(n).resolve() for n in ns if isinstance(n, Path)] for p, ns in entry.inputs.items()}
              for entry in recipe.stages.values()}  # fmt: skip
    origins = {e.name: (Path(e.origin.file).resolve(), e.origin.line) for e in recipe.stages.values()}
    values = {k: v for k, v in values.items() if k[-1] != "proof_prompt"}
    return {"values": values, "inputs": inputs, "origins": origins,
            "settings": [e.stage.settings() for e in recipe.stages.values()]}  # fmt: skip


def test_a_snapshot_is_the_recipe_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of every file and of the command line mean what they meant, and so do lines in errors."""
    recipe = recipe_files(tmp_path)
    monkeypatch.chdir(tmp_path / "above/below")
    overrides = ("seed=7", "stages.theirs.from=./data/mine.jsonl", 'note="04:00:00"')
    snapshot = launch(tmp_path, recipe, *overrides)
    before = settings(recipe, *overrides)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    after = settings(snapshot)
    assert after == before | {"origins": after["origins"]}
    assert after["origins"]["mine"] == (recipe, 3)  # type: ignore[index]
    kept = load_recipe(snapshot)
    assert (kept.path, kept.snapshot, kept.note) == (recipe, snapshot, "04:00:00")
    recipe.write_text("nothing: good\n")
    (recipe.parent / "data/prompt.md").write_text("another {problem}")
    (tmp_path / "cluster.yaml").unlink()
    assert settings(snapshot)["settings"] == before["settings"]  # the content of the prompt is one of them
    with pytest.raises(UserError, match=f"{recipe}:3: stages.mine: wrong"):
        raise load_recipe(snapshot).entry("mine").error("wrong")
    cluster = Source.read(snapshot.with_name("cluster.yaml"))
    assert Path(cluster.origin(("templates",)).file) == tmp_path / "cluster.yaml"


def test_stages_of_the_snapshot_are_stages_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_files(tmp_path)
    snapshot = launch(tmp_path, recipe, "seed=7")
    output = tmp_path / "run"
    assert run(["recipe", "run", str(snapshot), "--output", str(output), "--only", "mine"]) is ExitCode.OK
    states = {s.name: s.state for s in Run(load_recipe(recipe, ["seed=7"]), output).status()}
    assert states == {"theirs": "waiting", "mine": "finished", "sorted": "waiting"}
    assert run(["recipe", "run", str(recipe), "seed=7", "--output", str(output), "--only", "theirs"]) is ExitCode.OK
    assert open_run(output).recipe.snapshot is None
    assert run(["recipe", "run", str(snapshot), "--output", str(output), "--only", "theirs"]) is ExitCode.OK
    recipe.write_text("nothing: good\n")
    opened = open_run(output)
    assert opened.recipe.snapshot == snapshot
    assert [s.state for s in opened.status()] == ["finished", "finished", "waiting"]


def test_a_run_goes_on_from_its_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without recipe and cluster file, up to the stage that the launch named; a stage alone, where all it reads is
    there."""
    recipe = recipe_files(tmp_path)
    output = tmp_path / "run"
    arguments = ["launch", str(recipe), "--cluster", str(tmp_path / "cluster.yaml"), "--output", str(output)]
    assert run([*arguments, "--dry-run", "--until", "mine", "seed=7"]) is ExitCode.OK
    written = {path.name: path.read_text() for path in (output / "sbatch").glob("*.yaml")}
    recipe.unlink()
    (tmp_path / "cluster.yaml").unlink()
    resume = ["jobs", "resume", str(output), "--dry-run"]
    capsys.readouterr()
    assert run(resume) is ExitCode.OK
    assert "\ntheirs\nmine\n  report  <- theirs, mine\n" in capsys.readouterr().out
    assert run([*resume, "--stage", "mine"]) is ExitCode.OK
    assert "\nmine\n  report  <- mine\n" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in (output / "sbatch").glob("*.yaml")} == written
    assert run([*resume, "--stage", "mind"]) is ExitCode.USER_ERROR
    assert "no stage 'mind'; did you mean 'mine'?" in capsys.readouterr().err
    assert run([*resume, "--stage", "sorted"]) is ExitCode.USER_ERROR
    assert "stage 'sorted' reads mine, not finished" in capsys.readouterr().err


def test_a_change_of_what_is_read_is_known(tmp_path: Path) -> None:
    recipe = recipe_files(tmp_path)
    snapshot = launch(tmp_path, recipe)
    assert changed_inputs(load_recipe(snapshot), ["mine", "theirs", "sorted"]) == []
    data = recipe.parent / "data/mine.jsonl"
    data.write_text(data.read_text() * 2)
    assert changed_inputs(load_recipe(snapshot), ["mine", "theirs", "sorted"]) == [data]
    assert changed_inputs(load_recipe(recipe), ["mine"]) == []


def test_jobs_run_the_code_of_the_launch(tmp_path: Path) -> None:
    """By PYTHONPATH, before the checkout; the journal of the job says what ran."""
    launch(tmp_path, recipe_files(tmp_path))
    sbatch = tmp_path / "run/sbatch"
    assert f"export PYTHONPATH={sbatch}/code" in (sbatch / "mine.sh").read_text()
    (sbatch / "journal").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(sbatch / "code"), "SLURM_JOB_NAME": "run.mine", "SLURM_JOB_ID": "7"}
    code = "import sys; from pathlib import Path; from nemo_openmath.launch import code_snapshot as c\n"
    code += "print(c.__file__); c.note_code(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(sbatch / "code/nemo_openmath"))
    launched = Source.read(sbatch / "code.json").data
    event = Source.read(sbatch / "journal/mine.jsonl").data
    same = ("version", "commit", "dirty", "digest", "python", "torch")
    assert {k: event[k] for k in same} == {k: launched[k] for k in same}
    assert (event["event"], event["id"]) == ("code", "7")


def test_an_image_says_which_commit_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.json").write_text(json.dumps({"commit": "c0ffee", "base": "b"}))
    monkeypatch.setenv("OPENMATH_IMAGE", str(tmp_path / "image.json"))
    package = tmp_path / "site-packages" / "nemo_openmath"
    package.mkdir(parents=True)
    monkeypatch.setattr(code_snapshot, "_PACKAGE", package)
    assert code_snapshot.running_code()["commit"] == "c0ffee"
    (tmp_path / "image.json").write_text("cut")
    assert code_snapshot.running_code()["commit"] is None
