"""The generation stage: problems x samples, any number in flight, each stored as it finishes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from nemo_openmath.chat import Message, Transcript, load_template
from nemo_openmath.core.bounds import NonNegativeInt, PositiveInt, PositiveShare
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Generation, Mode, Problem, RecordWriter
from nemo_openmath.core.records.ids import derive_seed, in_shard
from nemo_openmath.core.records.store import read_file, shard_file
from nemo_openmath.core.records.types import UNTRIED
from nemo_openmath.core.stage import RUNTIME, Failures, Refusals, Result, StageContext, UnitStage, run_bounded
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.counts import by_hardness, next_batch
from nemo_openmath.inference.rollout.loop import Outcome, RolloutSettings, draw_budget, roll_out

Sample = tuple[Problem, int]


@dataclass(frozen=True)
class GenerateConfig(RolloutSettings):
    """``engine``: teacher, the name of a stage that made a model, or a model folder. ``samples``: per problem, at most.

    ``count``: ``fixed`` makes all of them; ``hardness`` makes from ``least`` (pass rate 1) to ``samples`` (pass rate 0
    or unknown); ``agreement`` stops between ``least`` and ``samples`` once more answers cannot change the majority
    (``confidence`` 1) or hardly would (below 1): see counts.py.
    ``limit``: only the first so many problems (0: all). ``prompt``: a template of the user's own."""

    engine: str = "teacher"
    mode: Literal[Mode.COT, Mode.TIR] = Mode.COT  # tir: with code, run in the sandbox
    samples: PositiveInt = 1
    count: Literal["fixed", "hardness", "agreement"] = "fixed"
    least: PositiveInt = 4
    confidence: PositiveShare = 1.0
    limit: NonNegativeInt = 0
    prompt: Path | None = None
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)

    def __post_init__(self) -> None:
        RolloutSettings.__post_init__(self)
        if self.samples < 1:
            raise ValueError("samples: choose at least 1")
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
    grows = ("samples", "limit")

    def __init__(self, config: GenerateConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template(config.mode, config.prompt)
        shape = {k: v for k, v in asdict(config).items() if k in _SHAPE}
        self._sampling: dict[str, Any] = shape
        self._total = Outcome(Transcript((), (), False, ""), Finish.STOP)
        self._in_flight = self._made = self._saved = self._early = self._uncalled = 0

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)
        self._sandbox = await context.services.sandbox() if self.config.mode == Mode.TIR else None
        self._begun = time.monotonic()

    async def run(self, context: StageContext) -> None:
        stored = shard_file(context.output, context.shard, context.shards)
        resumed = stored.exists() and stored.stat().st_size > 0
        if self.config.count == "agreement":
            await self._run_until_agreed(context)
        else:
            await super().run(context)
        if self.config.count != "fixed":
            self._report_savings(context)
        if self._uncalled:
            context.facts["solutions_with_uncalled_code"] = self._uncalled
            context.progress.say(
                f"{self._uncalled} of {self._made} solutions wrote Python that nothing ran: what stands between "
                f"{CODE_START} and {CODE_END} is run, ```python is not; your own prompt (prompt:) can show the tags"
            )
        if resumed:
            self._count_all(stored, context)
        note_untried(context)

    # -- which samples ---------------------------------------------------------------------------------------------

    def count(self, context: StageContext) -> int | None:
        if context.shards > 1 or self.config.count == "agreement":
            return None
        return sum(self._samples(p) for p in self._problems(context))

    def _samples(self, problem: Problem) -> int:
        c = self.config
        return by_hardness(problem.pass_rate, c.least, c.samples) if c.count == "hardness" else c.samples

    def _problems(self, context: StageContext) -> Iterable[Problem]:
        """The problems to solve; how many lie beyond the limit is counted."""
        beyond = 0
        for number, problem in enumerate(context.read("problems", Problem)):
            if self.config.limit and number >= self.config.limit:
                beyond += 1
            else:
                yield problem
        if beyond and context.shard == 0:  # the facts of all shards are summed
            context.facts["problems_beyond_the_limit"] = beyond

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Of a problem, ``least`` to ``samples`` units are made."""
        problems = min(context.taken["problems"], self.config.limit or math.inf)
        least = self.config.samples if self.config.count == "fixed" else self.config.least
        if not problems * least <= offered <= problems * self.config.samples:
            raise AssertionError(f"{self.kind}: {problems} problems went in, {offered} samples were made of them")

    def _id(self, problem: Problem, sample: int, context: StageContext) -> str:
        model, prompt = self._engine.model, self._template.digest
        return Generation.make_id(problem.id, self.config.mode, model, prompt, self._sampling, context.seed, sample)

    def units(self, context: StageContext) -> Iterable[tuple[str, Sample]]:
        for problem in self._problems(context):
            samples = self._samples(problem)
            if in_shard(problem.id, context.shard, context.shards):  # so that the shards' savings add up
                self._saved += self.config.samples - samples
            for sample in range(samples):
                yield self._id(problem, sample, context), (problem, sample)

    async def _run_until_agreed(self, context: StageContext) -> None:
        """A problem's batches follow each other; problems run side by side. All of a problem is in one shard."""
        await self.prepare(context)
        pool = await context.services.grading()
        failures, gate = Failures(context, self.retries + 1), asyncio.Semaphore(self.concurrency)

        with RecordWriter(context.output, shard=context.shard, shards=context.shards) as writer:
            context.progress.begin(None, writer.recovered)
            refusals = Refusals(context, writer)
            stored = {
                g.id: answer_of(g)
                for g in read_file(shard_file(context.output, context.shard, context.shards), Generation)
            }

            async def sample(problem: Problem, number: int) -> str | None:
                key = self._id(problem, number, context)
                if writer.done(key):
                    return stored.pop(key, None)
                async with gate:
                    result = await self.do_unit(key, (problem, number), context, writer, failures, refusals)
                if result is None:
                    raise _Failed
                return next((answer_of(r) for r in result.records if isinstance(r, Generation)), None)

            async def solve(_: str, problem: Problem) -> None:
                given: list[str | None] = []
                lead, made, c = (0, 0), 0, self.config
                while more := next_batch(*lead, made, c.least, c.samples, c.confidence):
                    batch = [asyncio.ensure_future(sample(problem, made + i)) for i in range(more)]
                    try:
                        answers = await asyncio.gather(*batch, return_exceptions=True)
                    finally:
                        for task in batch:
                            task.cancel()
                    for answer in answers:
                        if isinstance(answer, _Failed):
                            return  # undecided: the next run goes on here
                        if isinstance(answer, BaseException):
                            raise answer
                        given.append(answer)
                    made += more
                    lead = (await pool.majority(given)).lead
                self._saved += c.samples - made
                self._early += made < c.samples

            mine = ((p.id, p) for p in self._problems(context) if in_shard(p.id, context.shard, context.shards))
            await run_bounded(mine, solve, self.concurrency)
            refusals.close()
        failures.close()

    def _report_savings(self, context: StageContext) -> None:
        """Saved tokens are an estimate: what the samples not made would have taken at the mean of those made now."""
        mean = self._total.completion_tokens / self._made if self._made else 0.0
        facts = {"samples_saved": self._saved, "tokens_saved_estimate": round(self._saved * mean)}
        if self.config.count == "agreement":
            facts["problems_ended_early"] = self._early
        context.facts.update(facts)
        context.progress.say(
            f"{self._saved} samples saved by {self.config.count}, about {facts['tokens_saved_estimate']} tokens"
        )

    def _count_all(self, file: Path, context: StageContext) -> None:
        """What all attempts made together, and what of it this one did."""
        context.facts["completion_tokens_of_this_run"] = self._total.completion_tokens
        context.facts["completion_tokens"] = sum(g.completion_tokens for g in read_file(file, Generation))

    # -- one sample ------------------------------------------------------------------------------------------------

    async def process(self, unit: Sample, context: StageContext) -> Result:
        problem, sample = unit
        key = self._id(problem, sample, context)
        seed, budget = self._draws(key, context)
        self._in_flight += 1
        try:
            outcome = await roll_out(
                self._engine,
                self._tokenizer,
                self._messages(problem, budget),
                self.config,
                seed=seed,
                key=key,
                sandbox=self._sandbox,
                budget=budget,
            )
        finally:
            self._in_flight -= 1
        self._note(outcome, context)
        return Result([self._generation(key, unit, outcome, budget)])

    def refused(self, key: str, unit: Sample, error: Refused, context: StageContext) -> Result:
        """A generation that says so: evaluation counts its problem apart."""
        _, budget = self._draws(key, context)
        outcome = Outcome.untried(self._messages(unit[0], budget), self._tokenizer, error)
        generation = self._generation(key, unit, outcome, budget)
        return Result([generation.with_(extra=generation.extra | {"untried": str(error)})])

    def _draws(self, key: str, context: StageContext) -> tuple[int, int]:
        """(seed, number of code executions) of a sample."""
        seed = derive_seed(context.seed, key)
        return seed, draw_budget(self.config, seed) if self.config.mode == Mode.TIR else 0

    def _messages(self, problem: Problem, budget: int) -> tuple[Message, ...]:
        fields: dict[str, object] = {"problem": problem.problem}
        if self.config.mode == Mode.TIR:
            fields["total_code_executions"] = budget
        return self._template.messages(**fields)

    def _generation(self, key: str, unit: Sample, outcome: Outcome, budget: int) -> Generation:
        problem, sample = unit
        return Generation(
            id=key,
            parents=(problem.id,),
            problem_id=problem.id,
            mode=self.config.mode,
            model=self._engine.model,
            sample=sample,
            transcript=outcome.transcript.to_json(),
            finish=outcome.finish,
            expected_answer=problem.expected_answer,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            runner_tokens=outcome.runner_tokens,
            code_calls=outcome.code_calls,
            budget=budget or None,
            extra={"source": problem.source, "category": problem.category} | problem.extra,
        )

    def _note(self, outcome: Outcome, context: StageContext) -> None:
        """Facts for the manifest (rate, prompt tokens and code: of this run alone) and the line people watch."""
        total = self._total = self._total.plus(outcome)
        self._made += 1
        if self.config.mode == Mode.TIR and not outcome.code_calls:
            self._uncalled += outcome.transcript.has_uncalled_code
        seconds = time.monotonic() - self._begun
        rate = total.completion_tokens / seconds
        cached = total.cached_tokens / max(1, total.cached_tokens + total.computed_tokens)
        context.facts.update(
            completion_tokens=total.completion_tokens,
            tokens_per_second=round(rate, 1),
            cached_prompt_tokens=total.cached_tokens,
            computed_prompt_tokens=total.computed_tokens,
        )
        note = f"{rate:.0f} tokens/s, {cached:.0%} of prompts cached, {self._in_flight} in flight"
        if self.config.mode == Mode.TIR:
            context.facts["code_seconds"] = round(total.code_seconds, 1)
            note += f", {total.code_seconds / self._made:.2f} s of code a solution"
        context.progress.advance(0, note)


# in a record's JSON no text holds these: quotes are escaped there
_UNTRIED = tuple(b'"finish":"%s"' % finish.encode() for finish in UNTRIED)


def note_untried(context: StageContext) -> None:
    """Count the stored generations of this shard that could not be tried, as facts of the stage, and say so."""
    count, example = 0, ""
    with shard_file(context.output, context.shard, context.shards).open("rb") as lines:
        for line in lines:
            if not any(mark in line for mark in _UNTRIED):
                continue
            generation = orjson.loads(line)
            if generation["finish"] in UNTRIED:
                count += 1
                reason = generation["extra"].get("untried", "none of its solutions")
                example = example or f"problem {generation['problem_id']}: {reason}"
    if count:
        context.facts |= {"untried": count, "untried_example": example}
        context.progress.say(f"{count} could not be tried and count nowhere, for example {example}")


class _Failed(Exception):
    """A sample that has been noted among the failures."""


_SHAPE = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "budgets", "code_seconds", "output_chars")
