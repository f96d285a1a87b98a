"""``openmath evaluate MODEL`` with a small model: what it measures is what it was asked, no problem more."""

import json
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run as command
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import Generation, read_records

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
