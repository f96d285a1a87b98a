"""`openmath serve`: its options, and the reason of every failure in one line with its exit code."""

from __future__ import annotations

import json
import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from nemo_openmath.cli.main import build_parser, run
from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.inference.serving.launch import ServerConfig
from nemo_openmath.inference.serving.options import server_arguments
from nemo_openmath.inference.serving.supervise import ServerProcess
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.preflight import preflight

BASE = Path(__file__).parents[2] / "examples" / "base"


def folder_without(path: Path, *names: str) -> Path:
    shutil.copytree(BASE, path)
    for name in names:
        (path / name).unlink()
    config = json.loads((BASE / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``openmath serve`` says when it refuses: one line, with exit code 2."""
    capsys.readouterr()
    assert run(["serve", *words]) is ExitCode.USER_ERROR
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), out + err
    return err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("nowhere", "nowhere: no such model folder"),
        (".", "no model here (config.json is missing)"),
        ("BASE --port 99999", "port 99999 is out of range"),
        ("BASE --port -1", "port -1 is out of range"),
        ("BASE --host 192.0.2.1", "192.0.2.1 is no address of this machine"),
        ("BASE --slotz 4", "unrecognized arguments: --slotz 4; see openmath serve --help"),
        ("BASE more", "unrecognized arguments: more"),
        ("BASE -- --slotz 4", "behind --: unrecognized arguments: --slotz 4; the embedded engine knows --slots"),
        ("BASE -- --slots many", "not a whole number: 'many'"),
        ("BASE -- --help", "unrecognized arguments: --help"),
        ("BASE --log nowhere/log", "nowhere: no such folder for the log"),
        ("BASE --engine trtllm", "needs trtllm-serve; pip install 'nemo-openmath[trtllm]'"),
        ("BASE --engine vllm --slots 4", "--slots is an option of the embedded engine, not of vllm"),
        ("BASE --engine vllm --tp 2", f"openmath serve {BASE} --engine vllm -- --tp 2"),
        ("BASE --engine vllm -- --help", "--help is not passed on"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_a_server_is_started(
    words: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refused([str(BASE) if word == "BASE" else word for word in words.split()], capsys)


def test_a_folder_or_a_port_that_cannot_be_served_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no tokenizer.json" in refused([str(folder_without(tmp_path / "a", "tokenizer.json"))], capsys)
    said = refused([str(folder_without(tmp_path / "b"))], capsys)
    assert f"{tmp_path}/b: no chat template" in said
    assert "serve with --no-chat" in said
    ServerConfig(str(tmp_path / "b"), arguments=("--no-chat",)).check()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refused([str(BASE), "--port", str(port)], capsys)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'nemo-openmath[vllm]'" in refused([str(BASE), "--engine", "vllm", "--port", "0"], capsys)


def test_settings_that_do_not_fit_are_refused_by_the_server_in_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([str(BASE), "--port", "0", "--", "--threads", "1", "--cache-mib", "99999999"], capsys)
    assert "cache_mib 99999999 (97656.2 GiB) does not fit: " in said
    assert "is free, the weights take" in said


def test_options_of_the_embedded_engine_are_options_of_serve() -> None:
    def arguments(*words: str, behind: tuple[str, ...] = ()) -> tuple[str, ...]:
        return server_arguments(build_parser().parse_args(["serve", "m", *words]), behind)

    wanted = ("--slots", "4", "--dtype", "bfloat16", "--no-chat")
    assert arguments(*wanted) == arguments(behind=wanted) == wanted
    assert arguments("--slots", "8", "--port", "8011", behind=("--slots", "4")) == ("--slots", "4"), "the last counts"
    assert arguments() == ()
    assert arguments("--engine", "vllm", behind=("--tp", "2")) == ("--tp", "2")


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(d in said for d in ("default: embedded", "default: 127.0.0.1", "default: 8000", "default: float32")), (
        said
    )


def server_program(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model server of another kind: a program called trtllm-serve."""
    program = folder / "trtllm-serve"
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("echo 'RuntimeError: no GPU'; exit 1", EngineError, "exited with 1 while starting: RuntimeError: no GPU"),
        ("echo 'ValueError: large'; echo 'RuntimeError: see root cause'; exit 1", EngineError, "ValueError: large"),
        ("printf 'no line end'; exit 3", EngineError, "exited with 3 while starting: no line end"),
        ("echo usage; echo 's: error: unknown --x' >&2; exit 2", UserError, "trtllm: s: error: unknown --x"),
        ("echo \"OSError: We couldn't connect to 'https://huggingface.co'\"; exit 1", UserError, "m: no such model "),
        ("echo 'OSError: m is not a valid model identifier'; exit 1", UserError, "(OSError: m "),
        (f"echo Error: 1; echo '(APIServer pid=3) Value error, too {'x' * 2000}'; exit 1", UserError, "trtllm: too x"),
        ("echo 'Input should be 1 or 2 [type=literal_error, input_value=3]'; exit 1", UserError, "should be 1 or 2"),
        ("kill -9 $$", EngineError, "was killed by SIGKILL (out of memory? "),
        ("kill -SEGV $$", EngineError, "was killed by SIGSEGV while starting"),
    ],
)  # fmt: skip
async def test_the_last_words_of_a_server_that_dies_reach_the_user(
    body: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_program(tmp_path, body, monkeypatch)
    with pytest.raises(error) as caught:
        await ServerProcess(ServerConfig("m", engine="trtllm", check_s=0.01)).start()
    assert type(caught.value) is error
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("out of memory" in str(caught.value)) == ("SIGKILL" in said)


@pytest.mark.parametrize(
    ("code", "exit_code", "lines"),
    [(2, ExitCode.USER_ERROR, 1), (1, ExitCode.FAILURE, 3)],
)
def test_lines_before_the_last_are_shown_where_a_server_failed_and_not_for_a_mistake(
    code: int,
    exit_code: ExitCode,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server_program(tmp_path, f"echo usage; echo 's: error: unknown --x'; exit {code}", monkeypatch)
    assert run(["serve", "m", "--engine", "trtllm", "--port", "0"]) is exit_code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", lines), err


def drafter(path: Path, **changed: object) -> Path:
    """The folder of a drafter of BASE as far as config.json says: it has no weights, and none are read."""
    model = json.loads((BASE / "config.json").read_text())
    config = {"architectures": ["ReDrafter"], "hidden": model["hidden_size"], "vocab": model["vocab_size"]} | changed
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_drafter_that_is_none_of_this_model_is_refused_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    benchmark = tmp_path / "problems.jsonl"
    benchmark.write_text('{"problem": "1+1", "expected_answer": "2"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\nstages:\n  problems: {run: problems.read_problems, from: {files: ./problems.jsonl}}\n"
        f"  solutions: {{run: rollout.generate, engine: {BASE}, from: {{problems: problems}}}}\n"
        f"  drafter: {{run: drafter.train, from: {{generations: solutions, model: {BASE}}}}}\n"
    )
    job = tmp_path / "job.yaml"
    job.write_text(f"problems: problems.jsonl\nengine: {{kind: embedded, model: {BASE}}}\n")
    sides = tmp_path / "sides.yaml"
    side = f"{{engine: {{kind: embedded, model: {BASE}}}}}"
    sides.write_text(f"problems: problems.jsonl\ndelta: 0.1\na: {side}\nb: {side}\n")
    output = ["--output", str(tmp_path / "out")]
    other, sound = drafter(tmp_path / "other", hidden=8), drafter(tmp_path / "sound")
    head = drafter(tmp_path / "head", architectures=["LlamaForCausalLMEagle3"])
    reasons = {
        "nosuch": "nosuch is no folder; use ngram, none, or the folder of a drafter",
        str(BASE): f"{BASE}/config.json: not a drafter's config.json",
        str(head): "an EAGLE-3 head, no ReDrafter",
        str(other): "tokens and width 8; this model has",
    }

    def said(*words: str) -> str:
        assert run(list(words)) is ExitCode.USER_ERROR
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), out + err
        assert not (tmp_path / "out").exists()
        return err

    for name, reason in reasons.items():
        assert reason in said("serve", str(BASE), "--port", "0", "--drafter", name)
        assert reason in said("serve", str(BASE), "--port", "0", "--", f"--drafter={name}")
        assert reason in said("solve", "--problem", "1+1", "--model", str(BASE), "--drafter", name)
        assert reason in said("evaluate", str(BASE), "--benchmark", str(benchmark), *output, "--drafter", name)
        err = said("recipe", "run", str(recipe), f"student.drafter={name}", *output)
        assert "override: student.drafter: " in err
        assert reason in err
        assert reason in said("generate", str(job), f"engine.drafter={name}", *output)
        assert reason in said("evaluate", "decide", str(sides), f"b.engine.drafter={name}", *output)
    for name in ("ngram", "none", str(sound)):
        ServerConfig(str(BASE), arguments=("--drafter", name)).check()
    to_be_made = load_recipe(recipe, [f"student.drafter={tmp_path}/out/drafter"])  # by this run
    preflight(to_be_made, list(to_be_made.stages), tmp_path / "out")
