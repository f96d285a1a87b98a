"""``openmath evaluate MODEL``: a model on benchmarks, as a recipe that stands in the output folder.

Of every benchmark B and mode M, in this order:

    B_problems               problems.read_problems; with --limit, problems.select as B_chosen
    B_M                      rollout.generate
    B_M_graded, B_M_judged   solutions.grade; judging.judge, with --judge
    B_M_groups, B_M_selected genselect.groups and genselect.select, with --mode genselect: one mode per group
    B_M_results              evaluation.metrics

The numbers of the paper's evaluation (section 5.2, Table 7) are the defaults of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.store import part_files
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.reports.console import results_table
from nemo_openmath.evaluation.reports.formats import apart_lines, mode_name
from nemo_openmath.evaluation.stage import RESULTS
from nemo_openmath.recipe.evaluation_engines import ENGINE_OPTIONS
from nemo_openmath.recipe.evaluation_time import look_ahead
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.status import State
from nemo_openmath.recipe.written import write_recipe

RECIPE = "evaluate.yaml"
SOLVING = (Mode.COT, Mode.TIR)
OPTIONS = ENGINE_OPTIONS | {
    "teacher.url": "--judge",
    "teacher.model": "--judge-model",
    "teacher.tokenizer": "--judge-tokenizer",
    "problems.select.limit": "--limit",
    "rollout.generate.samples": "--samples",
    "rollout.generate.temperature": "--temperature",
    "rollout.generate.top_p": "--top-p",
    "rollout.generate.max_tokens": "--tokens",
    "rollout.generate.budgets": "--code-calls",
    "rollout.generate.tool_format": "--tool-format",
    "rollout.generate.prompt": "--prompt",
    "judging.judge.engine": "--judge",
    "judging.judge.votes": "--judge-votes",
    "judging.judge.attempts": "--judge-attempts",
    "genselect.groups.sizes": "--candidates",
    "genselect.groups.groups": "--rounds",
    "genselect.select.temperature": "--temperature",
    "genselect.select.top_p": "--top-p",
    "genselect.select.max_tokens": "--select-tokens",
    "genselect.select.prompt": "--prompt",
}
"""What the command line calls the settings of the recipe (:func:`write_recipe`)."""
_NAME = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class Sampled:
    """How solutions and selections are drawn. The defaults are the paper's."""

    samples: int = 64
    temperature: float = 0.6
    top_p: float = 0.95
    tokens: int = 32768
    code_calls: int = 8
    tool_format: str = "tags"
    prompts: dict[str, str] = field(default_factory=dict)
    """Mode -> a prompt file of the user's."""
    candidates: int = 16
    rounds: int = 64
    select_tokens: int = 2048


@dataclass(frozen=True)
class EvaluateRequest:
    """What the command line says."""

    model: Path
    """A model folder; with a server, the folder of the model's tokenizer."""
    benchmarks: Sequence[Path]
    output: Path
    modes: Sequence[str] = (Mode.COT,)
    sampled: Sampled = field(default_factory=Sampled)
    limit: int = 0
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)
    """Of the section ``student`` of a recipe: how the model generates."""
    judge: str = ""
    """A model folder, or the URL of a server."""
    judge_server: dict[str, Any] = field(default_factory=dict)
    """Of the section ``teacher`` of a recipe, where the judge is a server."""
    judge_votes: int = 1
    """Votes of the judge on each answer."""
    judge_attempts: int = 3
    """How often a vote is asked for until it can be read."""
    wait_s: float = 60.0
    """How long servers are waited for at the beginning. Those that go away later are waited for longer (patience_s)."""
    solutions: Sequence[Path] = ()
    """With mode genselect: folders of graded solutions of another model, or of its evaluation."""
    workers: int = 1
    """Processes that compare answers."""
    sandbox: dict[str, Any] = field(default_factory=dict)
    replace: bool = False


@dataclass(frozen=True, slots=True)
class SolutionSource:
    """Solutions of one benchmark and one mode that are measured, or selected among."""

    benchmark: str
    mode: str
    stage: str
    """The stage or folder of its graded (and judged) solutions."""
    own: bool = True
    """Whether they are the model's own, and so in its results."""

    @property
    def name(self) -> str:
        """The beginning of the names of its stages."""
        return f"{self.benchmark}_{self.mode}" + ("" if self.own else "_others")


def benchmark_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return name -> file of the benchmarks. Raises UserError where two have one name, or one is not there."""
    named: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            remedy = "openmath benchmark prepare makes one; openmath benchmark list knows some"
            raise UserError("no such benchmark", file=path, remedy=remedy)
        name = _NAME.sub("-", path.resolve().name.split(".")[0]).strip("-") or "benchmark"
        if name in named:
            raise UserError(f"two benchmarks are called {name}", file=path, remedy="rename one of the files")
        named[name] = path
    return named


def recipe_of(request: EvaluateRequest) -> tuple[dict[str, Any], list[SolutionSource]]:
    """Return the recipe, the content of its file, and what it measures. Raises UserError for what cannot be asked."""
    solving = [mode for mode in SOLVING if mode in request.modes]
    selecting = Mode.GENSELECT in request.modes
    if selecting and not (solving or request.solutions):
        raise UserError("--mode genselect needs solutions to select among", remedy="add --mode tir, or --solutions DIR")
    if request.solutions and not selecting:
        raise UserError("--solutions are what genselect chooses among", remedy="add --mode genselect")
    engine = str(request.model.resolve())
    stages: dict[str, Any] = {}
    sources: list[SolutionSource] = []
    named = benchmark_names(request.benchmarks)
    problems = {name: _read(stages, name, path) for name, path in named.items()}
    chosen = {name: _chosen(stages, name, problems[name], request.limit) for name in named}
    for name in named:
        own = [_solved(stages, request, name, mode, problems[name], engine) for mode in solving]
        others = list(_others(request, name))
        for source in [*own, *others]:
            selected = selecting and (source in others or not others)
            _measured(stages, request, source, chosen[name], engine, selected=selected)
        sources += [*own, *others]
    recipe: dict[str, Any] = {"name": "evaluate", "seed": request.seed, "student": request.engine}
    if request.judge_server:
        recipe["teacher"] = request.judge_server
    recipe |= {"sandbox": request.sandbox, "grading": {"workers": request.workers}, "stages": stages}
    return recipe, sources


def _read(stages: dict[str, Any], name: str, path: Path) -> str:
    """Add the stage that reads a benchmark; return its name, or the folder of a stage that has read it."""
    if path.is_dir() and part_files(path):
        return str(path.resolve())
    stages[f"{name}_problems"] = {"run": "problems.read_problems", "from": str(path.resolve())}
    return f"{name}_problems"


def _chosen(stages: dict[str, Any], name: str, problems: str, limit: int) -> str:
    """Add the stage that takes the problems within the limit; return its name, or ``problems`` where all are taken.
    Solutions are made of the whole set by the same limit, so that those of a smaller one are kept."""
    if not limit:
        return problems
    stages[f"{name}_chosen"] = {"run": "problems.select", "from": problems, "limit": limit}
    return f"{name}_chosen"


def _solved(
    stages: dict[str, Any], request: EvaluateRequest, benchmark: str, mode: str, problems: str, engine: str
) -> SolutionSource:
    """Add the stages that solve a benchmark in one mode, and grade what comes out."""
    drawn, name = request.sampled, f"{benchmark}_{mode}"
    stage: dict[str, Any] = {
        "run": "rollout.generate",
        "from": problems,
        "engine": engine,
        "mode": str(mode),
        "samples": drawn.samples,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "max_tokens": drawn.tokens,
        "budgets": [drawn.code_calls, drawn.code_calls],
        "limit": request.limit,
        "keep_ids": "always",  # so that solutions can be cut at a smaller token limit later
    }
    if mode == Mode.TIR:
        stage["tool_format"] = drawn.tool_format
    if mode in drawn.prompts:
        stage["prompt"] = drawn.prompts[mode]
    stages[name] = stage
    stages[f"{name}_graded"] = {"run": "solutions.grade", "from": name}
    if not request.judge:
        return SolutionSource(benchmark, str(mode), f"{name}_graded")
    stages[f"{name}_judged"] = {
        "run": "judging.judge",
        "from": {"generations": f"{name}_graded", "problems": problems},
        "engine": "teacher" if request.judge_server else str(Path(request.judge).resolve()),
        "votes": request.judge_votes,
        "attempts": request.judge_attempts,
    }
    return SolutionSource(benchmark, str(mode), f"{name}_judged")


def _measured(
    stages: dict[str, Any],
    request: EvaluateRequest,
    source: SolutionSource,
    problems: str,
    engine: str,
    *,
    selected: bool,
) -> None:
    """Add the selections among solutions, where they are wanted, and the metrics of both."""
    drawn, name = request.sampled, source.name
    measured = [source.stage] if source.own else []
    if selected:
        stages[f"{name}_groups"] = {
            "run": "genselect.groups",
            "from": {"problems": problems, "generations": source.stage},
            "modes": [source.mode],
            "sizes": [drawn.candidates, drawn.candidates],
            "groups": drawn.rounds,
            "mixed": False,
        }
        stages[f"{name}_selected"] = {
            "run": "genselect.select",
            "from": f"{name}_groups",
            "engine": engine,
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "max_tokens": drawn.select_tokens,
        }
        if "genselect" in drawn.prompts:
            stages[f"{name}_selected"]["prompt"] = drawn.prompts["genselect"]
        measured.append(f"{name}_selected")
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < drawn.samples} | {drawn.samples})
    stages[f"{name}_results"] = {
        "run": "evaluation.metrics",
        "from": {"generations": measured, "problems": problems},
        "checkpoint": source.benchmark,
        "ks": ks,
    }


def _others(request: EvaluateRequest, benchmark: str) -> Iterator[SolutionSource]:
    """Yield the solutions of another model: folders of stages, or those of an evaluation's folder. Raises UserError
    where there are none."""
    for path in request.solutions:
        folders = [path] if part_files(path) else _solutions_in(path, benchmark)
        if not folders:
            remedy = "give the --output folder of its evaluation on the same benchmark, or the folder of a stage"
            raise UserError(f"no graded solutions of {benchmark}", file=path, remedy=remedy)
        for folder in folders:
            if RecordFolder(folder).kind is not Generation:
                raise UserError("holds no solutions", file=folder, remedy="name the folder of a judging stage")
            first = next(RecordFolder(folder).records())
            yield SolutionSource(benchmark, str(first.fields["mode"]), str(folder.resolve()), own=False)


def _solutions_in(path: Path, benchmark: str) -> list[Path]:
    """Return the last folder of graded solutions of each mode that an evaluation left."""
    folders: list[Path] = []
    for mode in SOLVING:
        names = [f"{benchmark}_{mode}_judged", f"{benchmark}_{mode}_graded"]
        folders += [path / name for name in names if part_files(path / name)][:1]
    return folders


async def evaluate(request: EvaluateRequest) -> None:
    """Evaluate, or go on with it, and print the results."""
    content, sources = recipe_of(request)
    run = Run(write_recipe(content, request.output, RECIPE, OPTIONS), request.output)
    kinds = ("problems.read_problems", "problems.select")
    if readers := [name for name, entry in run.recipe.stages.items() if entry.stage.kind in kinds]:
        await run.execute(StageSelection(until=readers[-1], replace=request.replace))
    _refuse_unsolved(run, sources)
    open_stages = [s.name for s in run.status() if s.state is not State.FINISHED]
    await look_ahead(run, open_stages, request.wait_s)
    await run.execute(StageSelection(replace=request.replace))
    print_results(Console(), request.output, sources)


def _refuse_unsolved(run: Run, sources: Sequence[SolutionSource]) -> None:
    """Raise UserError where another model has no solution of a problem: its selection would count as wrong."""
    for source in sources:
        if source.own:
            continue
        (problems,) = run.recipe.stages[f"{source.name}_groups"].inputs["problems"]
        wanted = {p.id for p in read_records(run.output / problems, Problem)}
        solved = {record.fields["problem_id"] for record in RecordFolder(Path(source.stage)).records()}
        if missing := wanted - solved:
            raise UserError(
                f"no solution of {len(missing)} of the {len(wanted)} problems, for example {min(missing)}",
                file=source.stage,
                remedy="evaluate that model on the same problems (--limit included)",
            )


def print_results(console: Console, output: Path, sources: Sequence[SolutionSource]) -> None:
    """Print a table for each mode, benchmarks across, and what has to be said beside it."""
    by_mode: dict[str, list[Any]] = {}
    for source in sources:
        folder = output / f"{source.name}_results"
        by_mode.setdefault(source.mode, []).extend(orjson.loads((folder / RESULTS).read_bytes()))
        facts = orjson.loads((folder / "manifest.json").read_bytes())["facts"]
        for line in apart_lines(facts.get("apart", ())):
            console.print(line, soft_wrap=True, highlight=False)
        for mode, number in facts.get("undecided", {}).items():
            if number:
                console.print(
                    f"{source.benchmark}, {mode_name(mode)}: {number:,} verdicts are open and count as wrong; "
                    "--judge lets a model decide them",
                    soft_wrap=True,
                    highlight=False,
                )
    for rows in by_mode.values():
        console.print(results_table(rows))
    console.print(f"all of it: {output}", soft_wrap=True, highlight=False)
