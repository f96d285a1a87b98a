"""Ask a model one question about each record, parse its answer strictly, and count what cannot be parsed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias, TypeVar

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
    """Settings of a stage that asks a model one question about each record.

    The paper processes the problem set greedily with Qwen2.5-32B-Instruct (section 2.1).
    """

    engine: str = "teacher"
    """The model that is asked: ``teacher``, the name of a stage that made a model, or a model folder."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the first attempt. 0 is greedy; further attempts use at least 0.7."""
    max_tokens: PositiveInt = 4096
    """Longest reply, in tokens."""
    attempts: PositiveInt = 3
    """How often a question is asked until its reply can be parsed."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Records in flight at once. It changes the speed alone."""


class PromptedStage(UnitStage[C, U], Generic[C, U]):
    """A stage whose units each ask the model a question."""

    prompt: ClassVar[str]
    """Name of the shipped template."""

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
        """Fill the template with ``fields`` and ask. Return what ``parse`` made of the reply, and the reply as it was.

        The parsed value is None where no attempt gave a reply that ``parse`` understands. ``key`` seeds the draw: it
        names the question within the stage.
        """
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


Discussed: TypeAlias = tuple[Problem, list[str]]
"""A problem and the discussions of the threads that pose it, one text a thread, in the order of its parents."""


class DiscussedStage(PromptedStage[PromptedConfig, Discussed]):
    """A stage that asks about some problems with the discussions of their threads (ports ``problems``, ``threads``).

    Threads are joined by id; those without a reply are left out. They are not divided as problems are: each job reads
    them once, and keeps those that its problems ask for.
    """

    ports = {"problems": "problems", "threads": "the threads they came from"}
    takes = {"problems": "Problem", "threads": "Thread"}
    record = Problem
    Config = PromptedConfig

    @abstractmethod
    def asks_about(self, problem: Problem) -> bool:
        """Return whether the model is asked about a problem."""

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        wanted = {
            parent
            for part in context.parts()
            for problem in part.read("problems", Problem)
            if self.asks_about(problem)
            for parent in problem.parents
        }
        threads = (thread for thread in context.read("threads", Thread) if thread.id in wanted)
        self._replies = {t.id: t.forum_discussions for t in threads if t.forum_discussions.strip()}

    def units(self, context: StageContext) -> Iterable[tuple[str, Discussed]]:
        for problem in context.read("problems", Problem):
            parents = problem.parents if self.asks_about(problem) else ()
            yield problem.id, (problem, [self._replies[parent] for parent in parents if parent in self._replies])
