"""Ask a model questions about each record, read its replies strictly, and count by reason what is not used."""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share
from nemo_openmath.core.engine import Engine
from nemo_openmath.core.errors import Refused, RetryableError, UserError
from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import ADDED, RUNTIME, Controls, Result, StageContext, UnitLog
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.core.written_tokens import CountedEngine
from nemo_openmath.inference.asking import Rejected, ask
from nemo_openmath.inference.http.dialects import ServerKind
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.synthesis.controls.plant import ControlledConfig, ControlledStage
from nemo_openmath.synthesis.problems.exchanges import (
    DISAGREEMENT,
    SAMPLES,
    SECOND,
    Exchange,
    Interview,
    LineJournal,
    SampleJournal,
    current_interview,
    interviewing,
    made_the_same,
    outcomes_of,
    side_of,
)
from nemo_openmath.synthesis.problems.posts import cut, posts

__all__ = [
    "Discussed",
    "DiscussedConfig",
    "DiscussedStage",
    "OnePromptConfig",
    "PromptedConfig",
    "PromptedStage",
    "Rejected",
]

C = TypeVar("C", bound="PromptedConfig")
U = TypeVar("U")
T = TypeVar("T")

_MARK = re.compile(r"-{3,}([^\n-]*\b(?:begins|ends)\b[^\n-]*)-{3,}", re.I)


def within_marks(text: str) -> str:
    """Return a text of the forum as it may stand between the marked lines of a prompt. What looks like one of them
    ("----- post ends -----") would end the text for the model, and what follows would be our own words: such a
    mark, alone in its line or not, has single dashes."""
    if "---" not in text:
        return text
    return _MARK.sub(lambda mark: f"- {mark[1].strip()} -", text)


@dataclass(frozen=True)
class SecondServer:
    """A server that knows the second model. It may be another one than that of the first."""

    url: str = field(metadata=RUNTIME)
    """Its address, such as ``http://host:8001/v1``."""
    tokenizer: Path
    """Folder of the model's tokenizer."""
    api: Literal["completions", "chat"] = "completions"
    """``completions`` sends token ids, ``chat`` sends messages and leaves the template to the server."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template, such as ``{enable_thinking: false}``."""
    server: ServerKind = field(default="auto", metadata=RUNTIME)
    """What kind of server it is. ``auto`` asks the server."""
    api_key_env: str | None = field(default=None, metadata=RUNTIME)
    """The environment variable that holds the server's key."""
    timeout_s: PositiveFloat = field(default=3600.0, metadata=RUNTIME)
    """Time limit of one attempt, in seconds."""
    patience_s: NonNegativeFloat = field(default=600.0, metadata=RUNTIME)
    """How long a server that is busy or away is waited for, in seconds."""

    async def open(self, model: str) -> tuple[Engine, Tokenizer]:
        """Open the server's model, whose tokens are counted with those of the first. Raises UserError and EngineError
        as ``inference.open_engine``."""
        config = EngineConfig(
            kind="http",
            model=model,
            urls=(self.url,),
            server=self.server,
            api=self.api,
            template_options=self.template_options,
            tokenizer=self.tokenizer,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            patience_s=self.patience_s,
        )
        tokenizer = ChatTokenizer.load(self.tokenizer).with_options(self.template_options, config.renders)
        return CountedEngine(await open_engine(config)), tokenizer


@dataclass(frozen=True)
class PromptedConfig(ControlledConfig):
    """Settings of a stage that asks a model questions about each record.

    The paper processes the problem set greedily with Qwen2.5-32B-Instruct (section 2.1).
    """

    engine: str = "teacher"
    """The model that is asked: ``teacher``, the name of a stage that made a model, or a model folder."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the first attempt. 0 is greedy; further attempts use at least 0.7."""
    max_tokens: PositiveInt = 4096
    """Longest reply, in tokens."""
    attempts: PositiveInt = 3
    """How often a question is asked until its reply can be read and passes the checks."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Records in flight at once. It changes the speed alone."""
    examples: NonNegativeInt = field(default=20, metadata=RUNTIME)
    """Units of each outcome (accepted, each reason of drops) of which it is kept what was asked and what the model
    said, for ``samples.html``. They are drawn by the seed."""
    second_engine: str | None = field(default=None, metadata=ADDED)
    """A second model that is asked about a part of the units too, with the same prompts, to measure how far two models
    agree. Named like ``engine``; with ``second_server``, as that server knows it. null: none. What it says changes no
    record."""
    second_server: SecondServer | None = field(default=None, metadata=ADDED)
    """The server of the second model, where it is no stage, no folder and not the teacher. ``openmath plan`` and the
    tokens of a unit count what it writes."""
    second_share: Share = field(default=0.05, metadata=ADDED)
    """Share of the units that the second model is asked about, drawn by the seed."""

    def __post_init__(self) -> None:
        if self.second_server is not None and not self.second_engine:
            raise UserError("second_server without second_engine", remedy="name its model: second_engine: NAME")


@dataclass(frozen=True)
class OnePromptConfig(PromptedConfig):
    """Settings of a stage that asks one question about each record."""

    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""


class PromptedStage(ControlledStage[C, U], Generic[C, U]):
    """A stage whose units ask the model questions, each with a template of its own.

    The digests of the templates are part of the settings that stand in the manifest, and of the fingerprint: another
    text of a question is another stage, also where the shipped one has changed.
    """

    prompt: ClassVar[str] = ""
    """Name of the shipped template of a stage with one question."""

    def __init__(self, config: C):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._templates = {name: load_template(name, path) for name, path in self.prompts().items()}

    def prompts(self) -> Mapping[str, Path | None]:
        """Return the templates of the stage's questions: the shipped one's name -> the user's own file, if any. The
        first is asked where a question names none."""
        assert isinstance(self.config, OnePromptConfig)
        return {self.prompt: self.config.prompt}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"templates": {name: t.digest for name, t in self._templates.items()}}

    def asked_text(self, template: str = "") -> str:
        """Return what a question says whatever it is asked about: the turns of its template, the places empty."""
        shown = self._templates[template or next(iter(self._templates))]
        return "\n".join(message.content for message in shown.messages(**dict.fromkeys(shown.fields, "\n")))

    def engines(self) -> tuple[str, ...]:
        second = self.config.second_engine if self.config.second_server is None else None
        return (self.config.engine,) if second is None else (self.config.engine, second)

    def check(self, inputs: Mapping[str, Any]) -> None:
        super().check(inputs)
        if (server := self.config.second_server) is not None:
            ChatTokenizer.load(server.tokenizer).with_options(server.template_options, server.api != "chat")

    async def prepare(self, context: StageContext) -> None:
        self._models = [await context.services.engine(name) for name in self.engines()]
        if (server := self.config.second_server) is not None and self.config.second_engine is not None:
            self._own_second, tokenizer = await server.open(self.config.second_engine)
            self._models.append((self._own_second, tokenizer))
        job = f"{context.shard:05d}-of-{context.shards:05d}.jsonl"
        self._samples = SampleJournal(context.output / f"{SAMPLES}-{job}", self.config.examples, context.seed)
        if self.config.second_engine is not None:
            self._second = LineJournal(context.output / f"{SECOND}-{job}")

    async def run(self, context: StageContext) -> None:
        try:
            await super().run(context)
        finally:
            for journal in (getattr(self, "_samples", None), getattr(self, "_second", None)):
                if journal is not None:
                    journal.close()
            if (second := getattr(self, "_own_second", None)) is not None:
                await second.close()

    async def do_unit(
        self, key: str, unit: U, context: StageContext, log: UnitLog, controls: Controls[U] | None = None
    ) -> Result | None:
        with interviewing(Interview(*self._models[0])):
            return await super().do_unit(key, unit, context, log, controls)

    async def before_store(self, key: str, unit: U, result: Result, context: StageContext) -> None:
        """Keep what was said about the unit where it is in the sample, and ask the second model about it."""
        interview = current_interview()
        if interview is None or not (interview.exchanges or result.drops):
            return
        outcomes, second = self.outcomes(result), None
        if interview.exchanges and len(self._models) > 1 and self._is_shared(key, context):
            second = await self._ask_second(key, unit, result, context)
            outcomes += [] if second is None else [DISAGREEMENT]
        if self._samples.takes(key, outcomes):
            row = {"unit": key, "outcomes": outcomes, "sources": list(self.sources(unit)), **side_of(interview, result)}
            self._samples.write(row if second is None else row | {"second": second})

    def _is_shared(self, key: str, context: StageContext) -> bool:
        return derive_seed(context.seed, self.kind, "second", key) < self.config.second_share * 2**31

    async def _ask_second(self, key: str, unit: U, result: Result, context: StageContext) -> dict[str, Any] | None:
        """Let the second model do the unit, too, and write down how the two compare. Nothing of it is stored as a
        record; where it gives no answer, that is its outcome. Return what it was asked and said where the two
        disagree."""
        with interviewing(Interview(*self._models[1])) as interview:
            try:
                second = await self.process(unit, replace(context, metrics={}))
            except (Refused, RetryableError) as error:
                second = Result(drops=[Drop(getattr(error, "reason", "no answer"), str(error))])
        labels = self.outcome(result), self.outcome(second)
        same = labels[0] == labels[1] and made_the_same(result.records, second.records, context.services.vote)
        self._second.append({"unit": key, "first": labels[0], "second": labels[1], "same": same})
        return None if same else side_of(interview, second)

    def outcome(self, result: Result) -> str:
        """Return what a result is, in a word or two: what two models agree on, or do not."""
        return "kept" if result.records else result.drops[0].reason

    def outcomes(self, result: Result) -> list[str]:
        """Return under what a unit is kept for ``samples.html``."""
        return outcomes_of(result)

    def sources(self, unit: U) -> tuple[str, ...]:
        """Return the ids of what a unit came from: of threads, where it is a problem of one."""
        record = unit[0] if isinstance(unit, tuple) else unit
        return record.parents if isinstance(record, Problem) else (record.id,) if isinstance(record, Thread) else ()

    async def question(
        self,
        context: StageContext,
        key: str,
        parse: Callable[[str], T | Rejected],
        template: str = "",
        **fields: object,
    ) -> tuple[T | Rejected, str]:
        """Fill a template with ``fields`` and ask. Return what ``parse`` made of the reply, and the reply as it was.
        Lines of a field that look like the marks around it lose their dashes (:func:`within_marks`).

        A reply that ``parse`` rejects is asked for again with another seed. Where all attempts were rejected, the last
        rejection is returned: its reason is that of the drop, and the reply its example. ``key`` seeds the draw: it
        names the question within the stage. ``template``: the name of the shipped one; the stage's first by default.
        """
        interview = current_interview() or Interview(*self._models[0])
        fields = {name: within_marks(value) if isinstance(value, str) else value for name, value in fields.items()}
        value, reply = await ask(
            interview.engine,
            interview.tokenizer,
            self._templates[template or next(iter(self._templates))].messages(**fields),
            parse,
            seed=derive_seed(context.seed, self.kind, key),
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            attempts=self.config.attempts,
        )
        interview.exchanges[key] = Exchange(fields, reply)
        return value, reply


Discussed: TypeAlias = tuple[Problem, list[str]]
"""A problem and the discussions of the threads that pose it, one text a thread, in the order of its parents."""


@dataclass(frozen=True)
class DiscussedConfig(OnePromptConfig):
    """Settings of a stage that shows the model a problem and the discussion of it."""

    max_discussion_tokens: PositiveInt = 24_000
    """Longest discussion that is shown, in tokens of the model that is asked. It is cut in front of a post."""


D = TypeVar("D", bound=DiscussedConfig)


class DiscussedStage(PromptedStage[D, Discussed], Generic[D]):
    """A stage that asks about some problems with the discussions of their threads (ports ``problems``, ``threads``).

    Threads are joined by id; those without a reply are left out. They are not divided as problems are: each job reads
    them once, and keeps those that its problems ask for.
    """

    ports = {"problems": "problems", "threads": "the threads they came from"}
    takes = {"problems": "Problem", "threads": "Thread"}
    record = Problem
    Config = DiscussedConfig

    @abstractmethod
    def asks_about(self, problem: Problem) -> bool:
        """Return whether the model is asked about a problem."""

    def is_asked(self, unit: Discussed) -> bool:
        return self.asks_about(unit[0])

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        wanted = {
            parent
            for part in context.parts()
            for problem in part.read("problems", Problem)
            if self.asks_about(problem)
            for parent in problem.parents
        }
        self._replies: dict[str, str] = {}
        for thread in context.read("threads", Thread):
            if thread.id in wanted:
                wanted.remove(thread.id)
                if thread.forum_discussions.strip():
                    self._replies[thread.id] = thread.forum_discussions
                    self.take_post(thread)
        if missing := sorted(name for name in wanted if name.startswith("thread-")):
            raise UserError(
                f"{context.name}: port `threads` lacks {len(missing)} threads of the problems, such as {missing[0]}",
                remedy="name the stage there that read the files: it has the discussions of all of them",
            )

    def take_post(self, thread: Thread) -> None:
        """Keep what the stage needs of the first post of a thread: by default, nothing."""

    def units(self, context: StageContext) -> Iterable[tuple[str, Discussed]]:
        for problem in context.read("problems", Problem):
            asked = self.asks_about(problem)
            yield problem.id, (problem, [self._replies[p] for p in self.discussed(problem)] if asked else [])

    def discussed(self, problem: Problem) -> list[str]:
        """Return the ids of the threads whose discussions a unit has, in the same order."""
        return [parent for parent in problem.parents if parent in self._replies]

    async def shown(self, discussions: Sequence[str]) -> str:
        """Return discussions as one text, cut to what the model that is asked may be shown (posts.py)."""
        interview = current_interview() or Interview(*self._models[0])
        texts = [text for discussion in discussions for text in posts(discussion)]
        tokens = self.config.max_discussion_tokens
        return (await asyncio.to_thread(cut, texts, tokens, interview.tokenizer)).text
