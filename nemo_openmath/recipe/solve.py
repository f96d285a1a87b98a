"""``openmath solve``: problems under a clock, as a recipe of two stages that stands in the output folder.

    problems    problems.read_problems
    solved      competition.solve: submissions, and the attempts behind them

The same command goes on where it was, with the time bank that it had.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_openmath.competition.serving.settings import SOLVER_OPTIONS
from nemo_openmath.competition.stage import Compete
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, content_id, read_records
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.records.store import part_files
from nemo_openmath.evaluation.share import ShareOfRight
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.evaluation_engines import ENGINE_OPTIONS
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.written import write_recipe

RECIPE = "solve.yaml"
PROBLEMS, SOLVED = "problems", "solved"
OPTIONS = ENGINE_OPTIONS | {
    "competition.solve.engine": "--model",
    "competition.solve.mode": "--mode",
    "competition.solve.prompt": "--prompt",
    "competition.solve.base_seconds": "--base-seconds",
    "competition.solve.bank_seconds": "--bank-seconds",
    "competition.solve.total_seconds": "--total-seconds",
    **{f"competition.solve.solver.{setting}": option for setting, option in SOLVER_OPTIONS.items()},
}
"""What the command line calls the settings of the recipe (:func:`write_recipe`)."""
_QUESTION = ".question.jsonl"  # hidden: it is no part of what was made


@dataclass(frozen=True)
class SolveRequest:
    """What the command line says."""

    model: Path
    """A model folder; with a server, the folder of the model's tokenizer."""
    problems: Path | str
    """A file with problems or the folder of a stage; a text: one question."""
    output: Path | None
    """The folder of the run; None for one question: nothing is kept."""
    contest: dict[str, Any] = field(default_factory=dict)
    """Of the stage ``competition.solve``, without its engine."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Of the section ``student`` of a recipe: how the model generates."""
    sandbox: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    """Processes that compare answers."""
    seed: int = 0
    replace: bool = False


@dataclass(frozen=True, slots=True)
class SolvedProblem:
    """A problem and its submission."""

    problem: Problem
    submission: Generation

    @property
    def note(self) -> Submission:
        """How the answer came about."""
        return Submission.of(self.submission)

    @property
    def verdict(self) -> str:
        """What the grader says, in a word; nothing where no answer is expected."""
        if self.problem.expected_answer is None:
            return ""
        named = {Verdict.EQUAL: "right", Verdict.NOT_EQUAL: "wrong"}
        return named.get(self.submission.verdict or Verdict.UNKNOWN, "open")


def recipe_of(request: SolveRequest, problems: Path) -> dict[str, Any]:
    """Return the recipe: the content of its file."""
    stages: dict[str, Any] = {}
    source = str(problems.resolve())
    if not (problems.is_dir() and part_files(problems)):
        stages[PROBLEMS] = {"run": "problems.read_problems", "from": source}
        source = PROBLEMS
    engine = str(request.model.resolve())
    stages[SOLVED] = {"run": "competition.solve", "from": source, "engine": engine, **request.contest}
    return {
        "name": "solve",
        "seed": request.seed,
        "student": request.engine,
        "sandbox": request.sandbox,
        "grading": {"workers": request.workers},
        "stages": stages,
    }


async def solve(request: SolveRequest) -> None:
    """Solve problems, or go on with it, and print their answers."""
    if isinstance(request.problems, Path):
        if not request.problems.exists():
            raise UserError("no such file or folder", file=request.problems, remedy="put it there, or give --problem")
        if request.output is None:
            raise UserError(
                "a file of problems needs --output DIR", remedy="give a folder: finished answers stay there"
            )
        await _run(request, request.problems, request.output)
    elif request.output is None:
        with tempfile.TemporaryDirectory(prefix="openmath-solve-") as folder:
            await _run(request, _written(request.problems, Path(folder)), Path(folder))
    else:
        await _run(request, _written(request.problems, request.output), request.output)


def _written(question: str, output: Path) -> Path:
    """Write one question as a file of problems into the folder of the run. Raises UserError where it is another's."""
    if not question.strip():
        raise UserError("the question is empty", remedy="give --problem TEXT, or a file of problems")
    identity.refuse_foreign(output, [output / RECIPE])
    output.mkdir(parents=True, exist_ok=True)
    path = output / _QUESTION
    path.write_bytes(orjson.dumps({"problem": question.strip()}) + b"\n")
    return path


async def _run(request: SolveRequest, problems: Path, output: Path) -> None:
    content = recipe_of(request, problems)
    run = Run(write_recipe(content, output, RECIPE, OPTIONS), output)
    folder = output / PROBLEMS if PROBLEMS in run.recipe.stages else problems
    if request.contest.get("total_seconds") is not None:
        if PROBLEMS in run.recipe.stages:
            await run.execute(StageSelection(until=PROBLEMS, replace=request.replace))
        _refuse_short(run, sum(1 for _ in read_records(folder, Problem)))
    await run.execute(StageSelection(replace=request.replace))
    solved = solved_problems(folder, output / SOLVED, request.seed)
    if isinstance(request.problems, Path):
        print_solved(Console(width=None if Console().is_terminal else 120), solved, output)
        return
    print("\n".join(question_lines(solved[0])))
    if request.output is not None:
        print(f"all of it: {output}")


def _refuse_short(run: Run, problems: int) -> None:
    """Raise UserError where the whole time is less than what is kept for the problems."""
    stage = run.recipe.entry(SOLVED).stage
    assert isinstance(stage, Compete)
    bank = stage.config.bank(problems)
    assert bank.total is not None
    if bank.total < (least := bank.least_total(problems)):
        raise UserError(
            f"--total-seconds {bank.total:g} are too few for {problems} problems: {bank.kept:g} s are kept for each",
            remedy=f"choose {least:g} or more, or --base-seconds {0.99 * bank.total / problems:.3g} or less",
        )


def solved_problems(problems: Path, solved: Path, seed: int) -> list[SolvedProblem]:
    """Return the problems that have a submission, in the order of the file."""
    submissions = {g.id: g for g in read_records(solved, Generation) if g.mode == Mode.COMPETITION}
    keyed = ((p, content_id("submission", p.id, seed)) for p in read_records(problems, Problem))
    return [SolvedProblem(p, submissions[key]) for p, key in keyed if key in submissions]


_OTHER_COLUMNS = 64
"""Characters of a line that the answer and what is said of it take."""


def print_solved(console: Console, solved: Sequence[SolvedProblem], output: Path) -> None:
    """Print for each problem its answer, how it came about and, where one is expected, whether it is right."""
    graded = [entry for entry in solved if entry.problem.expected_answer is not None]
    table = Table(box=None, pad_edge=False)
    room = max(16, console.width - _OTHER_COLUMNS)
    table.add_column("problem", max_width=room, no_wrap=True, overflow="ellipsis")
    for name in ("answer", *(["verdict"] if graded else []), "votes", "seconds", "ended by"):
        table.add_column(name, no_wrap=name != "answer")
    for entry in solved:
        note, answer = entry.note, _answer(entry)
        cells = [" ".join(entry.problem.problem.split()), answer, *([entry.verdict] if graded else [])]
        cells += [f"{note.votes} of {note.finished}", f"{note.seconds:.1f} of {note.allowed or 0:.1f}", _reason(entry)]
        table.add_row(*map(Text, cells))
    console.print(table)
    if graded:
        share = ShareOfRight()
        for entry in graded:
            share.add(entry.problem.id, entry.verdict == "right")
        left_open = sum(entry.verdict == "open" for entry in graded)
        more = f"; {left_open} verdicts are open and count as wrong" if left_open else ""
        console.print(f"{share.right} of {share.tried} right ({share.text()}){more}", soft_wrap=True, highlight=False)
    console.print(f"all of it: {output}", soft_wrap=True, highlight=False, markup=False)


def question_lines(entry: SolvedProblem) -> list[str]:
    """Return the answer to one question, alone on its line, and how it came about."""
    note = entry.note
    time = f"{note.seconds:.1f} of {note.allowed or 0:.1f} s"
    return [_answer(entry), f"{note.votes} of {note.finished} solutions, {time}, ended by {_reason(entry)}"]


def _answer(entry: SolvedProblem) -> str:
    answer = entry.submission.predicted_answer
    return "no answer" if answer is None else " ".join(answer.split())


def _reason(entry: SolvedProblem) -> str:
    return str(entry.note.details.get("reason", entry.submission.finish))
