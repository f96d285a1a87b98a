"""The demo's world as stages: its forum and its benchmark."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.stage import ADDED, Stage, StageContext
from nemo_openmath.demo.forum import ForumConfig, dressed, make_threads
from nemo_openmath.demo.world import Item, make_problems, parse
from nemo_openmath.synthesis.problems.posts import joined, posts
from nemo_openmath.synthesis.problems.threads import ReadThreads, ReadThreadsConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """How large the benchmark is."""

    problems: PositiveInt = 200
    """How many problems."""
    pool: Literal["benchmark", "train"] = field(default="benchmark", metadata=ADDED)
    """``benchmark``: held out, no thread is made of them. ``train``: those of which threads are made."""


class Benchmark(Stage[BenchmarkConfig]):
    """Problems of the tiny world with exact answers, held-out ones unless told otherwise."""

    kind = "demo.benchmark"
    Config = BenchmarkConfig
    record = Problem

    async def run(self, context: StageContext) -> None:
        items = make_problems(context.seed, self.config.problems, pool=self.config.pool)
        write_records(context.output, map(_problem, items))


def _problem(item: Item) -> Problem:
    return Problem.make(
        item.statement, expected_answer=item.answer, category="answer", source="demo", extra={"kind": item.kind}
    )


@dataclass(frozen=True)
class ThreadsConfig:
    """What the forum holds."""

    forum: ForumConfig = field(default_factory=ForumConfig)
    """How many threads of each sort there are, and what their replies say."""


class Threads(Stage[ThreadsConfig]):
    """A forum about the tiny world, with the noise of a forum; some threads leak the benchmark. What each thread holds
    stands in its column ``known_problems``, by which ``evaluation.problems`` measures the stages."""

    kind = "demo.threads"
    version = 2  # 2: a thread says what it holds
    Config = ThreadsConfig
    ports = {"benchmark": "problems to leak"}
    takes = {"benchmark": "Problem"}
    record = Thread
    disclosure = "The forum is generated from a tiny mathematical world. Use problems.read_threads for real threads."

    async def run(self, context: StageContext) -> None:
        benchmark = [item for p in context.read("benchmark", Problem) if (item := parse(p.problem)) is not None]
        rows = make_threads(self.config.forum, context.seed, benchmark)
        rng = random.Random(f"markup:{context.seed}")
        write_records(context.output, (as_read(row, rng) for row in rows))


def as_read(row: dict[str, Any], rng: random.Random) -> Thread:
    """Return a thread as ``problems.read_threads`` reads it from the forum's files."""
    replies = [dressed(text, rng) for text in posts(row["forum_discussions"])]
    stored = row | {"forum_post": dressed(row["forum_post"], rng), "forum_discussions": joined(replies)}
    (thread,) = ReadThreads(ReadThreadsConfig()).make(stored, "forum").records
    assert isinstance(thread, Thread)
    return thread.with_(extra={name: value for name, value in thread.extra.items() if name in row})


STAGES: tuple[type[Stage], ...] = (Benchmark, Threads)
