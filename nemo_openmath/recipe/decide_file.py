"""The file of ``openmath evaluate decide``: two models, problems, and what is to be decided.

    problems: ./aime.jsonl
    a: {label: before, engine: {kind: embedded, model: ./before}}
    b: {label: after, engine: {kind: http, urls: [..], model: after, tokenizer: ./after}}
    delta: 0.03

With ``generations: FOLDER`` in place of both engines it is a replay: what would have been decided, after how many
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from nemo_openmath.core.bounds import AnyInt, Bounds, PositiveInt
from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode, Problem, read_records
from nemo_openmath.core.records.readers import BrokenRows, data_files, read_rows
from nemo_openmath.core.records.store import part_files
from nemo_openmath.evaluation.sequential.capital import DecisionRule
from nemo_openmath.evaluation.sequential.procedure import Estimand
from nemo_openmath.inference.open import DRAFTER_NAMES, EngineConfig, check_drafter
from nemo_openmath.inference.rollout.settings import RolloutSettings
from nemo_openmath.recipe.file import GradingSettings, SandboxSettings
from nemo_openmath.synthesis.problems.read import ReadFilesConfig, ReadProblems


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    label: str = ""
    """What it is called in results; empty means A or B."""
    engine: EngineConfig | None = None
    """What generates: a model folder in this process, or a server."""
    generations: Path | None = None
    """In place of ``engine``: the folder of a stage with stored solutions, graded or not."""
    prompt: Path | None = None
    """Prompt file to use instead of the mode's own. A model is asked with the prompt that it was trained on."""

    def __post_init__(self) -> None:
        if (self.engine is None) == (self.generations is None):
            raise ValueError("give either `engine` or `generations`")
        if self.prompt is not None and self.engine is None:
            raise ValueError("a prompt is of an engine; stored solutions were asked already")


@dataclass(frozen=True)
class SamplingSettings(RolloutSettings):
    """How both models are sampled."""

    mode: Literal[Mode.COT, Mode.TIR] = Mode.COT
    """``cot``: solutions in text. ``tir``: solutions with code, which the sandbox runs."""
    concurrency: PositiveInt = 64
    """Solutions of one model in flight at once, at most."""


@dataclass(frozen=True)
class DecideJob:
    """What the file says."""

    a: Side
    """The model that is subtracted, such as the one before a change."""
    b: Side
    """The other model."""
    problems: Path | None = None
    """A file with problems and expected answers, or the folder of a stage that made some; not for a replay."""
    estimand: Estimand = Estimand.THIS_BENCHMARK
    """Which difference is meant: ``this-benchmark``, ``problems-like-these`` or ``full-run``."""
    alpha: Annotated[float, Bounds(0, 0.5, above=True, below=True)] = 0.05
    """The chance, at most, that what is decided is wrong, whenever it is decided."""
    delta: Annotated[float, Bounds(0, 0.5, above=True, below=True)] = 0.02
    """The smallest difference of accuracy that matters: 0.02 is two points."""
    samples: PositiveInt = 64
    """Samples of a problem and model, at most; for ``this-benchmark`` on average."""
    mode: Literal[Mode.COT, Mode.TIR] | None = None
    """Of a replay: which solutions of the folders are meant, where they hold several modes."""
    orders: PositiveInt = 20
    """Of a replay: orders of the stored samples that are tried."""
    generate: SamplingSettings = field(default_factory=SamplingSettings)
    """How solutions are sampled."""
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    """Where the code of solutions runs."""
    grading: GradingSettings = field(default_factory=GradingSettings)
    """How answers are compared."""
    seed: AnyInt = 0
    """The seed of the samples, and of the orders of a replay."""

    @property
    def rule(self) -> DecisionRule:
        """When it is decided."""
        return DecisionRule(self.alpha, self.delta)

    @property
    def names(self) -> tuple[str, str]:
        """What A and B are called."""
        return self.a.label or "A", self.b.label or "B"

    @property
    def is_replay(self) -> bool:
        """Whether both models' solutions are stored already."""
        return self.a.generations is not None


def load_decide_job(path: Path, overrides: Sequence[str] = (), here: Path = Path()) -> DecideJob:
    """Return what a file says. Raises UserError naming file, line, setting and remedy."""
    source = Source.read(path, overrides)
    builder = Builder(source.origin, path.parent, here, taken_out=source.taken_out)
    job = builder.build(DecideJob, source.data)
    if (job.a.generations is None) != (job.b.generations is None):
        raise builder.error(("b",), "one model has an engine and the other stored solutions", "give both the same kind")
    if job.names[0] == job.names[1]:
        raise builder.error(("b", "label"), f"both models are called {job.names[0]!r}", "give them two labels")
    if not job.is_replay:
        job = replace(job, a=_resolved("a", job.a, builder), b=_resolved("b", job.b, builder))
    if job.is_replay:
        if job.problems is not None:
            raise builder.error(("problems",), "a replay has the problems of its solutions", "leave it out")
        return job
    if job.mode is not None:
        raise builder.error(("mode",), "of a replay alone", "set generate.mode")
    if job.problems is None:
        raise builder.error(("problems",), "missing", "name the file of the benchmark")
    if not job.problems.exists():
        raise builder.error(
            ("problems",), f"no such file or folder: {job.problems}", "put it there, or change the path"
        )
    if job.generate.temperature == 0:
        problem = "samples of a problem are all the same at temperature 0, and the rule counts on independent ones"
        raise builder.error(("generate", "temperature"), problem, "choose a temperature above 0")
    return job


def _resolved(name: str, side: Side, builder: Builder) -> Side:
    """Return a side whose model is found wherever the command is run."""
    engine = side.engine
    assert engine is not None
    if engine.kind == "replay":
        raise builder.error((name, "engine", "kind"), "a recording answers only what was recorded", "use generations")
    if engine.kind == "http":
        if engine.tokenizer is None:
            raise builder.error((name, "engine", "tokenizer"), "missing", "give the folder of the model's tokenizer")
        return side
    folder = builder.base((name, "engine", "model")) / engine.model
    if not engine.model or not folder.is_dir():
        raise builder.error((name, "engine", "model"), f"no such folder: {folder}", "name a Hugging Face folder")
    drafter = engine.drafter
    if drafter is not None and drafter not in DRAFTER_NAMES:
        drafter = str((builder.base((name, "engine", "drafter")) / drafter).resolve())
    try:
        check_drafter(drafter, folder)
    except UserError as error:
        raise builder.error((name, "engine", "drafter"), str(error)) from error
    return replace(side, engine=replace(engine, model=str(folder.resolve()), drafter=drafter))


def read_benchmark(path: Path) -> list[Problem]:
    """Return the problems of a file, or of a stage's folder, each once. Raises UserError naming file and row of what is
    none, and a problem without an expected answer."""
    if path.is_dir() and part_files(path):
        problems = list(read_records(path, Problem))
    else:
        problems = list(_read_files(path))
    if not problems:
        raise UserError("there is no problem in it", file=path, remedy="give a file with one `problem` a row")
    for problem in problems:
        if problem.expected_answer is None:
            raise UserError(
                f"problem {problem.id} has no expected answer: {problem.problem[:60]!r}",
                file=path,
                remedy="add `expected_answer`, or leave the problem out",
            )
    return list({problem.id: problem for problem in problems}.values())


def _read_files(path: Path) -> list[Problem]:
    reader, broken = ReadProblems(ReadFilesConfig()), BrokenRows(skip=False)
    problems: list[Problem] = []
    for file in data_files(path):
        for _, row, value in read_rows(file, on_bad=broken, empty=True):
            if (wrong := reader.problem(value)) is not None:
                broken(file, row, wrong)
                continue
            broken.good += 1
            left = reader.make(value, f"{file.name}:{row}")
            for drop in left.drops:
                raise UserError(drop.reason, file=file, row=row, remedy="leave the row out of the benchmark")
            problems += [record for record in left.records if isinstance(record, Problem)]
    broken.refuse()
    return problems
