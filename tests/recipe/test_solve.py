"""``openmath solve FILE`` with a small model: what is printed is what was submitted, and nothing is solved twice."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from nemo_openmath.cli.main import run as command
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.serving.settings import SolverChoices
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.recipe.solve import SolvedProblem, print_solved, question_lines, solved_problems

BASE = str(Path(__file__).parents[2] / "examples" / "base")
QUICK = ["--model", BASE, "--mode", "cot", "--base-seconds", "5", "--batch", "2", "--tokens", "8", "--seed", "3"]


def test_a_file_is_solved_once_and_its_answers_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    problems, output = tmp_path / "problems.jsonl", tmp_path / "out"
    rows = [{"problem": f"What is {n} plus [bold]{n}[/bold]?", "expected_answer": str(2 * n)} for n in (1, 2, 3)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["solve", str(problems), "--output", str(output), *QUICK]
    assert command(line) is ExitCode.OK
    first = capsys.readouterr().out
    assert first.count("[bold]") == 3, "a problem is text, never markup"
    assert "0 of 3 right (0.0%, 95% interval" in first
    stored = sorted((output / "solved").rglob("*"))
    times = [path.stat().st_mtime_ns for path in stored]
    assert command(line) is ExitCode.OK
    assert capsys.readouterr().out == first
    assert [path.stat().st_mtime_ns for path in stored] == times
    submissions = [g for g in read_records(output / "solved", Generation) if g.mode == Mode.COMPETITION]
    assert len(submissions) == 3
    assert [s.problem.id for s in solved_problems(output / "problems", output / "solved", 3)] == [
        p.id for p in read_records(output / "problems", Problem)
    ]
    solver = yaml.safe_load((output / "solve.yaml").read_text())["stages"]["solved"]["solver"]
    assert (solver["batch"], solver["agree"], solver["rollout"]["temperature"]) == (2, 2, 0.7)


def test_one_question_leaves_nothing_where_no_output_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1 plus 1?\n"))
    assert command(["solve", "-", *QUICK]) is ExitCode.OK
    answer, how = capsys.readouterr().out.splitlines()
    assert (answer, how[:15]) == ("no answer", "0 of 2 solution")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("openmath-solve")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "solve what?"),
        (["x.jsonl", "--problem", "y"], "solve what?"),
        (["x.jsonl"], "x.jsonl: no such file"),
        ([__file__], "a file of problems needs --output DIR"),
        (["--problem", " "], "the question is empty"),
        (["--problem", "y", "--agree", "3"], "3 solutions that agree cannot be in a batch of 2"),
        (
            ["--problem", "y", "--base-seconds", "0"],
            "openmath: --base-seconds: 0.0 is out of range; choose more than 0",
        ),
        (["--problem", "y", "--total-seconds", "0"], "openmath: --total-seconds: 0.0 is out of range"),
        (["--problem", "y", "--device", "tpu"], "openmath: --device: no device 'tpu'"),
        (["--problem", "y", "--code-calls", str(1 << 63)], "openmath: --code-calls: 9223372036854775808 is beyond"),
        (["--problem", "y", "--seed", str(1 << 63)], "openmath: --seed: 9223372036854775808 is beyond 64 bits"),
        (["--problem", "y", "--base-seconds", "nan"], "not a number of seconds: 'nan'"),
        (["--problem", "y", "--temperature", "-1"], "openmath: --temperature: -1.0 is out of range"),
        (["--problem", "y", "--tokenizer", BASE], "--tokenizer is of a model on a server"),
        (["--problem", "y", "--server", "http://127.0.0.1:1"], "--server is given, and --tokenizer is not"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # of argparse
        assert command(["solve", *QUICK, *words]) is ExitCode.USER_ERROR
    assert message in capsys.readouterr().err


def test_a_total_in_which_nothing_can_be_solved_names_the_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "problems.jsonl", str(tmp_path / "out")
    file.write_text("".join(f'{{"problem": "{n} + 1?"}}\n' for n in range(24)))
    line = ["solve", str(file), *QUICK, "--output", output, "--total-seconds"]
    assert command([*line, "1"]) is ExitCode.USER_ERROR
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "openmath: --total-seconds 1 are too few for 24 problems: 5 s are kept for each; choose 120 or more, "
        "or --base-seconds 0.0413 or less"
    )
    assert not (tmp_path / "out" / "solved").exists()
    for words in (["119.9"], ["1", "--base-seconds", "0.042"]):
        assert command([*line, *words]) is ExitCode.USER_ERROR
    banks = [
        (TimeBank(base, total=total, reserve=10.0), n) for base, total, n in ((5, 120, 24), (0.0413, 1, 24), (5, 1, 1))
    ]
    assert all((bank.total or 0) >= bank.least_total(n) for bank, n in banks)


def test_a_policy_file_lies_below_the_command_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("batch: 8\nagree: 3\nrule: bayes\nrollout: {temperature: 0.2, max_tokens: 9}\n")
    settings = SolverChoices(policy, batch=12, modulo=1000, rollout={"max_tokens": 7}).settings()
    assert (settings.batch, settings.agree, settings.rule) == (12, 3, "bayes")
    rollout = settings.rollout
    assert (rollout.temperature, rollout.max_tokens, rollout.budgets, rollout.code_seconds) == (0.2, 7, (6, 6), 2.0)
    assert [settings.answers.read(text).answer for text in ("1007", "12", "-1", "1/2")] == ["7", "12", "999", None]
    assert SolverChoices().settings().rollout.temperature == 0.7
    policy.write_text("batsh: 8\n")
    with pytest.raises(UserError, match=r"policy\.yaml:1: .*batsh"):
        SolverChoices(policy).settings()


def test_the_score_counts_an_open_verdict_as_wrong_and_names_it() -> None:
    solved = []
    for number, verdict in enumerate([Verdict.EQUAL, Verdict.NOT_EQUAL, Verdict.UNKNOWN, Verdict.EQUAL]):
        problem = Problem.make(f"Problem {number}", expected_answer="1")
        note = Submission(3, 4, 2.5, 2.6, 10.0, {"reason": "agreement"})
        submission = Generation(
            id=f"g{number}",
            problem_id=problem.id,
            mode=Mode.COMPETITION,
            model="m",
            sample=0,
            transcript={"messages": [], "pieces": []},
            finish=Finish.AGREEMENT,
            expected_answer="1",
            predicted_answer="1",
            verdict=verdict,
            extra=note.to_extra(),
        )
        solved.append(SolvedProblem(problem, submission))
    screen = io.StringIO()
    print_solved(Console(file=screen, width=80), solved, Path("out"))
    told = screen.getvalue()
    assert told.count("3 of 4  2.5 of 10.0  agreement") == len(solved)  # the problem's text leaves room for them
    assert "2 of 4 right (50.0%, 95% interval" in told
    assert "1 verdicts are open and count as wrong" in told
    assert question_lines(solved[0]) == ["1", "3 of 4 solutions, 2.5 of 10.0 s, ended by agreement"]
