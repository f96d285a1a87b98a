"""The generation stage: problems x samples, any number in flight, each stored as it finishes."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.chat import load_template
from nemo_openmath.core.bounds import NonNegativeInt, PositiveInt, PositiveShare
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Generation, Mode, Problem
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.stage import ADDED, RUNTIME, Result, StageContext, UnitLog, UnitStage, run_bounded
from nemo_openmath.inference.rollout.agreement import SampleFailed, sample_until_agreed
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.counts import AgreementRule, by_hardness
from nemo_openmath.inference.rollout.formats import template_of
from nemo_openmath.inference.rollout.metrics import RolloutMetrics, note_untried
from nemo_openmath.inference.rollout.sampler import Sampler
from nemo_openmath.inference.rollout.settings import RolloutSettings, StoredRolloutSettings

Sample = tuple[Problem, int]


@dataclass(frozen=True)
class GenerateConfig(StoredRolloutSettings):
    """Which engine solves the problems, in which way, and how many solutions it makes of each."""

    engine: str = "teacher"
    """``teacher``, the name of a stage that made a model, or a folder with a Hugging Face model."""
    mode: Literal[Mode.COT, Mode.TIR] = Mode.COT
    """``cot``: solutions in text. ``tir``: solutions with code, which the sandbox runs. Paper sections 2.3 and 3."""
    samples: PositiveInt = 1
    """Solutions of a problem, at most."""
    count: Literal["fixed", "hardness", "agreement"] = "fixed"
    """``fixed`` makes all ``samples``. ``hardness`` makes from ``least`` (pass rate 1) to ``samples`` (pass rate 0 or
    unknown). ``agreement`` stops between ``least`` and ``samples`` once more answers cannot change the majority
    (``confidence`` 1) or hardly would (below 1)."""
    least: PositiveInt = 4
    """Solutions of a problem, at least, where ``count`` is not ``fixed``."""
    confidence: PositiveShare = 1.0
    """Probability, above 0.5, with which the leading answer must be the more likely one before ``agreement`` stops;
    1 means that no further answer could change the majority."""
    limit: NonNegativeInt = 0
    """Solve only so many problems, chosen by a hash of their ids, so that a larger limit adds to them; 0 means all."""
    prompt: Path | None = None
    """Prompt file to use instead of the mode's own; with ``tool_format`` ``fences`` or ``tool_calls`` it replaces
    ``tir-fences.txt`` or ``tir-tools.txt``."""
    rewritten_prompt: Path | None = field(default=None, metadata=ADDED)
    """Prompt file that records have in place of the one that was asked, where the model does not call code by tags;
    null: the shipped ``tir.txt``. A student is trained on it."""
    timed: bool = field(default=False, metadata=ADDED)
    """Whether records say when each turn was written and how sure the model was of its answer, for the contest
    laboratory. Log-probabilities are asked for where the engine has them."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Solutions in flight at once, at most."""

    def __post_init__(self) -> None:
        RolloutSettings.__post_init__(self)
        if self.samples < 1:
            raise ValueError("samples: choose at least 1")
        if self.rewritten_prompt is not None and self.tool_format == "tags":
            raise ValueError("rewritten_prompt: of tool_format fences and tool_calls alone; with tags give prompt")
        if self.count != "fixed" and not 1 <= self.least <= self.samples:
            raise ValueError("least: choose it from 1 to samples")
        if not 0.5 < self.confidence <= 1:
            raise ValueError("confidence: choose it above 0.5, at most 1 (certain)")


class Generate(UnitStage[GenerateConfig, Sample]):
    """Sample solutions (paper sections 2.3 and 3)."""

    kind = "rollout.generate"
    version = 2  # a sample that cannot be tried leaves a generation, not a drop
    Config = GenerateConfig
    ports = {"problems": "problems to solve"}
    takes = {"problems": "Problem"}
    record = Generation
    incremental = ("samples", "limit")

    def __init__(self, config: GenerateConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = template_of(config.mode, config, config.prompt)
        rewrites = config.mode == Mode.TIR and config.tool_format != "tags"
        self._recorded = load_template("tir", config.rewritten_prompt) if rewrites else None

    def settings(self) -> dict[str, Any]:
        """Return the settings. Version 0.1 took the first problems of the files, which depend on how the work was
        divided: what it made with a limit is made again."""
        return super().settings() | ({"chosen": "by id"} if self.config.limit else {})

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    @property
    def needs_chat(self) -> bool:
        return self.config.mode == Mode.TIR and self.config.tool_format == "tool_calls"

    async def prepare(self, context: StageContext) -> None:
        config, tools = self.config, self.config.mode == Mode.TIR
        engine, tokenizer = await context.services.engine(config.engine)
        sandbox = await context.services.sandbox() if tools else None
        keep_ids = config.keeps_ids(context, tokenizer)
        self._sampler = Sampler(
            engine,
            tokenizer,
            sandbox,
            self._template,
            config.mode,
            config,
            context.seed,
            keep_ids=keep_ids,
            recorded=self._recorded,
            timed=config.timed,
        )
        self._metrics = RolloutMetrics(config.tool_format if tools else None)
        self._within = self._first_problems(context)
        self._problems_given = 0

    async def run(self, context: StageContext) -> None:
        stored = context.own_files()
        resumed = any(file.exists() and file.stat().st_size > 0 for file in stored)
        if self.config.count == "agreement":
            await self._run_until_agreed(context)
        else:
            await super().run(context)
        if self.config.count != "fixed":
            self._metrics.report_savings(self.config.count, context)
        self._metrics.report_uncalled_code(context)
        if resumed:
            self._metrics.report_all_attempts(stored, context)
        note_untried(context)

    # -- which samples ---------------------------------------------------------------------------------------------

    def count(self, context: StageContext) -> int | None:
        if context.shards > 1 or self.config.count == "agreement":
            return None
        return sum(self._samples(p) for p in self._problems(context))

    def units(self, context: StageContext) -> Iterable[tuple[str, Sample]]:
        for problem in self._problems(context):
            samples = self._samples(problem)
            self._problems_given += 1
            self._metrics.samples_saved += self.config.samples - samples
            for sample in range(samples):
                yield self._sampler.id_of(problem, sample), (problem, sample)

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Hold the number of units to ``least`` to ``samples`` for each problem."""
        problems = self._problems_given
        least = self.config.samples if self.config.count == "fixed" else self.config.least
        if not problems * least <= offered <= problems * self.config.samples:
            raise AssertionError(f"{self.kind}: {problems} problems went in, {offered} samples were made of them")

    def _samples(self, problem: Problem) -> int:
        config = self.config
        if config.count == "hardness":
            return by_hardness(problem.pass_rate, config.least, config.samples)
        return config.samples

    def _problems(self, context: StageContext) -> Iterable[Problem]:
        """Yield the problems of a part of the work that are to be solved."""
        for problem in context.read("problems", Problem):
            if self._within is None or problem.id in self._within:
                yield problem

    def _first_problems(self, context: StageContext) -> frozenset[str] | None:
        """Return the ids of the problems within the limit; None where there is no limit. How many lie beyond it is
        counted."""
        if not self.config.limit:
            return None
        ids = [problem.id for problem in replace(context, divided=()).read("problems", Problem)]
        beyond = len(ids) - self.config.limit
        if beyond > 0 and context.shard == 0:  # the metrics of all jobs are summed
            context.metrics["problems_beyond_the_limit"] = beyond
        return frozenset(heapq.nsmallest(self.config.limit, ids, key=unit_key))

    # -- one sample ------------------------------------------------------------------------------------------------

    async def process(self, unit: Sample, context: StageContext) -> Result:
        with self._metrics.in_flight():
            outcome = await self._sampler.roll_out(*unit)
        self._metrics.add(outcome, context)
        return Result([self._sampler.record(*unit, outcome)])

    def refused(self, key: str, unit: Sample, error: Refused, context: StageContext) -> Result:
        """Leave a generation that says so: evaluation counts its problem apart."""
        return Result([self._sampler.untried(*unit, error)])

    # -- samples until their answers agree -------------------------------------------------------------------------

    async def _run_until_agreed(self, context: StageContext) -> None:
        """Sample each problem until its answers agree; problems run side by side."""
        context = replace(context, divided=("problems",))
        await self.prepare(context)
        config, pool = self.config, await context.services.grading()
        rule = AgreementRule(config.least, config.samples, config.confidence)
        gate = asyncio.Semaphore(self.concurrency)

        with UnitLog(context, self.retries + 1) as log:
            context.progress.begin(None, log.recovered)

            async def solve(_: str, unit: tuple[StageContext, Problem, dict[str, str | None]]) -> None:
                part, problem, stored = unit

                async def answer(problem: Problem, sample: int) -> str | None:
                    key = self._sampler.id_of(problem, sample)
                    if log.open(part).done(key):
                        return stored.pop(key, None)
                    async with gate:
                        log.begin(part)
                        result = await self.do_unit(key, (problem, sample), part, log)
                    if result is None:
                        raise SampleFailed
                    return next((answer_of(r) for r in result.records if isinstance(r, Generation)), None)

                samples = await sample_until_agreed(problem, rule, answer, pool.majority)
                if samples is not None:
                    self._metrics.samples_saved += config.samples - samples
                    self._metrics.problems_ended_early += samples < config.samples

            await run_bounded(self._with_stored_answers(context, log), solve, self.concurrency)
        log.failures.close()

    def _with_stored_answers(
        self, context: StageContext, log: UnitLog
    ) -> Iterable[tuple[str, tuple[StageContext, Problem, dict[str, str | None]]]]:
        """Yield each problem of this process with its part of the work and the part's answers of earlier attempts."""
        for part, file in zip(context.parts(), context.own_files(), strict=True):
            log.open(part)  # cuts off what a kill left torn
            stored = {g.id: answer_of(g) for g in read_file(file, Generation)} if file.exists() else {}
            for problem in self._problems(part):
                yield problem.id, (part, problem, stored)
