"""What a stage is lent in a test, and a way to run one over given records."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Engine
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Drop, Record, RecordWriter, read_drops, read_records
from nemo_openmath.core.stage import Services, Stage, StageContext
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.core.written_tokens import CountedEngine
from nemo_openmath.grading import GradingPool, majority
from tests.support.engines import Asked, Reply, ScriptedServer


class Lent(Services):
    """The services that a test names. A stage that asks for another one fails the test."""

    vote = staticmethod(majority)

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        tokenizer: ChatTokenizer | None = None,
        sandbox: Any = None,
        grading: GradingPool | None = None,
    ):
        self._engine, self._tokenizer, self._sandbox, self._grading = engine, tokenizer, sandbox, grading

    async def engine(self, name: str) -> tuple[Engine, ChatTokenizer]:
        if self._engine is None or self._tokenizer is None:
            raise AssertionError(f"no engine is lent, {name} was asked for")
        return CountedEngine(self._engine), self._tokenizer

    async def sandbox(self) -> Any:
        if self._sandbox is None:
            raise AssertionError("no sandbox is lent")
        return self._sandbox

    def encoded_with(self, stage: str, tokenizer: Tokenizer) -> bool:
        return True

    async def grading(self) -> GradingPool:
        if self._grading is None:
            raise AssertionError("no grading pool is lent")
        return self._grading


def stage_context(
    inputs: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    services: Services | None = None,
    seed: int = 1,
    shard: int = 0,
    shards: int = 1,
    partitions: int = 1,
) -> StageContext:
    """A stage's context that shows nothing on the terminal, and its folder, as a run makes it. By default no service is
    lent."""
    output.mkdir(parents=True, exist_ok=True)
    progress = Progress("test", console=Console(file=io.StringIO()))
    ports = {port: list(folders) for port, folders in inputs.items()}
    return StageContext(
        "test", ports, output, seed, services or Lent(), progress, shard, shards, max(partitions, shards)
    )


@dataclass(frozen=True)
class StageRun:
    """What lies in a stage's folder after a run, and what the model was asked in this run."""

    records: list[Any]
    drops: list[tuple[str, Drop]]
    asked: list[Asked]
    context: StageContext

    @property
    def reasons(self) -> list[str]:
        """The reason of each drop, sorted."""
        return sorted(drop.reason for _, drop in self.drops)


async def run_stage(
    stage: Stage[Any],
    folder: Path,
    answer: Callable[[str], str | Reply] | None = None,
    *,
    tokenizer: ChatTokenizer | None = None,
    grading: GradingPool | None = None,
    seed: int = 1,
    folders: Mapping[str, Sequence[Path]] | None = None,
    **inputs: Sequence[Record],
) -> StageRun:
    """Run ``stage`` over ``inputs`` (port -> records, which may hold an id twice) into ``folder/out``.

    ``folders``: port -> finished folders of records. ``answer``: what the model says to a question. A second run in
    the same ``folder`` goes on from the first one."""
    ports = {port: [_stored(folder / port, records)] for port, records in inputs.items()}
    ports |= {port: list(paths) for port, paths in (folders or {}).items()}
    ports |= {port.removesuffix("?"): [] for port in stage.ports if port.removesuffix("?") not in ports}
    async with AsyncExitStack() as stack:
        asked: list[Asked] = []
        engine = None
        if answer is not None:
            server = await stack.enter_async_context(ScriptedServer(answer))
            asked, engine = server.asked, server.engine()
            stack.push_async_callback(engine.close)
        services = Lent(engine=engine, tokenizer=tokenizer, grading=grading)
        context = stage_context(ports, folder / "out", services=services, seed=seed)
        await stage.run(context)
    records = [] if stage.record is None else list(read_records(context.output, stage.record))
    return StageRun(records, list(read_drops(context.output)), asked, context)


def _stored(folder: Path, records: Sequence[Record]) -> Path:
    if not folder.exists():
        with RecordWriter(folder) as writer:
            for number, record in enumerate(records):
                writer.commit(str(number), [record])
    return folder
