"""``openmath evaluate MODEL`` with a small model: what it measures is what it was asked, no problem more."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run as command
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.listening import free_port
from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.recipe.evaluation_time import Learned, Work, time_lines

BASE = str(Path(__file__).parents[2] / "examples" / "base")
EASY = Path(__file__).parents[2] / "examples" / "benchmarks" / "easy-30.jsonl"


def rows(output: Path, stage: str) -> dict[tuple[str, str], int]:
    """(Mode, metric) -> the number of problems that its mean is over."""
    return {(r["mode"], r["metric"]): r["problems"] for r in json.loads((output / stage / "results.json").read_text())}


def test_a_limit_holds_for_solutions_selections_and_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selection over all problems would count those without a solution as wrong."""
    monkeypatch.setenv("COLUMNS", "200")
    own = tmp_path / "own"
    line = ["evaluate", BASE, "--benchmark", str(EASY), "--samples", "2", "--tokens", "8", "--limit", "3",
            "--mode", "genselect", "--candidates", "2", "--rounds", "2", "--select-tokens", "8"]  # fmt: skip
    assert command([*line, "--mode", "cot", "--output", str(own)]) is ExitCode.OK
    told = capsys.readouterr()
    measured = rows(own, "easy-30_cot_results")
    assert measured["cot", "pass@1"] == measured["genselect", "genselect@k"] == 3
    assert len({g.problem_id for g in read_records(own / "easy-30_cot", Generation)}) == 3
    assert "pass@1" in told.out
    other = tmp_path / "other"
    theirs = ["--solutions", str(own), "--output", str(other)]
    assert command([*line, *theirs]) is ExitCode.OK
    assert rows(other, "easy-30_cot_others_results")["genselect", "genselect@k"] == 3
    again = ["evaluate", "rescore", str(own), "--output", str(tmp_path / "again"), "--mode"]
    assert command([*again, "cot"]) is ExitCode.OK
    assert "6 generations scored again: 0 verdicts changed" in capsys.readouterr().out
    assert command([*again, "tir"]) is ExitCode.USER_ERROR
    assert "no generations of mode tir" in capsys.readouterr().err
    more = [word if word != "3" else "5" for word in line]
    assert command([*more, *theirs]) is ExitCode.USER_ERROR
    assert "no solution of 2 of the 5 problems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "genselect"], "genselect needs solutions to select among"),
        (["--solutions", "x"], "--solutions are what genselect chooses among"),
        (["--server", "http://127.0.0.1:1"], "--server is given, and --model is not"),
        (["--model", "m"], "--model and --api are of a server"),
        (["--judge", "nowhere"], "nowhere: no such model folder"),
        (["--judge", "http://127.0.0.1:1"], "needs --judge-model and --judge-tokenizer"),
        (["--prompt", "tir"], "--prompt 'tir' is no prompt of a mode"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", BASE, "--benchmark", str(EASY), "--output", str(tmp_path / "out"), *words]
    assert command(line) is ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "--temperature: -1.0 is out of range; choose 0 or more"),
        (["--top-p", "2"], "--top-p: 2.0 is out of range"),
        (["--device", "tpu"], "--device: no device 'tpu'"),
        (["--seed", str(1 << 63)], "--seed: 9223372036854775808 is beyond 64 bits"),
        (["--mode", "genselect", "--mode", "cot", "--select-tokens", str(1 << 63)], "--select-tokens: 92"),
        (["--server", "ftp://x", "--model", "m"], "not a server URL: 'ftp://x'"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_option(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe that the command writes is none of the user's files."""
    line = ["evaluate", BASE, "--benchmark", str(EASY), "--output", str(tmp_path / "out"), "--samples", "1", *words]
    assert command(line) is ExitCode.USER_ERROR
    assert message in (said := capsys.readouterr().err)
    assert "evaluate.yaml:" not in said


def test_servers_that_are_away_are_known_before_anything_is_generated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "evaluate",
        BASE,
        "--benchmark",
        str(EASY),
        "--limit",
        "1",
        "--tokens",
        "4",
        "--samples",
        "1",
        "--wait",
        "0.1",
    ]
    away = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    for name, words in (
        ("model", ["--server", away, "--model", "m"]),
        ("judge", ["--judge", away, "--judge-model", "m", "--judge-tokenizer", BASE]),
    ):
        assert command([*line, *words, "--output", str(tmp_path / name)]) is ExitCode.USER_ERROR
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"openmath: no answer in 0.1 s: {away}: ")
        assert "start it (openmath serve)" in said
        assert not (tmp_path / name / "easy-30_cot").exists()


def test_a_server_is_evaluated_judged_and_selects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, output = tmp_path / "address", tmp_path / "run"
    line = [sys.executable, "-m", "nemo_openmath.cli.main", "serve", BASE, "--port", "0", "--name", "student"]
    with subprocess.Popen([*line, "--address-file", str(address)], stderr=subprocess.DEVNULL) as server:
        try:
            while not address.exists():
                assert server.poll() is None, "it ended before it served"
                time.sleep(0.05)
            url = address.read_text().split()[0]
            words = ["--server", url, "--model", "student", "--benchmark", str(EASY), "--limit", "2", "--samples", "2"]
            words += ["--tokens", "8", "--mode", "tir", "--mode", "genselect", "--candidates", "2", "--rounds", "2"]
            words += ["--judge", url, "--judge-model", "student", "--judge-tokenizer", BASE, "--judge-votes", "3"]
            words += ["--judge-attempts", "2", "--output", str(output)]
            assert command(["evaluate", BASE, *words]) is ExitCode.OK
            assert command(["evaluate", BASE, *words, "--model", "nobody", "--samples", "3"]) is ExitCode.USER_ERROR
            assert "no server has the model 'nobody'; it serves student" in capsys.readouterr().err
        finally:
            server.terminate()
    assert rows(output, "easy-30_tir_results")["genselect", "genselect@k"] == 2
    judged = json.loads((output / "easy-30_tir_judged" / "manifest.json").read_text())
    assert (judged["config"]["votes"], judged["config"]["attempts"]) == (3, 2)


def test_times_are_a_range_until_solutions_have_been_made() -> None:
    cot, tir = Work("cot", 100, 4000, "m"), Work("tir", 100, 500, "m")
    assert time_lines([cot, tir], 200.0, 16) == [
        "measured: 200 tokens/s with 16 at once; at this speed:",
        "cot: 8 min 20 s to 33 min 20 s for 100 solutions: of 1,000 tokens, or of all 4,000 that they may have",
        "tir: 4 min 10 s to 12 min 30 s for 100 solutions: of 500 tokens, or of all 500 that they may have, and "
        "programs run long",
    ]
    assert time_lines([replace(tir, mode="cot")], 200.0, 16)[1] == (
        "cot: at most 4 min 10 s for 100 solutions of at most 500 tokens"
    )
    assert Learned(20, 6000, 90.0).line(tir) == (
        "tir: about 7 min 30 s for 100 solutions, as the 20 that are there took: 4.50 s and 300 tokens each"
    )
