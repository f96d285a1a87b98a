"""Every code block of the pages is run, or read by the code that it is written for (docs/maintaining/pages.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import UserError
from tests.conftest import SmokeRun
from tests.docs.blocks import PAGES, TOP, Block, Line, blocks, shell_lines
from tests.docs.readers import RUNNABLE, check_command, check_yaml, name

LANGUAGES = {"bash", "python", "yaml", "json", "text", "toml"}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the clone for one page."""
    page: str = request.getfixturevalue("page")
    if not any(block.language in ("bash", "yaml", "python") for block in blocks(page)):
        return tmp_path
    smoke: SmokeRun = request.getfixturevalue("smoke_run")
    clone = smoke.copy(tmp_path / "clone").clone
    _files_of_the_user(clone)
    return clone


def _files_of_the_user(clone: Path) -> None:
    """Those that pages speak of as the reader's own."""
    shutil.copytree(clone / "examples/base", clone / "my-model")
    problems = [{"problem": "What is 1 + 1?", "expected_answer": "2"}, {"problem": "What is 2 + 2?"}]
    (clone / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    shutil.copy(clone / "problems.jsonl", clone / "benchmark.jsonl")
    (clone / "threads").mkdir()
    thread = {"forum_post": "What is 1 + 1?", "forum_discussions": "Post 1:\n2"}
    (clone / "threads/one.jsonl").write_text(json.dumps(thread) + "\n")
    (clone / "my-prompt.txt").write_text("Solve this: {problem}\n")


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    output = ""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: a fence names its language, one of {sorted(LANGUAGES)}"
        if block.language == "bash":
            output = _shell(block, folder, capfd)
        elif block.language == "yaml":
            check_yaml(block, folder)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "text" and block.is_run:
            assert block.hint("output") is not None, f"{block.where}: say <!-- output -->, or why it is not checked"
            _check_output(block, output)
    _python([block for block in blocks(page) if block.language == "python"], folder)


def _shell(block: Block, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Check every line, and run what may be run; returns what was printed."""
    output, code, expected = "", 0, int(block.hint("exit") or 0)
    for line in shell_lines(block):
        for words in line.commands if not expected else ():  # what is meant to fail is run, and fails
            try:
                check_command(words, folder)
            except Exception as error:
                raise AssertionError(f"{block.where}: {line.text}: {error}") from error
        if block.is_run:
            others = [words[0] for words in line.commands if name(words[0]) not in RUNNABLE]
            assert not others, f"{block.where}: {others} cannot be run here: say why, <!-- not run: it needs Slurm -->"
            assert code == 0, f"{block.where}: the command before {line.text!r} ended with {code}: {output}"
            printed, code = _run(line, capfd)
            output += printed
    assert code == expected, f"{block.where}: exit code {code}, expected {expected}:\n{output}"
    return output


def _run(line: Line, capfd: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """(what is printed, exit code). A plain ``openmath`` line runs in this process, which has loaded its packages."""
    words = line.commands[0]
    if line.plain and name(words[0]) == "openmath":
        capfd.readouterr()
        try:
            code = int(run(list(words[1:])))
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        printed = capfd.readouterr()
        return printed.err + printed.out, code  # what is said on the way, then the results
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.text.replace(".venv/bin/", "")],
        env=os.environ | {"PATH": path, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stderr + done.stdout, done.returncode


def _check_output(block: Block, output: str) -> None:
    """Each line of the block stands in the output, in this order. ``...`` is anything; spaces may be any number."""
    text, at = re.sub(r"[ \t]+", " ", output), 0
    for line in block.text.splitlines():
        pieces = [re.escape(p) for p in re.sub(r"\s+", " ", line.strip()).split("...")]
        if found := re.compile(".*?".join(pieces)).search(text, at):
            at = found.end()
        else:
            raise AssertionError(f"{block.where}: {line!r} is not printed; this is:\n{output}")


def _python(code: list[Block], folder: Path) -> None:
    """Run a page's Python as one program."""
    for block in code:
        compile(block.text, block.where, "exec")
    text = "\n".join(block.text for block in code if block.is_run)
    if not text:
        return
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{code[0].where}: {done.stderr}"


WRONG = {
    "openmath recipe run examples/smoke.yaml --outputs x": "the parser refuses it",
    "openmath recipe run examples/none.yaml --output x": "no such file",
    "openmath recipe run examples/smoke.yaml --output x stages.train1.training.rate=1": "rate",
    "openmath recipe run examples/smoke.yaml --output x --until nowhere": "no stage 'nowhere'",
    "openmath recipe stages sft.nothing": "no such kind",
    "make nothing": "no such target",
    "python benchmarks/none.py": "no such file",
    "opnmath plan": "no program",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_line_is_noticed(text: str) -> None:
    (line,) = shell_lines(Block("index.md", 1, "bash", text, ()))
    with pytest.raises((AssertionError, UserError), match=WRONG[text]):
        check_command(line.commands[0], TOP)


@pytest.mark.parametrize(("text", "hint"), [("stages: {train1: {rate: 1}}", "over"), ("partitions: x", "cluster")])
def test_a_wrong_setting_is_noticed(text: str, hint: str, tmp_path: Path) -> None:
    for linked in ("examples", "launcher_scripts"):
        (tmp_path / linked).symlink_to(TOP / linked)
    over = f"{hint} examples/smoke.yaml"
    with pytest.raises(UserError, match=r"rate|partitions"):
        check_yaml(Block("index.md", 1, "yaml", f"{text}\n", (over,)), tmp_path)
