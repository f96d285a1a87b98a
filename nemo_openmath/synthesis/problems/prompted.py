"""What the problem-set stages share: one question to a model per record, its answer parsed, drops counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from nemo_openmath.chat import load_template
from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import RUNTIME, StageContext, UnitStage
from nemo_openmath.inference.asking import ask

C = TypeVar("C", bound="PromptedConfig")
U = TypeVar("U")
T = TypeVar("T")


@dataclass(frozen=True)
class PromptedConfig:
    """The paper processes the problem set with Qwen2.5-32B-Instruct (section 2.1), greedily."""

    engine: str = "teacher"
    prompt: Path | None = None
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 4096
    attempts: PositiveInt = 3
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)


class PromptedStage(UnitStage[C, U], Generic[C, U]):
    """A unit stage that asks ``config.engine`` with the template ``prompt``."""

    prompt: ClassVar[str]

    def __init__(self, config: C):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template(self.prompt, config.prompt)

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)

    async def question(
        self, context: StageContext, key: str, parse: Callable[[str], T | None], **fields: object
    ) -> tuple[T | None, str]:
        """(parsed answer or None, raw answer)."""
        return await ask(
            self._engine,
            self._tokenizer,
            self._template.messages(**fields),
            parse,
            seed=derive_seed(context.seed, self.kind, key),
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            attempts=self.config.attempts,
        )


def with_discussion(context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[str]]]]:
    """Problems with the replies of each of their threads that has any: joined by id, never by order."""
    replies = {t.id: t.forum_discussions for t in context.read("threads", Thread) if t.forum_discussions.strip()}
    for problem in context.read("problems", Problem):
        yield problem.id, (problem, [replies[parent] for parent in problem.parents if parent in replies])
