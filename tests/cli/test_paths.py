"""Every verb is given every kind of path that cannot be used, as its input and as its output."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.cli.main import build_parser, run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.inference.http.server_pool import ServerPool
from tests.support.solutions import solution

BASE = Path(__file__).parents[2] / "examples" / "base"
CLUSTER = Path(__file__).parents[2] / "launcher_scripts" / "slurm-pyxis.yaml"

INPUTS = {
    "recipe run": ["{bad} --output out"],
    "recipe show": ["{bad}"],
    "recipe status": ["{bad}"],
    "recipe report": ["{bad}"],
    "recipe stages": ["{bad}"],
    "launch": ["{bad} --cluster {cluster} --output out", "r.yaml --cluster {bad} --output out"],
    "doctor": ["--cluster {bad} --output out"],
    "jobs status": ["{bad}"],
    "jobs logs": ["{bad} train1"],
    "jobs cancel": ["{bad}"],
    "jobs resume": ["{bad}"],
    "jobs watch": ["{bad}"],
    "plan": ["{bad} --gpus 8 --gpu h100"],
    "sft": ["{bad}", "sft.yaml data.folder={bad}"],
    "grade": ["{bad} --output out"],
    "serve": ["{bad} --port 0"],
    "generate": ["{bad} --output out", "g.yaml engine.model={bad} --output out"],
    "sandbox exec": ["{bad}"],
    "records show": ["{bad}"],
    "records head": ["{bad}"],
    "records grep": ["x {bad}", "x stored {bad}"],
    "records export": ["{bad} out.jsonl"],
    "records check": ["{bad}", "stored {bad}"],
    "trace": ["{bad} problem-1"],
    "data prompt": ["{bad}"],
    "data export": ["{bad} out"],
    "data stats": ["{bad}"],
    "data verify": ["{bad}"],
    "convert hf-to-megatron": ["{bad} out"],
    "convert megatron-to-hf": ["{bad} out"],
    "convert hf-to-trtllm": ["{bad} out"],
    "quantize": ["{bad} out --format int8", "{base} out --format fp8 --calibration {bad}"],
    "average": ["{base} {bad} --output out"],
    "merge": ["{bad} {base} --output out", "{base} {base} --method ties --base {bad} --output out"],
    "inspect": ["{bad}", "{base} {bad}"],
    "certify": ["{bad} {base} --output out"],
    "diagnose": ["losses.csv --certificate {bad}"],
    "evaluate": ["{bad} --benchmark rows.jsonl --output out", "{base} --benchmark {bad} --output out"],
    "evaluate rescore": ["{bad} --output out"],
    "evaluate compare": ["one {bad} --output out", "{bad} one --output out"],
    "evaluate table": ["{bad} --table 6"],
    "evaluate plan": ["--benchmark {bad} --difference 0.1"],
    "evaluate decide": ["{bad} --output out"],
    "benchmark prepare": ["mine --from {bad} --output out.jsonl"],
    "contest calibrate": ["{bad}"],
    "contest replay": ["{bad}", "rollouts.jsonl --policy {bad}"],
    "contest search": ["{bad} --choices choices.yaml", "rollouts.jsonl --choices {bad}"],
    "contest loss": ["{bad}"],
    "solve": ["{bad} --model {base} --output out", "rows.jsonl --model {bad} --output out"],
    "view": ["{bad}"],
}
OUTPUTS = {
    "recipe run": "r.yaml --output {bad}",
    "recipe reference": "{bad}",
    "launch": "r.yaml --cluster {cluster} --dry-run --output {bad}",
    "grade": "rows.jsonl --output {bad}",
    "records export": "stored {bad}",
    "data prompt": "prompts.jsonl --output {bad}",
    "data export": "stored {bad}",
    "serve": "{base} --port 0 --address-file {bad}",
    "generate": "g.yaml --output {bad}",
    "sandbox serve": "--socket {bad}",
    "convert hf-to-megatron": "{base} {bad}",
    "convert hf-to-trtllm": "{base} {bad}",
    "quantize": "{base} {bad} --format int8",
    "average": "{base} {base} --output {bad}",
    "merge": "{base} {base} --output {bad}",
    "certify": "packs {base} --output {bad}",
    "evaluate": "{base} --benchmark rows.jsonl --output {bad}",
    "evaluate rescore": "rows.jsonl --output {bad}",
    "evaluate compare": "one two --output {bad}",
    "evaluate decide": "decide.yaml --output {bad}",
    "benchmark prepare": "mine --from rows.jsonl --output {bad}",
    "contest calibrate": "rollouts.jsonl --speed 80 --output {bad}",
    "contest replay": "rollouts.jsonl --speed 80 --output {bad}",
    "contest search": "rollouts.jsonl --speed 80 --choices choices.yaml --output {bad}",
    "contest loss": "rollouts.jsonl --speed 80 --output {bad}",
    "solve": "rows.jsonl --model {base} --output {bad}",
}
WHOLE = (
    "convert",
    "quantize",
    "average",
    "merge",
    "records export",
    "data prompt",
    "data export",
)  # they make what is new, and say that it is there
RUNS = ("evaluate", "evaluate rescore", "solve")  # what they read is found to be wrong by their first stage
# They write nothing of their own, or what they write is named by a file that they read.
NO_INPUT = {"sandbox serve", "recipe reference", "benchmark list"}
NO_OUTPUT = {"convert megatron-to-hf", "sandbox exec", "sft", "plan", "inspect", "diagnose"}
NO_OUTPUT |= {f"recipe {verb}" for verb in ("show", "status", "report", "stages")} | {"data stats", "data verify"}
NO_OUTPUT |= {"evaluate table", "evaluate plan", "benchmark list", "view"}
NO_OUTPUT |= {"doctor", "trace"}  # it tells what it found out of the folder, and writes a report where it is asked to
NO_OUTPUT |= {f"jobs {verb}" for verb in ("status", "logs", "cancel", "resume", "watch")}
NO_OUTPUT |= {f"records {verb}" for verb in ("show", "head", "grep", "check")}


def names(parser: argparse.ArgumentParser) -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser.prog.partition(" ")[2]
    for group in groups:
        for child in group.choices.values():
            yield from names(child)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    row = '{"problem": "1+1?", "expected_answer": "2", "predicted_answer": "2"}\n'
    (tmp_path / "rows.jsonl").write_text(row)
    rows = [
        {
            "inference_mode": "cot",
            "problem": f"{n} + {n}?",
            "input": f"Solve: {n} + {n}? Box it.",
            "output": "\\boxed{1}",
        }
        for n in ("a", "bc", "d")
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "losses.csv").write_text("step,loss\n1,2.5\n")
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "folder").mkdir()
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored/part-00000-of-00001.jsonl").write_text('{"id": "problem-1", "problem": "1+1?"}\n')
    for name in ("one", "two"):
        write_records(tmp_path / name, [solution(name, Problem.make("1+1?"))])
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "r.yaml").write_text("name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n")
    (tmp_path / "g.yaml").write_text(f"problems: ./rows.jsonl\nengine: {{kind: embedded, model: {BASE}}}\n")
    rollouts = [
        {"problem_id": problem, "answer": "2", "right": True, "tokens": 9 + sample}
        for problem in "abcd"
        for sample in range(16)
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rollouts))
    (tmp_path / "choices.yaml").write_text("choices: {agree: [2, 4]}\n")
    side = f"{{engine: {{kind: embedded, model: {BASE}}}}}"
    (tmp_path / "decide.yaml").write_text(f"problems: ./rows.jsonl\na: {side}\nb: {side}\n")
    (tmp_path / "sft.yaml").write_text(f"model: {BASE}\noutput: out\ndata: {{folder: packs, steps: 1}}\n")
    return tmp_path


def refused(words: str, bad: str, folder: Path, capfd: pytest.CaptureFixture[str], *, runs: bool = False) -> str:
    """What is said by a command that must end with exit code 2 and one line, and leave the folder as it was; where it
    ``runs`` stages, behind what they say and write."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    assert run(words.format(bad=bad, base=BASE, cluster=CLUSTER).split()) is ExitCode.USER_ERROR, words
    said = capfd.readouterr().err
    if runs:
        shutil.rmtree(folder / "out", ignore_errors=True)
        said = said.splitlines(keepends=True)[-1]
    assert said.startswith("openmath: "), said
    assert said.count("\n") == 1, said
    assert "defect" not in said
    assert "; " in said or ": " in said.removeprefix("openmath: "), "a remedy, or what was expected"
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before, words
    return said


def test_the_tables_know_every_verb() -> None:
    found = set(names(build_parser()))
    assert found == set(INPUTS) | NO_INPUT
    assert found == set(OUTPUTS) | NO_OUTPUT


@pytest.mark.parametrize("verb", INPUTS)
def test_an_input_that_cannot_be_used_is_one_line(verb: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in INPUTS[verb]:
        for bad in ("nowhere", "file/x", "folder", "binary", "circle", "/dev/null", "x" * 300):
            assert bad in refused(f"{verb} {words}", bad, folder, capfd, runs=verb in RUNS)


@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_that_cannot_be_used_is_one_line(verb: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Below a file, where nothing can be made, a name that is too long, and what a file would take the place of."""
    for bad in ("file/x", "/proc/x", "pipe", "circle", "x" * 300):
        if (verb, bad) == ("sandbox serve", "/proc/x"):  # only known once the sandbox has started
            continue
        where = str(Path(bad).parent) if bad == "/proc/x" else bad.partition("/x")[0]
        assert where in refused(f"{verb} {OUTPUTS[verb]}", bad, folder, capfd)


@pytest.mark.parametrize("verb", OUTPUTS)
def test_what_somebody_else_wrote_is_left_alone(verb: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "folder" / "mine.txt").write_text("mine\n")
    a_file = verb in ("grade", "serve", "sandbox serve", "certify", "benchmark prepare")
    bad = "file" if a_file else "folder"
    said = refused(f"{verb} {OUTPUTS[verb]}", bad, folder, capfd)
    words = (
        "not empty: it would be replaced; choose another output, or move that away\n"
        if a_file
        else "it holds mine.txt; "
    )
    if verb != "sandbox serve" and not verb.startswith(WHOLE):
        assert f"openmath: {bad}: is not " in said
        assert words in said


def test_every_output_of_ours_is_taken_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same command twice, and a recipe that lies in the folder of its run."""
    (folder / "run").mkdir()
    (folder / "run" / "r.yaml").write_text(
        "name: r\nstages:\n  a: {run: problems.read_problems, from: ../rows.jsonl}\n"
    )
    for words in ("recipe run run/r.yaml --output run", "grade rows.jsonl --output graded", "recipe reference pages"):
        assert run(words.split()) is ExitCode.OK
        assert run(words.split()) is ExitCode.OK
    (folder / "run" / "b").mkdir()
    (folder / "run" / "b" / "mine.txt").write_text("mine\n")
    (folder / "run" / "r.yaml").write_text(
        "name: r\nstages:\n  b: {run: problems.read_problems, from: ../rows.jsonl}\n"
    )
    capfd.readouterr()
    assert run(["recipe", "run", "run/r.yaml", "--output", "run"]) is ExitCode.USER_ERROR
    assert "run/b: is not the folder of stage 'b', and not empty: it holds mine.txt; " in capfd.readouterr().err


def test_a_wrong_folder_is_answered_with_those_near_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("run/packs1/packs.plan", "run/train1/checkpoints/step-00000008/state/x", "run/student1/config.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    for words, near in (
        ("data stats run/pakcs1", "give the folder of a finished sft.pack stage; near it: run/packs1\n"),
        ("data stats run/train1", "near it: run/packs1\n"),
        ("data verify run/student1", "near it: run/packs1\n"),
        ("inspect run/packs1", "near it: run/student1\n"),
    ):
        assert run(words.split()) is ExitCode.USER_ERROR
        assert capfd.readouterr().err.endswith(near)
    (folder / "run/train1/checkpoints/step-00000008").rename(folder / "run/train1/checkpoints/unfinished")
    assert run(["inspect", "run/train1"]) is ExitCode.USER_ERROR
    assert capfd.readouterr().err.endswith("near it: run/train1/checkpoints/unfinished\n")


def test_a_graded_file_behind_a_link_is_written_there(folder: Path) -> None:
    (folder / "real.jsonl").write_text("")
    (folder / "link.jsonl").symlink_to("real.jsonl")
    assert run(["grade", "rows.jsonl", "--output", "link.jsonl"]) is ExitCode.OK
    assert (folder / "link.jsonl").is_symlink()
    assert "equal" in (folder / "real.jsonl").read_text()


def test_a_list_of_servers_without_one(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("# none yet\n\n")
    with pytest.raises(UserError, match=r"urls: no URL in it; write one URL a line"):
        ServerPool(tmp_path / "urls")
