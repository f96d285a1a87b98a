"""The command as a user types it: results on standard output, mistakes in one line and an exit code."""

import argparse
import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.cli.common import EXAMPLES
from nemo_openmath.cli.main import _report, build_parser, main, run
from nemo_openmath.cli.streams import run_async
from nemo_openmath.core.errors import ExitCode

EXAMPLES_FOLDER = Path(__file__).parents[2] / "examples"
BASE = str(EXAMPLES_FOLDER / "base")


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
        (["recipe", "run", "x", "--output", ""], "an argument: nothing is given"),
        (["recipe", "run", "x", "--output="], "--output=: nothing is given"),
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


def verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every parser that does something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from verbs(child)


def test_every_help_has_an_example_that_parses_and_all_defaults() -> None:
    found = list(verbs(build_parser()))
    assert len(found) > 20
    for parser in found:
        words = EXAMPLES[parser.prog.partition(" ")[2]].split()
        text = parser.format_help()
        assert f"example: {parser.prog} {' '.join(words)}\nexit codes: 0 done, " in text
        _, rest = build_parser().parse_known_args([*parser.prog.split()[1:], *words])
        assert all("=" in word and not word.startswith("-") for word in rest), parser.prog
        for action in parser._actions:
            told = str(action.default) in " ".join(text.split()) or "default" in (action.help or "")
            assert action.default in (None, False, [], argparse.SUPPRESS) or told, (parser.prog, action.dest)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("recip run", "no command 'recip'; did you mean 'recipe'?"),
        ("recipe rn x", "recipe: no verb 'rn'; did you mean 'run'?"),
        ("recipe run x", f"recipe run: --output is missing; for example: openmath recipe run {EXAMPLES['recipe run']}"),
        ("recipe run x --outptu y", "recipe run: no option --outptu; did you mean '--output'?"),
        ("grade x --output y --worker=2 --nonsense", "grade: cannot use --nonsense; see openmath grade --help"),
        ("grade x --output y --skip-brokn", "grade: no option --skip-brokn; did you mean '--skip-broken'?"),
        ("quantize a b --format fp9", "quantize: no choice of --format: 'fp9'; did you mean 'fp8'?"),
        ("recipe", "recipe: VERB is missing; see openmath recipe --help"),
    ],
)
def test_a_mistake_on_the_line_is_one_line(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(words.split())
    assert stop.value.code == ExitCode.USER_ERROR
    assert said(capsys) == f"openmath: {line}\n"


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("sandbox exec p.py --timeout nan", "sandbox exec: --timeout: nan seconds; choose more than 0"),
        ("sandbox serve --drain -1", "sandbox serve: --drain: -1 seconds; choose 0 or more"),
        ("evaluate m --wait soon", "evaluate: --wait: not a number of seconds: 'soon'"),
    ],
)
def test_seconds_that_are_no_time_are_refused(words: str, refusal: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(words.split())
    assert stop.value.code == ExitCode.USER_ERROR
    assert said(capsys).startswith(f"openmath: {refusal}; for example: ")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 77, "out/x: no space left"),
        (OSError(errno.ENOSPC, "No space left on device"), 77, "no space left"),
        (OSError(errno.EROFS, "Read-only file system", "ro/x"), 2, "ro/x: cannot be used (Read-only file system); "),
        (FileExistsError(errno.EEXIST, "File exists", "x"), 2, "x: cannot be used (File exists); a file of this name"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), 2, "x/y: cannot be used (Not a directory); "),
        (OSError(errno.EIO, "Input/output error", "x"), 77, "x: Input/output error; check the file system"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 1, "the system says: Connection refused"),
        (TimeoutError(), 1, "the system says: TimeoutError"),
        (MemoryError(), 1, "out of memory"),
        (ImportError("x has no y", path="/a/x.py"), 2, "/a/x.py: it cannot be imported (ImportError: x has no y); "),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(error, debug=False) == code
    text = said(capsys)
    assert words in text
    assert text.count("\n") == 1
    assert "defect" not in text


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    """``| head``: what is left to do is done, and the exit code is that of the work."""
    words = [sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "show", str(EXAMPLES_FOLDER / "tiny.yaml")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "true"),
    [
        (["average", BASE, BASE, "--output", "x"], "nothing was left behind; run the same command again"),
        (["sandbox", "exec", "p.py"], "the program was ended"),
        (["recipe", "run", "r.yaml", "--output", "x"], "finished work is kept, the same command goes on from here"),
    ],
)
def test_ctrl_c_says_what_is_true(
    words: list[str], true: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> argparse.ArgumentParser:
        parser = build_parser()
        for verb in verbs(parser):
            verb.set_defaults(work=lambda _: signal.raise_signal(signal.SIGINT))
        return parser

    monkeypatch.setattr("nemo_openmath.cli.main.build_parser", build)
    assert run(words) is ExitCode.INTERRUPTED
    assert said(capsys) == f"interrupted; {true}\n"


def test_ctrl_c_before_the_work_begins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_openmath.cli.main.build_parser", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        main(["recipe", "stages"])
    assert stop.value.code == ExitCode.INTERRUPTED
    assert said(capsys) == "interrupted; nothing was begun\n"


def test_ctrl_c_is_heard_while_a_model_loads(capfd: pytest.CaptureFixture[str]) -> None:
    """The load cannot be stopped: that it was heard is said at once, before the load ends."""
    may_end = threading.Event()

    async def work() -> None:
        load = asyncio.ensure_future(asyncio.to_thread(may_end.wait, 60))
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        heard.append(capfd.readouterr().err)
        may_end.set()
        await load

    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_async(work())
    assert heard == ["\nstopping; Ctrl-C again ends at once\n"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["recipe", "stages", "--nonsense"])
    assert stop.value.code == ExitCode.USER_ERROR
    assert said(capsys) == "openmath: recipe stages: cannot use --nonsense; see openmath recipe stages --help\n"


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
