"""The Stage contract: the only way work is done here.

A stage reads finished folders, writes one folder, and is pure in what it decides: the same inputs, configuration and
seed give the same content. It may be killed at any instant and run again; it does only what is missing. Work is
divided into units with ids, so an array of jobs can share a stage by id. What it drops, it counts, with a reason.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import orjson

from nemo_openmath.core.engine import Engine
from nemo_openmath.core.errors import ExitCode, Incomplete, OpenMathError, Refused, RetryableError, UserError
from nemo_openmath.core.grader import Grader, Majority
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Drop, Record, RecordWriter, content_id, digest_of_lines
from nemo_openmath.core.records.ids import in_shard, unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.lineage import digest_tree
from nemo_openmath.core.records.store import read_lines
from nemo_openmath.core.sandbox import Sandbox
from nemo_openmath.core.tokenizer import Tokenizer

C = TypeVar("C")
U = TypeVar("U")
R = TypeVar("R", bound=Record)

RUNTIME = {"runtime": True}
"""``field(metadata=RUNTIME)``: how fast, not what. Such settings are left out of the stage's fingerprint."""


class Services(ABC):
    """What the surroundings lend to a stage: opened when first asked for, shared, closed at the end of the run."""

    @abstractmethod
    async def engine(self, name: str) -> tuple[Engine, Tokenizer]:
        """``teacher``, or the name of a stage that made a model, or the folder of a Hugging Face model."""

    @abstractmethod
    async def sandbox(self) -> Sandbox: ...

    @abstractmethod
    async def grading(self) -> Grader: ...

    @abstractmethod
    def vote(self, answers: Sequence[str]) -> Majority:
        """Count answers by meaning, at once and in this process."""


@dataclass
class StageContext:
    """Everything a running stage may touch.

    ``inputs``: port name -> finished folders or files, in the recipe's order. ``output``: the stage's own folder.
    ``facts``: numbers that the stage measured; they go into the manifest, the status and the report. ``taken``: port ->
    records that were read of it, by readings to the end.
    """

    name: str
    inputs: Mapping[str, Sequence[Path]]
    output: Path
    seed: int
    services: Services
    progress: Progress
    shard: int = 0
    shards: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)

    def read(self, port: str, kind: type[R]) -> Iterator[R]:
        """Records of all folders of an input port, streamed, each id once (merging.py)."""
        number = 0
        records = read_merged(self.inputs.get(port, ()), kind, lambda answers: self.services.vote(answers))
        for number, record in enumerate(records, 1):  # noqa: B007
            yield record
        self.taken[port] = number

    def one(self, port: str) -> Path:
        """The only folder of a port."""
        (path,) = self.inputs[port]
        return path


class Stage(ABC, Generic[C]):
    """One arrow of the data flow. A recipe knows a subclass by its ``kind`` (see :func:`register`) and fills its
    ``Config``."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    """Raise it when the same configuration would make other content."""
    Config: ClassVar[type]
    ports: ClassVar[dict[str, str]] = {}
    """Input name -> what it holds, in words; a name ending in ``?`` may be left out."""
    takes: ClassVar[dict[str, str]] = {}
    """Input name (without ``?``) -> the :meth:`product` of the stages that it may be wired to; ``records``: of any
    that makes records. Inputs that are not listed take files of others."""
    record: ClassVar[type[Record] | None] = None
    """What the records are, where ``makes`` is ``records``."""
    grows: ClassVar[tuple[str, ...]] = ()
    """Settings (0: no bound) of which a larger value adds units and changes none: what was made is kept then."""
    makes: ClassVar[str] = "records"
    """``records``, ``model`` (a folder that an engine can load), or another kind of artifact, in a word."""
    disclosure: ClassVar[str] = ""
    """A sentence that the results show where the stage stands in for the real thing."""

    def __init__(self, config: C):
        self.config = config

    @classmethod
    def product(cls) -> str:
        """What the stage's folder holds: the name of the record type, or of the artifact."""
        return cls.record.__name__ if cls.record is not None else cls.makes

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        """Raise the UserError of what can be known to be wrong before any stage runs. ``inputs``: the files and folders
        that exist by then; what other stages will make is not among them."""

    @abstractmethod
    async def run(self, context: StageContext) -> None:
        """Fill ``context.output``. The caller writes the manifest afterwards."""

    async def prepare_launch(self, context: StageContext) -> None:
        """Write down what a cluster launcher's own processes are to do (``job.yaml`` of a training). Most stages have
        nothing of the kind: their jobs run the stage itself."""

    def engines(self) -> tuple[str, ...]:
        """Names that this stage will ask ``services.engine`` for; models made by stages become its inputs."""
        return ()

    def fingerprint(self, inputs: Mapping[str, Sequence[str]], seed: int) -> str:
        """What the stage is asked to do. ``inputs``: port -> digests."""
        return content_id("stage", self.kind, self.version, self.settings(), dict(inputs), seed)

    def smaller(self, was: Mapping[str, int]) -> Stage[C] | None:
        """The stage that this one has grown from; None where it has not. ``was``: the values of ``grows`` then."""
        now = {name: getattr(self.config, name) for name in self.grows}
        grown = was.keys() == now.keys() and all((now[n] or math.inf) >= (was[n] or math.inf) for n in now)
        return type(self)(replace(self.config, **was)) if grown and now else None  # type: ignore[type-var]

    def digest(self, output: Path) -> str:
        """Digest of what was made: of the records whatever their order, or of all files of an artifact."""
        return digest_of_lines(read_lines(output)) if self.makes == "records" else digest_tree(output)

    def settings(self) -> dict[str, Any]:
        """The configuration as plain data, without what only concerns speed."""
        return _settings(self.config)


def _settings(config: Any) -> dict[str, Any]:
    runtime = {f.name for f in fields(config) if f.metadata.get("runtime")}
    return {k: _plain(v) for k, v in asdict(config).items() if k not in runtime}


def _plain(value: Any) -> Any:
    """Data for a fingerprint: a file counts by its content, not by where it lies."""
    if isinstance(value, Path):
        return f"{value.name} {digest_tree(value)}" if value.exists() else str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


@dataclass(frozen=True, slots=True)
class Result:
    """What one unit left. ``asked``: False where no engine had to be asked for it."""

    records: Sequence[Record] = ()
    drops: Sequence[Drop] = ()
    asked: bool = True


class Failures:
    """The units that failed after all retries. Each is kept with its error in ``failed-<shard>.jsonl``, which the next
    run, whose retries they are, begins anew."""

    def __init__(self, context: StageContext, attempts: int):
        self._stage, self._attempts = context.name, attempts
        self._path = context.output / f"failed-{context.shard:05d}-of-{context.shards:05d}.jsonl"
        self._path.unlink(missing_ok=True)
        self._kinds: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def __len__(self) -> int:
        return self._kinds.total()

    def add(self, key: str, error: OpenMathError) -> None:
        kind = type(error).__name__
        self._kinds[kind] += 1
        self._example.setdefault(kind, f"{key}: {error}")
        with self._path.open("ab") as file:
            file.write(orjson.dumps({"unit": key, "error": kind, "message": str(error)}) + b"\n")

    def close(self) -> None:
        """Raises Incomplete, which says how many, where any failed."""
        if self._kinds:
            kind, count = self._kinds.most_common(1)[0]
            raise Incomplete(
                f"{self._stage}: {len(self)} unit{'s' * (len(self) != 1)} failed after {self._attempts} attempts, "
                f"{count} by {kind} (for "
                f"example {self._example[kind]}); what finished is kept, run again to retry the rest ({self._path})"
            )


class Refusals:
    """The units that the engine refused. They are held back until it has answered one: an engine that refuses every
    request is set up wrongly, which says nothing of the units. A prompt that is too long says nothing of the engine."""

    SURE = 1000  # refused requests without an answered one among them

    def __init__(self, context: StageContext, writer: RecordWriter):
        self._stage, self._writer = context.name, writer
        self._held: list[tuple[str, Result]] = []
        self._count = 0
        self._example = ""
        self._answered = False

    def add(self, key: str, result: Result, error: Refused) -> None:
        if self._answered or error.reason != Refused.reason:
            self._writer.commit(key, result.records, result.drops)
            return
        self._held.append((key, result))
        self.count(error)

    def count(self, error: OpenMathError) -> None:
        """One more refused request, of a unit that is held back or has failed."""
        self._count += 1
        self._example = self._example or str(error)
        if self._count >= self.SURE:
            self.close()

    def answered(self) -> None:
        self._answered = True
        for key, result in self._held:
            self._writer.commit(key, result.records, result.drops)
        self._held = []

    def close(self) -> None:
        """Raises UserError where requests were made, and all were refused."""
        if self._count and not self._answered:
            raise UserError(
                f"{self._stage}: the engine refused every request ({self._count}), the first with: {self._example}",
                remedy="put the engine's settings right and run the same command again",
            )


class UnitStage(Stage[C], Generic[C, U]):
    """A stage whose units are independent: given units and a coroutine for one, the rest is here.

    Hundreds to thousands of units are in flight at once; memory is bounded by ``concurrency`` units. A unit that
    raises a retryable error is tried again ``retries`` times; one that still fails is reported and left undone, so
    that running again retries it, and the stage ends as Incomplete once all others are finished. One that the engine
    refuses, as it would again, leaves what :meth:`refused` says.
    """

    concurrency: int = 256
    retries: int = 2

    @abstractmethod
    def units(self, context: StageContext) -> Iterable[tuple[str, U]]:
        """(id, payload) of every unit, streamed. Ids are content-derived."""

    @abstractmethod
    async def process(self, unit: U, context: StageContext) -> Result:
        """Do one unit. Cancelling the task must release what it holds."""

    def refused(self, key: str, unit: U, error: Refused, context: StageContext) -> Result:
        """What a unit leaves that the engine refused, or whose prompt is too long: a drop, counted by its reason."""
        return Result(drops=[Drop(error.reason, str(error))])

    async def prepare(self, context: StageContext) -> None:
        """Open what all units share."""

    def count(self, context: StageContext) -> int | None:
        """Number of units of this shard where it is cheap to know."""
        return None

    async def run(self, context: StageContext) -> None:
        await self.prepare(context)
        failures = Failures(context, self.retries + 1)
        with RecordWriter(context.output, shard=context.shard, shards=context.shards) as writer:
            context.progress.begin(self.count(context), writer.recovered)
            refusals = Refusals(context, writer)

            async def one(key: str, unit: U) -> None:
                await self.do_unit(key, unit, context, writer, failures, refusals)

            offered = 0

            def todo() -> Iterator[tuple[str, U]]:
                nonlocal offered
                seen = KeySet()
                for key, unit in self.units(context):
                    if not seen.add(unit_key(key)):
                        context.facts["equal_units"] = context.facts.get("equal_units", 0) + 1
                        continue
                    offered += 1
                    if in_shard(key, context.shard, context.shards) and not writer.done(key):
                        yield key, unit

            await run_bounded(todo(), one, self.concurrency)
            refusals.close()
        self.check_sum(context, offered)
        failures.close()

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Every record of the first port is one unit; nothing vanishes on its way into the stage. Stages that make
        another number of units of a record say here how many."""
        port = next(iter(self.ports), "")
        if port in context.taken and context.taken[port] != offered:
            raise AssertionError(
                f"{self.kind}: {context.taken[port]} {port} went in, {offered} units were made of them"
            )

    async def do_unit(
        self,
        key: str,
        unit: U,
        context: StageContext,
        writer: RecordWriter,
        failures: Failures,
        refusals: Refusals,
    ) -> Result | None:
        """Do one unit, with its retries, and store what it left; None where it failed."""
        result = None
        try:
            result = await self._attempt(unit, context)
        except Refused as error:
            result = self.refused(key, unit, error, context)
            refusals.add(key, result, error)
        except RetryableError as error:
            failures.add(key, error)
            if error.exit_code is ExitCode.USER_ERROR:  # the server refuses us, not the unit
                refusals.count(error)
            context.progress.failed += 1
        else:
            if not (result.records or result.drops):
                raise AssertionError(f"{self.kind}: unit {key} left neither a record nor a reason")
            if result.asked:
                refusals.answered()
            writer.commit(key, result.records, result.drops)
        context.progress.advance()
        return result

    async def _attempt(self, unit: U, context: StageContext) -> Result:
        for attempt in range(self.retries + 1):
            try:
                return await self.process(unit, context)
            except RetryableError as error:
                if not error.retryable or attempt == self.retries:
                    raise
        raise AssertionError("the loop returns or raises")


async def run_bounded(
    units: Iterable[tuple[str, U]], work: Callable[[str, U], Awaitable[None]], concurrency: int
) -> None:
    """Run ``work`` over a stream with at most ``concurrency`` in flight. The first error cancels the rest."""
    pending: set[asyncio.Task[None]] = set()
    try:
        for key, unit in units:
            pending.add(asyncio.ensure_future(_call(work, key, unit)))
            if len(pending) >= concurrency:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _call(work: Callable[[str, U], Awaitable[None]], key: str, unit: U) -> None:
    await work(key, unit)


_REGISTRY: dict[str, type[Stage]] = {}


def register(cls: type[Stage]) -> type[Stage]:
    """Make a stage usable in recipes under its ``kind``. A second stage of one kind is refused."""
    if _REGISTRY.setdefault(cls.kind, cls) is not cls:
        raise ValueError(f"two stages are called {cls.kind}")
    return cls


def stage_kinds() -> dict[str, type[Stage]]:
    return dict(sorted(_REGISTRY.items()))
