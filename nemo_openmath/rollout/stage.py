"""The generation stage: problems x samples, any number in flight, each stored as it finishes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.engines.protocol import ContextOverflow
from nemo_openmath.pipeline import Result, StageContext, UnitStage, register
from nemo_openmath.pipeline.stage import RUNTIME
from nemo_openmath.records import Drop, Generation, Problem
from nemo_openmath.rollout.loop import RolloutSettings, derive_seed, draw_budget, roll_out
from nemo_openmath.transcripts import load_template


@dataclass(frozen=True)
class GenerateConfig(RolloutSettings):
    """``engine``: teacher, the name of a stage that made a model, or a model folder. ``samples``: per problem.
    ``limit``: only the first so many problems (0: all). ``prompt``: a template of the user's own."""

    engine: str = "teacher"
    mode: Literal["cot", "tir"] = "cot"
    samples: int = 1
    limit: int = 0
    prompt: Path | None = None
    concurrency: int = field(default=256, metadata=RUNTIME)


@register
class Generate(UnitStage[GenerateConfig, tuple[Problem, int]]):
    """Sample solutions (paper sections 2.3 and 3)."""

    kind = "rollout.generate"
    Config = GenerateConfig
    ports = {"problems": "problems to solve"}

    def __init__(self, config: GenerateConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template(config.mode, config.prompt)
        shape = {k: v for k, v in asdict(config).items() if k in _SHAPE}
        self._sampling: dict[str, Any] = shape
        self._tokens = self._cached = self._fresh = 0

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)
        self._sandbox = await context.services.sandbox() if self.config.mode == "tir" else None
        self._begun = time.monotonic()

    def count(self, context: StageContext) -> int | None:
        if context.shards > 1:
            return None
        return sum(1 for _ in self._problems(context)) * self.config.samples

    def _problems(self, context: StageContext) -> Iterable[Problem]:
        for n, problem in enumerate(context.read("problems", Problem)):
            if self.config.limit and n >= self.config.limit:
                return
            yield problem

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, int]]]:
        for problem in self._problems(context):
            for sample in range(self.config.samples):
                key = Generation.make_id(
                    problem.id, self.config.mode, self._engine.model, self._template.digest, self._sampling,
                    context.seed, sample,
                )  # fmt: skip
                yield key, (problem, sample)

    async def process(self, unit: tuple[Problem, int], context: StageContext) -> Result:
        problem, sample = unit
        key = Generation.make_id(
            problem.id,
            self.config.mode,
            self._engine.model,
            self._template.digest,
            self._sampling,
            context.seed,
            sample,
        )
        seed = derive_seed(context.seed, key)
        fields: dict[str, object] = {"problem": problem.problem}
        budget = 0
        if self.config.mode == "tir":
            budget = draw_budget(self.config, seed)
            fields["total_code_executions"] = budget
        try:
            outcome = await roll_out(
                self._engine,
                self._tokenizer,
                self._template.messages(**fields),
                self.config,
                seed=seed,
                key=key,
                sandbox=self._sandbox,
                budget=budget,
            )
        except ContextOverflow as error:
            return Result(drops=[Drop("prompt longer than the context", str(error))])
        self._tokens += outcome.completion_tokens
        self._cached += outcome.cached_tokens
        self._fresh += outcome.computed_tokens
        seconds = time.monotonic() - self._begun
        context.facts.update(
            completion_tokens=self._tokens,
            tokens_per_second=round(self._tokens / seconds, 1),
            cached_share=round(self._cached / max(1, self._cached + self._fresh), 3),
        )
        context.progress.advance(0, f"{self._tokens / seconds:.0f} tokens/s")
        generation = Generation(
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
        return Result([generation])


_SHAPE = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "budgets", "code_seconds", "output_chars")
