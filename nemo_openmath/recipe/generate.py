"""``openmath generate``: solutions of a file of problems, as a recipe of two stages.

    problems: ./problems.jsonl      # JSON Lines, JSON, CSV or Parquet with `problem`, or the folder of a stage
    engine: {kind: embedded, model: ./my-model}   # or {kind: http, urls: [..], model: .., tokenizer: ./its-tokenizer}
    generate: {mode: tir, samples: 32, count: agreement, temperature: 0.7, max_tokens: 16384}
    sandbox: {workers: 8}
    seed: 1

The output folder is that of a run: ``solutions/`` holds the generations, and the same command goes on where it was.
With more ``samples`` or a larger ``limit`` it keeps what is there and makes the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from nemo_openmath.core.bounds import AnyInt, PositiveFloat, PositiveInt, ShareBelowOne
from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem, read_records
from nemo_openmath.core.records.bodies import closing_files
from nemo_openmath.core.records.store import part_files
from nemo_openmath.evaluation.share import ShareOfRight
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.open import EngineConfig
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.recipe.file import GradingSettings, Recipe, SandboxSettings
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State
from nemo_openmath.recipe.teacher import Teacher
from nemo_openmath.synthesis.problems.read import ReadFilesConfig, ReadProblems

PROBLEMS, SOLUTIONS = "problems", "solutions"


@dataclass(frozen=True)
class GenerateJob:
    """What the file says."""

    problems: Path
    """A file with problems, or the folder of a stage that made some."""
    engine: EngineConfig
    """What generates: a model folder in this process, or a server."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """How solutions are sampled. Its ``engine`` is the one above and is left out here."""
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    """Where the code of solutions runs."""
    grading: GradingSettings = field(default_factory=GradingSettings)
    """How answers are compared."""
    skip_broken: bool = False
    """Leave out rows of ``problems`` that cannot be read, and count them. Otherwise such a file is refused."""
    seed: AnyInt = 0
    """The seed of the samples."""
    hang_seconds: PositiveFloat | None = None
    """Seconds without any token, answer or block of code that ended, after which this counts as hung, as in a recipe.
    ``null``: an hour, or twice the time limit of a request."""
    partitions: PositiveInt = 1
    """Into how many parts the problems are divided, at least. It changes no sample; see the same key of a recipe."""
    failed_items: ShareBelowOne = 0.0
    """The share of the samples that may fail after all attempts; see the same key of a recipe."""


def load_job(path: Path, overrides: Sequence[str] = (), here: Path = Path()) -> Recipe:
    """Return the recipe that a job file means. Raises UserError naming file, line, setting and remedy."""
    source = Source.read(path, overrides)
    builder = Builder(source.origin, path.parent, here, taken_out=source.taken_out)
    job = builder.build(GenerateJob, source.data)
    if not job.problems.exists():
        raise builder.error(
            ("problems",), f"no such file or folder: {job.problems}", "put it there, or change the path"
        )
    if job.generate.engine != GenerateConfig.engine:
        raise builder.error(("generate", "engine"), "the engine is named once", "set `engine` beside `generate`")
    student, teacher, engine = EngineConfig(), Teacher(), "teacher"
    if job.engine.kind == "embedded":
        folder = builder.base(("engine", "model")) / job.engine.model
        if not job.engine.model or not folder.is_dir():
            raise builder.error(("engine", "model"), f"no such folder: {folder}", "name a Hugging Face folder")
        student, engine = job.engine, str(folder.resolve())
    elif job.engine.kind == "http":
        teacher = _teacher(job.engine, builder)
    else:
        raise builder.error(("engine", "kind"), "a recording answers only what was recorded", "use embedded or http")
    stages: dict[str, StageEntry] = {}
    problems: str | Path = job.problems
    if not (job.problems.is_dir() and part_files(job.problems)):
        reading = ReadProblems(ReadFilesConfig(skip_broken=job.skip_broken))
        origin = builder.origin(("problems",))
        stages[PROBLEMS] = StageEntry(PROBLEMS, reading, {"files": (problems,)}, job.seed, origin)
        problems = PROBLEMS
    else:
        _check_records(job.problems, builder)
    stage = Generate(replace(job.generate, engine=engine))
    origin = builder.origin(("generate",))
    stages[SOLUTIONS] = StageEntry(
        SOLUTIONS, stage, {"problems": (problems,)}, job.seed, origin, failed_items=job.failed_items
    )
    return Recipe(
        name=path.stem,
        seed=job.seed,
        path=path,
        teacher=teacher,
        student=student,
        sandbox=job.sandbox,
        grading=job.grading,
        partitions=job.partitions,
        hang_seconds=job.hang_seconds,
        stages=stages,
        values=builder.values,
        origin=builder.origin,
        verb="generate",
    )


def _check_records(folder: Path, builder: Builder) -> None:
    """Raise UserError where the folder of a stage holds something else than problems, or nothing."""
    try:
        first = next(read_records(folder, Problem), None)
    except UserError as error:
        problem = f"the records in {folder} are no problems ({error.problem})"
        raise builder.error(("problems",), problem, "name a stage that makes problems") from error
    if first is None:
        raise builder.error(("problems",), f"there is no record in {folder}", "run the stage that makes it again")


def _teacher(engine: EngineConfig, builder: Builder) -> Teacher:
    if bool(engine.urls) == (engine.urls_file is not None) or not engine.model:
        raise builder.error(("engine",), "an http engine needs `model` and either `urls` or `urls_file`")
    if engine.tokenizer is None:
        raise builder.error(("engine", "tokenizer"), "missing", "give the folder of the model's tokenizer")
    return Teacher(
        urls=engine.urls,
        urls_file=engine.urls_file,
        server=engine.server,
        model=engine.model,
        tokenizer=str(engine.tokenizer.resolve()),
        api=engine.api,
        reasoning_effort=engine.reasoning_effort,
        template_options=engine.template_options,
        api_key_env=engine.api_key_env,
        attempts=engine.attempts,
        timeout_s=engine.timeout_s,
        patience_s=engine.patience_s,
    )


def summary(output: Path) -> str:
    """Return what was made, where it is, how much of it is right, and what to do next."""
    folder = output / SOLUTIONS
    total = answered = 0
    share = ShareOfRight()
    with GradingPool() as pool, closing_files():
        tried = (generation for generation in read_records(folder, Generation) if generation.tried)
        for batch in _batches(tried):
            answers = [answer_of(generation) for generation in batch]
            pairs = [(a, g.expected_answer) for a, g in zip(answers, batch, strict=True)]
            total, answered = total + len(batch), answered + sum(a is not None for a in answers)
            for generation, grade in zip(batch, pool.grade_batch(pairs), strict=True):
                if generation.expected_answer is not None:
                    share.add(generation.problem_id, grade.is_equal)
            if total >= _COUNTED:
                break
    of = f"of the first {total}" if total >= _COUNTED else f"of {total}"
    counts = f"{answered} {of} solutions have an answer"
    if share.tried:
        counts += f"; {share.right} of {share.tried} are right ({share.text()})"
    hint = "" if answered or not total else "\nno answer at all: see `finish` in the records (length: raise max_tokens)"
    where, graded = os.path.relpath(folder), os.path.relpath(output / "graded.jsonl")
    return f"solutions: {where}; {counts}{hint}\nnext: openmath grade {where} --output {graded}"


_COUNTED = 20_000  # solutions that are graded for the line at the end; all of them: openmath grade


def _batches(records: Iterator[Generation]) -> Iterator[list[Generation]]:
    while batch := list(islice(records, 1000)):
        yield batch


_ALL = StageSelection()


async def generate(path: Path, overrides: Sequence[str], output: Path, asked: StageSelection = _ALL) -> None:
    """Do a job, or the shard of it that is selected.

    With ``asked.prepare`` only what an array of jobs needs before it starts is done: the problems are read.
    """
    recipe = load_job(path, overrides)
    run = Run(recipe, output)
    if asked.prepare:
        if PROBLEMS in recipe.stages:
            await run.execute(StageSelection(only=PROBLEMS, replace=asked.replace), overrides)
        await run.execute(StageSelection(only=SOLUTIONS, prepare=True, replace=asked.replace), overrides)
        return
    if asked.shards > 1:
        if any(s.name == PROBLEMS and s.state is not State.FINISHED for s in run.status()):
            raise UserError(
                "the problems have not been read",
                file=output,
                remedy="run the command once with --prepare, then the array",
            )
        await run.execute(replace(asked, only=SOLUTIONS), overrides)
        return
    await run.execute(asked, overrides)
    print(summary(output))
