"""The CoT and TIR loops.

    prompt ids -> engine -> model ids (up to </tool_call>) -> sandbox -> the tool's block -> engine -> .. -> end of turn

A chat server takes turns instead: ``talking.py``.

The context only ever grows by the ids that the model made and the ids of the tool's block. So an engine's prefix cache
holds all of it, and the ids that were generated are the ids that can be trained on.

Where the model calls code in another way (``formats.py``), the engine stops more often than code is called, and what
the model wrote behind a call is cut off its context. The transcript is in tags then, and has no ids.

A ``<think>`` that the chat template writes at the end of the prompt is the transcript's first span, by the template.
What a program prints is encoded as text through and through: a control token in it is no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.engine import (
    Completion,
    ContextOverflow,
    Conversation,
    Engine,
    EngineError,
    Finish,
    Request,
    Sampling,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.sandbox import Sandbox, Session
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.inference.asking import prompt_for, token_ids
from nemo_openmath.inference.rollout.formats import FORMATS, IDLE_STOPS, Step, cut_output
from nemo_openmath.inference.rollout.outcome import Cost, Outcome, tail_repeats
from nemo_openmath.inference.rollout.settings import RolloutSettings
from nemo_openmath.inference.rollout.start import Start
from nemo_openmath.inference.rollout.talking import talk
from nemo_openmath.inference.rollout.watch import Watch

_TRIES = 16  # tokens at whose end a text may be cut and encoded on


async def roll_out(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    settings: RolloutSettings,
    *,
    seed: int,
    key: str,
    sandbox: Sandbox | None = None,
    budget: int = 0,
    watch: Watch | None = None,
) -> Outcome:
    """Generate one solution.

    ``key`` names the conversation for prefix caches. ``budget`` above 0 lets the solution call code so many times.
    ``watch`` has the solution as far as it is made, at any moment and after a cancellation.
    Cancelling releases the engine's request and the sandbox's session. Raises EngineError and SandboxError; whatever
    the model and its code do is an outcome.
    """
    start = Start(engine, tokenizer, messages, settings, seed, key, budget, watch)
    if budget > 0 and engine.capabilities.conversations:
        return await talk(start, sandbox)
    if budget > 0 and settings.tool_format == "tool_calls":
        raise UserError(
            f"{engine.model} is given token ids, and calls of tools are for chat servers",
            remedy="use api: chat, or tool_format tags or fences",
        )
    prompt = tokenizer.prompt(messages)
    to_send = await prompt_for(engine, tokenizer, messages, prompt)
    text = None if isinstance(to_send, tuple) else to_send  # of engines that take no ids
    ids = list(to_send) if isinstance(to_send, tuple) else await token_ids(tokenizer, prompt.parts)
    rollout = _Rollout(start, _Prompt(prompt.opening, ids, text))
    if watch is not None:
        watch.so_far = rollout.so_far
    finish = await rollout.run(sandbox)
    return rollout.outcome(finish)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt. ``text``: where the engine takes no ids."""

    opening: str
    ids: list[int]
    text: str | Conversation | None


@dataclass(slots=True)
class _Text:
    """What the model wrote since the last output."""

    text: str = ""
    ids: list[int] = field(default_factory=list)


class _Rollout:
    """The solution as far as it is made."""

    def __init__(self, start: Start, prompt: _Prompt):
        self._start, self._engine, self._tokenizer = start, start.engine, start.tokenizer
        self._settings, self._budget = start.settings, start.budget
        self._opening, self._ids, self._prompt_text = prompt.opening, prompt.ids, prompt.text
        self._format = FORMATS[self._settings.tool_format if self._budget > 0 else "tags"]
        self._spans: list[Span] = []
        self._turn = _Text()
        self._ran: list[str] = []
        self._outputs: list[str] = []
        self._requests = self._idle = 0
        self._cost = Cost(prompt_tokens=len(self._ids))
        if self._budget > 0 and self._prompt_text is not None:
            raise UserError(
                f"{self._engine.model} takes neither token ids nor conversations, and code needs one of them",
                remedy="name the server's kind (server: vllm), or use api: chat",
            )

    async def run(self, sandbox: Sandbox | None) -> Finish:
        """Let model and tool take turns, and return why the solution ended."""
        session: Session | None = None
        try:
            while isinstance(step := await self._model_turn(), Step):
                if self._cost.code_calls == self._budget:
                    return Finish.BUDGET
                if session is None:
                    session = await self._open_session(sandbox)
                await self._tool_turn(session, step)
                if self._written >= self._settings.max_tokens:
                    return Finish.LENGTH
            return step
        finally:
            if session is not None:
                await session.close()

    def outcome(self, finish: Finish) -> Outcome:
        """Return the solution, which ended by ``finish``."""
        times = self._settings.repetition
        if finish is Finish.LENGTH and times and tail_repeats(self._ids[self._cost.prompt_tokens :], times):
            finish = Finish.REPETITION
        return Outcome(self._transcript(finished=finish is Finish.STOP), finish, self._cost)

    def so_far(self, text: str, tokens: int) -> Outcome:
        """Return the solution as it stands, with what the engine has sent of its next text."""
        spans, open_text = tuple(self._spans), self._turn.text + text
        if open_text:
            spans = (*spans, Span(Author.MODEL, open_text))
        cost = replace(self._cost, completion_tokens=self._cost.completion_tokens + tokens)
        transcript = Transcript(self._start.messages, tuple(replace(span, ids=None) for span in spans), finished=False)
        return Outcome(self._opened(transcript), Finish.TIME, cost)

    @property
    def _written(self) -> int:
        """Tokens behind the prompt."""
        return self._cost.completion_tokens + self._cost.tool_tokens

    # -- the model's turn ------------------------------------------------------------------------------------------

    async def _model_turn(self) -> Finish | Step:
        """Let the model write on until it calls code, and return the call, or why the solution ends before that."""
        self._turn = _Text()
        while (room := self._room()) > 0:
            completion = await self._complete(room)
            finish, tools = completion.finish, self._budget > 0
            ended = finish is Finish.STOP and completion.stop is None
            step = self._read(ended=ended) if tools else None
            if step is None and finish is Finish.STOP and not ended and tools:
                self._idle += 1  # a fence that is no call
                continue
            self._cost.invented_outputs += step is not None and step.invented
            if finish is Finish.STOP and step is not None:
                self._settle(step.shown, step.recorded)
                return step if step.finish is None else step.finish
            self._settle(*([self._turn.text] * 2 if step is None else [step.shown] * 2))
            return finish if finish in (Finish.STOP, Finish.TIME, Finish.CUT) else Finish.LENGTH
        self._settle(self._turn.text, self._turn.text)
        return Finish.LENGTH

    async def _complete(self, room: int) -> Completion:
        """Ask the engine once, and add what the model wrote to its turn."""
        completion = await self._start.complete(self._request(room))
        self._requests += 1
        usage, ids = completion.usage, completion.token_ids
        self._cost.completion_tokens += len(ids) or usage.completion_tokens
        self._cost.cached_tokens += usage.cached_tokens
        self._cost.computed_tokens += len(self._ids) - usage.cached_tokens
        if completion.finish is Finish.CANCELLED:  # the engine was closed: what there is is no solution
            raise EngineError("the engine ended the request before it was finished", retryable=True)
        self._append(completion)
        return completion

    def _read(self, *, ended: bool) -> Step | None:
        return self._format.read(self._turn.text, ended=ended, ran=self._ran, outputs=self._outputs)

    def _settle(self, shown: str, recorded: str) -> None:
        """End the model's turn: it is shown ``shown`` of it from now on, and the record has ``recorded``."""
        turn = self._turn
        if shown != turn.text:
            ids = ids_of(self._tokenizer, turn.ids, shown)
            self._ids[len(self._ids) - len(turn.ids) :] = ids
            turn.text, turn.ids = shown, ids
        if recorded:
            keeps = self._format.keeps_ids and self._prompt_text is None
            self._spans.append(Span(Author.MODEL, recorded, tuple(turn.ids) if keeps else None))
        self._turn = _Text()

    def _room(self) -> int:
        """Tokens that the model may still write. Raises ContextOverflow where the prompt alone fills the context."""
        room = self._settings.max_tokens - self._written
        context = self._engine.capabilities.max_context
        if context is None or self._prompt_text is not None:
            return room
        room = min(room, context - len(self._ids))
        if room <= 0 and not self._spans and not self._turn.ids:
            raise ContextOverflow(len(self._ids), context)
        return room

    def _request(self, max_tokens: int) -> Request:
        settings, tools = self._settings, self._budget > 0
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            seed=derive_seed(self._start.seed, self._requests),
            stop=self._format.stops if tools and self._idle < IDLE_STOPS else (),
        )
        prompt = tuple(self._ids) if self._prompt_text is None else self._prompt_text
        return Request(prompt, sampling, conversation=self._start.key if tools else None)

    def _append(self, completion: Completion) -> None:
        """Add what the model wrote, without the end-of-turn token: ``Transcript.finished`` says it, and some servers do
        not return it."""
        text, ids, tokenizer = completion.text, completion.token_ids, self._tokenizer
        stopped = completion.finish is Finish.STOP
        if stopped and completion.stop is None and ids:
            if ids[-1] not in tokenizer.end_ids and tokenizer.decode(ids) != text:
                ids = ids[:-1]  # a token that ends a text for this model alone
            while ids and ids[-1] in tokenizer.end_ids:
                text, ids = text.removesuffix(tokenizer.decode(ids[-1:])), ids[:-1]
        if stopped and self._prompt_text is not None:  # some servers write the end-of-text token
            text, _ = tokenizer.strip_end(text)
        if completion.stop is not None and not self._format.keeps_ids and ids:
            whole = tokenizer.decode(ids)  # a stop string may end within a token
            text = next((t for t in (whole, f" {whole}") if t.startswith(text)), text)
        self._turn.text += text
        self._turn.ids.extend(ids)
        self._ids.extend(ids)

    # -- the tool's turn -------------------------------------------------------------------------------------------

    async def _open_session(self, sandbox: Sandbox | None) -> Session:
        assert sandbox is not None, "a budget needs a sandbox"
        return await sandbox.session(self._settings.limits)

    async def _tool_turn(self, session: Session, step: Step) -> None:
        """Run the code that the model called, and add its output as the tool's block."""
        output = step.error
        if step.code is not None:
            result = await session.execute(step.code)
            output = result.output
            self._cost.code_seconds += result.duration_s
            self._ran.append(step.code)
        self._cost.code_calls += 1
        output, remaining = cut_output(output, self._settings.output_chars), self._budget - self._cost.code_calls
        self._outputs.append(output)
        shown = self._format.output(output, remaining)
        ids = tuple(self._tokenizer.encode_text(shown))
        recorded = output_block(output) + notice_block(remaining)
        self._spans.append(Span(Author.TOOL, recorded, ids if self._format.keeps_ids else None))
        self._ids.extend(ids)
        self._cost.tool_tokens += len(ids)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _transcript(self, *, finished: bool) -> Transcript:
        """The transcript with its one ``<think>``. A chat server has a template of its own, and perhaps a parser that
        takes the thinking out: there only a text without the tag, of a model whose template writes it, gets the
        template's."""
        fingerprint = self._tokenizer.fingerprint if self._format.keeps_ids else None
        return self._opened(Transcript(self._start.messages, tuple(self._spans), finished, fingerprint))

    def _opened(self, transcript: Transcript) -> Transcript:
        opening, renders = self._opening, self._engine.capabilities.conversations
        if renders and (THINK_START in transcript.text or THINK_END in opening):
            opening = ""
        if opening:
            return replace(transcript, spans=(Span(Author.TEMPLATE, opening), *transcript.spans))
        return transcript.with_opening() if renders else transcript


def ids_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """Return ids that decode to ``text``, which begins like the text of ``ids``: as many of those as there are whole in
    it, so that prefix caches hold them, and behind them the text's own."""

    def decoded(some: Sequence[int]) -> str:
        """Return the text of ids. Some tokenizers leave out the space in front of the first word."""
        part = tokenizer.decode(some)
        return f" {part}" if not text.startswith(part) and text.startswith(f" {part}") else part

    low, high = 0, len(ids)
    while low < high:  # the most ids that are no longer than the text
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(decoded(ids[:middle])) <= len(text) else (low, middle - 1)
    best: list[int] = []
    for end in range(low, max(-1, low - _TRIES), -1):
        begin = decoded(ids[:end]) if end else ""
        if text.startswith(begin):
            rest = text[len(begin) :]
            cut = [*ids[:end], *(tokenizer.encode_parts((("", False), (rest, False))) if rest else ())]
            if decoded(cut) == text:
                return cut
            best = best or cut  # a tokenizer that puts a space in front of a word has no such ids
    return best or tokenizer.encode_text(text)
