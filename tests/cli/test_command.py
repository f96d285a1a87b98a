"""The command as a user types it: results on standard output, mistakes in one line and an exit code."""

import json
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.errors import ExitCode

BASE = str(Path(__file__).parents[2] / "examples" / "base")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe", "run", "nowhere.yaml", "--output", "x"], "nowhere.yaml: cannot read it"),
        (["grade", "nowhere.jsonl", "--output", "x"], "nowhere.jsonl: no such file"),
        (["sandbox", "exec", "nowhere.py"], "nowhere.py: cannot read the program"),
        (["inspect", "nowhere"], "nowhere"),
        (["serve", "nowhere"], "nowhere: no such model folder"),
        (["convert", "megatron-to-hf", BASE, "x"], "is a Hugging Face folder already"),
        (["merge", "--method", "slerp", BASE, "--output", "x"], "slerp merges two models, not 1"),
        (["recipe", "run", "x", "--output", "y", "--shard", "3/2"], "not a shard"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) is ExitCode.USER_ERROR
    out = said(capsys)
    assert message in out
    assert out.count("\n") == 1
    assert "Traceback" not in out
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["recipe", "stages", "--nonsense"])
    assert stop.value.code == ExitCode.USER_ERROR
    assert "unrecognized arguments: --nonsense" in said(capsys)


def test_merge_takes_weights_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, words in enumerate((["--weights", "0.3", "0.7", BASE, BASE], [BASE, BASE, "--weights", "0.3,0.7"])):
        out = tmp_path / str(n)
        assert run(["merge", *words, "--output", str(out)]) is ExitCode.OK
        capsys.readouterr()
        assert run(["inspect", BASE, str(out)]) is ExitCode.OK
        assert "0 differ" in said(capsys), "a model merged with itself is itself"


def test_grade_and_sandbox_print_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"generation": "so \\\\boxed{\\\\frac12}", "expected_answer": "0.5"}\n')
    assert run(["grade", str(rows), "--output", str(tmp_path / "out.jsonl")]) is ExitCode.OK
    assert "equal 1" in said(capsys)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["verdict"], row["symbolic_correct"], row["predicted_answer"]) == ("equal", True, "\\frac12")

    program = tmp_path / "p.py"
    program.write_text("x = 6\nx * 7\n")
    assert run(["sandbox", "exec", str(program), "--timeout", "5"]) is ExitCode.OK
    result = json.loads(said(capsys))
    assert (result["status"], result["stdout"]) == ("completed", "42\n")
