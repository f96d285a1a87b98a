"""``openmath evaluate decide``: sample two models, round by round, until it is decided which is better.

    DIR/decide.json     what is asked: models, problems, rule; another file of settings is refused here
    DIR/rounds.jsonl    a line for each round: how many samples of each problem, written before they are made
    DIR/a, DIR/b        the graded solutions of both models
    DIR/result.json     what was found, and what it took

The state of the decision is nowhere stored: it is computed from the solutions, by the rounds in their order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.core.build import Origin
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Mode, Problem, content_id, write_json
from nemo_openmath.core.records.bodies import closing_files
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.evaluation.sequential.capital import Ruling
from nemo_openmath.evaluation.sequential.procedure import Estimand, Procedure, make_procedure
from nemo_openmath.evaluation.sequential.replay import replay
from nemo_openmath.evaluation.sequential.stored import StoredSamples
from nemo_openmath.evaluation.sequential.stratified import Counts
from nemo_openmath.evaluation.sequential.words import (
    found_json,
    interval,
    replay_json,
    replay_lines,
    sentence,
    waits_for,
)
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.inference.rollout.formats import template_of
from nemo_openmath.inference.rollout.sampler import Sampler
from nemo_openmath.recipe.decide_file import DecideJob, Side, load_decide_job, read_benchmark
from nemo_openmath.recipe.decide_samples import SideSamples, first_error
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.lock import run_lock
from nemo_openmath.recipe.services import RecipeServices
from nemo_openmath.recipe.teacher import Teacher

ASKED, ROUNDS, RESULT = "decide.json", "rounds.jsonl", "result.json"


async def decide(path: Path, overrides: Sequence[str], output: Path) -> None:
    """Do what a file says, and print what is found."""
    job = load_decide_job(path, overrides)
    refuse_foreign_folder(output, "the folder of a comparison", (ASKED,))
    output.mkdir(parents=True, exist_ok=True)
    with run_lock(output, None, 0, 1), closing_files():
        lines = await asyncio.to_thread(_replay, job, output) if job.is_replay else await _sample(job, path, output)
    print("\n".join(lines))


def _replay(job: DecideJob, output: Path) -> list[str]:
    assert job.a.generations is not None
    assert job.b.generations is not None
    _same_question(output, {"replay": [str(job.a.generations.resolve()), str(job.b.generations.resolve())]})
    with GradingPool(workers=job.grading.workers, time_limit=job.grading.time_limit) as pool:
        a, b = (StoredSamples.read(folder, job.mode, pool) for folder in (job.a.generations, job.b.generations))
    done = replay(a, b, job.estimand, job.rule, samples=job.samples, orders=job.orders, seed=job.seed)
    lines = replay_lines(done, job.rule, job.estimand, job.names)
    write_json(output / RESULT, {"names": job.names, "estimand": job.estimand, **replay_json(done), "lines": lines})
    return lines


async def _sample(job: DecideJob, path: Path, output: Path) -> list[str]:
    assert job.problems is not None
    problems = read_benchmark(job.problems)
    problems.sort(key=lambda problem: content_id("order", job.seed, problem.id))
    _same_question(output, _question(job, problems))
    async with AsyncExitStack() as stack:
        services = RecipeServices(_recipe(job, path), output)
        stack.push_async_callback(services.close)
        sides = [await _open(job, number, output, services, stack) for number in (0, 1)]
        progress = stack.enter_context(Progress("decide"))
        run = _Comparison(job, problems, (sides[0], sides[1]), output, progress)
        procedure = await run.until_decided()
    lines = run.lines(procedure)
    write_json(output / RESULT, run.result(procedure, lines))
    return lines


def _recipe(job: DecideJob, path: Path) -> Recipe:
    """Return the recipe of no stage that lends the sandbox and the grading pool."""
    return Recipe(
        name=path.stem,
        seed=job.seed,
        path=path,
        teacher=Teacher(),
        student=EngineConfig(),
        partitions=1,
        hang_seconds=None,
        sandbox=job.sandbox,
        grading=job.grading,
        stages={},
        values=[],
        origin=lambda _: Origin(str(path)),
        verb="evaluate decide",
    )


async def _open(
    job: DecideJob, number: int, output: Path, services: RecipeServices, stack: AsyncExitStack
) -> SideSamples:
    side: Side = (job.a, job.b)[number]
    settings, engine_config = job.generate, side.engine
    assert engine_config is not None
    engine = await open_engine(engine_config)
    stack.push_async_callback(engine.close)
    folder = Path(engine_config.tokenizer or engine_config.model)
    tokenizer = ChatTokenizer.load(folder).with_options(engine_config.template_options, engine_config.renders)
    tools = settings.mode == Mode.TIR
    sampler = Sampler(
        engine,
        tokenizer,
        await services.sandbox() if tools else None,
        template_of(settings.mode, settings, side.prompt),
        settings.mode,
        settings,
        derive_seed(job.seed, "ab"[number]),  # two models that share random numbers would depend on each other
        keep_ids=False,
        recorded=load_template("tir") if tools and settings.tool_format != "tags" else None,
    )
    samples = SideSamples(output / "ab"[number], sampler, await services.grading(), settings.concurrency)
    stack.callback(samples.close)
    return samples


class _Comparison:
    """A comparison that is under way."""

    def __init__(
        self,
        job: DecideJob,
        problems: list[Problem],
        sides: tuple[SideSamples, SideSamples],
        output: Path,
        progress: Progress,
    ):
        self._job, self._all, self._sides, self._progress = job, problems, sides, progress
        self._rounds = _Rounds(output / ROUNDS, len(problems))
        self.problems = problems
        self.apart: list[Problem] = []

    async def until_decided(self) -> Procedure:
        """Sample until it is decided, or no more samples are allowed."""
        self._progress.begin(2 * len(self._all) * self._job.samples, sum(side.stored for side in self._sides))
        while True:
            self.apart = [p for p in self._all if any(side.is_apart(p) for side in self._sides)]
            if self.apart and self._job.estimand is Estimand.FULL_RUN:
                raise UserError(
                    f"problem {self.apart[0].id} cannot be asked of both models, so a full run has no result",
                    remedy="leave it out of the benchmark, or compare by another estimand",
                )
            self.problems = [p for p in self._all if p not in self.apart]
            if not self.problems:
                raise UserError("no problem can be asked of both models", remedy="see `finish` of the records")
            job = self._job
            procedure = make_procedure(job.estimand, job.rule, len(self.problems), job.samples)
            if await self._go(procedure):
                return procedure

    async def _go(self, procedure: Procedure) -> bool:
        """Bring a procedure to its end. Returns False where a problem turned out not to be askable: it is left out
        then, and what the others gave is taken in again."""
        columns = [number for number, p in enumerate(self._all) if p not in self.apart]
        number = 0
        while (planned := procedure.next()) is not None:
            planned = self._rounds.plan(number, planned, columns)
            first = procedure.counts
            note = waits_for(procedure.found(), self._job.rule) if number else "the first round"

            def made(note: str = note) -> None:
                self._progress.advance(note=note)

            async with first_error(), asyncio.TaskGroup() as group:
                for row, side in enumerate(self._sides):
                    wanted = [
                        (p, range(int(first[row, i]), int(first[row, i] + planned[row, i])))
                        for i, p in enumerate(self.problems)
                    ]
                    group.create_task(side.make(wanted, made))
            new = [p for p in self.problems if any(side.is_apart(p) for side in self._sides)]
            if new:
                self._refuse_late(new, first)
                return False
            right, tokens = (
                np.array(
                    [
                        [value(p, int(m), int(n)) for p, m, n in zip(self.problems, before, more, strict=True)]
                        for value, before, more in zip(values, first, planned, strict=True)
                    ]
                )
                for values in ([s.right for s in self._sides], [s.tokens for s in self._sides])
            )
            procedure.take(planned, right, tokens.astype(float))
            number += 1
            self._progress.log(
                f"round {number}: {int(planned.sum())} samples, {int(procedure.counts.sum())} in all; "
                f"{interval(procedure.found(), self._job.alpha)}"
            )
        return True

    def _refuse_late(self, new: list[Problem], first: Counts) -> None:
        """Raise UserError where a problem was asked before and cannot be now: to leave it out would depend on
        results."""
        for problem in new:
            if first[:, self.problems.index(problem)].any():
                raise UserError(
                    f"problem {problem.id} could be asked before, and is refused now",
                    remedy="look what changed at the engine, and run the same command in another folder",
                )

    # -- what is said ----------------------------------------------------------------------------------------------

    def result(self, procedure: Procedure, lines: list[str]) -> dict[str, Any]:
        """Return what was found as data."""
        spent, full = self._spent(procedure), self._of_all(procedure)
        return {
            "names": self._job.names,
            "estimand": self._job.estimand,
            "alpha": self._job.alpha,
            "delta": self._job.delta,
            **found_json(procedure.found()),
            "samples": procedure.counts.sum(axis=1).tolist(),
            "tokens": spent,
            "tokens_of_all_samples": full,
            "undecided_grades": sum(side.undecided for side in self._sides),
            "apart": [problem.id for problem in self.apart],
            "problems": [
                {"id": p.id, "samples": procedure.counts[:, i].tolist(), "right": procedure.right[:, i].tolist()}
                for i, p in enumerate(self.problems)
            ],
            "lines": lines,
        }

    def lines(self, procedure: Procedure) -> list[str]:
        """Return what was found for people."""
        job, finding = self._job, procedure.found()
        spent, full = sum(self._spent(procedure)), sum(self._of_all(procedure))
        lines = [
            sentence(finding, job.rule, job.names, job.estimand, procedure.limit),
            f"{int(procedure.counts.sum()):,} samples of {len(self.problems)} problems and two models, "
            f"{spent:,} tokens; {job.samples} samples each would take about {full:,.0f}: "
            f"{100 * (1 - spent / max(1.0, full)):.1f}% saved",
        ]
        if undecided := sum(side.undecided for side in self._sides):
            lines.append(f"counted as wrong: {undecided} samples that the grader could not decide")
        if self.apart:
            lines.append(
                f"left out: {len(self.apart)} problems that a model could not be asked, for example {self.apart[0].id}"
            )
        if finding.verdict is Ruling.UNDECIDED and job.estimand is Estimand.THIS_BENCHMARK:
            lines.append("to go on: the same command with more samples, such as samples=" + str(2 * job.samples))
        return lines

    def _spent(self, procedure: Procedure) -> list[int]:
        return [
            sum(side.tokens(p, 0, int(n)) for p, n in zip(self.problems, counts, strict=True))
            for side, counts in zip(self._sides, procedure.counts, strict=True)
        ]

    def _of_all(self, procedure: Procedure) -> list[float]:
        """The tokens that all samples would take, by the mean of each problem; by that of the model where it has
        none."""
        full = []
        for side, counts, spent in zip(self._sides, procedure.counts, self._spent(procedure), strict=True):
            mean = spent / max(1, int(counts.sum()))
            each = [side.tokens(p, 0, int(n)) / n if n else mean for p, n in zip(self.problems, counts, strict=True)]
            full.append(self._job.samples * sum(each))
        return full


class _Rounds:
    """The rounds that were planned. Each is written before its samples are made, so that an interrupted one is finished
    as it was planned."""

    def __init__(self, path: Path, problems: int):
        self._path, self._problems = path, problems
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # cut off in the middle of a line
            path.write_bytes(whole)
        self._plans = [np.array(orjson.loads(line)["counts"], np.int64) for line in whole.splitlines()]
        for row, plan in enumerate(self._plans, 1):
            if plan.shape != (2, problems):
                raise UserError("not a round of this comparison", file=path, row=row, remedy="choose another output")

    def plan(self, number: int, planned: Counts, columns: list[int]) -> Counts:
        """Return the counts of round ``number``: those that were written, or ``planned``, which is written now.
        ``columns``: the problems that are compared."""
        if number == len(self._plans):
            counts: Counts = np.zeros((2, self._problems), np.int64)
            counts[:, columns] = planned
            line = orjson.dumps({"round": number + 1, "counts": counts.tolist()}) + b"\n"
            with self._path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._plans.append(counts)
        return self._plans[number][:, columns]


def _question(job: DecideJob, problems: list[Problem]) -> dict[str, Any]:
    """Return what a folder's records and rounds are an answer to. More ``samples`` go on where fewer ended, for this
    benchmark: what was found by then holds at every number of samples."""
    settings = {k: v for k, v in orjson.loads(orjson.dumps(job.generate)).items() if k != "concurrency"}
    question = {
        "models": [_model(side) for side in (job.a, job.b)],
        "problems": content_id("problems", *sorted(p.id for p in problems), *[p.expected_answer for p in problems]),
        "estimand": job.estimand,
        "alpha": job.alpha,
        "delta": job.delta,
        "seed": job.seed,
        "generate": settings,
    }
    return question if job.estimand is Estimand.THIS_BENCHMARK else question | {"samples": job.samples}


def _model(side: Side) -> dict[str, Any]:
    """Return what of a side makes a difference to its samples."""
    assert side.engine is not None
    prompt = None if side.prompt is None else side.prompt.read_text(encoding="utf-8")
    engine = side.engine
    options = {"template_options": engine.template_options, "reasoning_effort": engine.reasoning_effort}
    return {"kind": engine.kind, "model": engine.model, "api": engine.api, "prompt": prompt, **options}


def _same_question(output: Path, question: dict[str, Any]) -> None:
    """Write what is asked. Raises UserError where the folder answers something else."""
    asked = orjson.loads(orjson.dumps(question))
    path = output / ASKED
    if not path.exists():
        write_json(path, asked)
        return
    try:
        before = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"not JSON ({error})", file=path, remedy="choose another output") from error
    if "replay" in asked and "replay" in before:  # nothing is kept of a replay but its result
        write_json(path, asked)
    elif before != asked:
        changed = sorted(k for k in before.keys() | asked.keys() if before.get(k) != asked.get(k))
        raise UserError(
            f"is a comparison with other settings ({', '.join(changed)})",
            file=output,
            remedy="choose another output, or go back to those settings",
        )
