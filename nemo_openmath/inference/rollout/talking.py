"""The TIR loop with a chat server, which takes turns and no token ids.

    user        Solve ...
    assistant   (thinking) (content) call of python     -> sandbox
    tool        the output                              <- of code in the text: a turn of the user
    assistant   (thinking) the answer

The conversation is what the server is sent. The record is one turn in tags: all that the model thought and wrote before
its answer is one thought, with the code and its output inside, and the answer stands behind it. A model that does not
think has a turn without tags of thinking. There are no ids: those of the server are not told, and whoever trains on the
text encodes it again.

Where the code stands in the text (``tags``, ``fences``) and the server can go on with an open turn, it is stopped where
code may end, as in ``loop.py``; tags then go on behind their output in the very turn. Any other server writes its turn
to the end, and what stands behind its first program is cut away: it knows no output yet.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.chat.fences import spells_a_tag
from nemo_openmath.chat.transcript import OPENING
from nemo_openmath.core.engine import (
    Completion,
    ContextOverflow,
    Conversation,
    EngineError,
    Finish,
    InvalidRequest,
    Request,
    Sampling,
    Turn,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.sandbox import Sandbox, Session
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.inference.asking import conversation_of
from nemo_openmath.inference.rollout.formats import FORMATS, IDLE_STOPS, Step, as_tags, cut_output
from nemo_openmath.inference.rollout.outcome import Cost, Outcome, tail_repeats
from nemo_openmath.inference.rollout.start import Start
from nemo_openmath.inference.rollout.tool_calls import begun, read_call

log = logging.getLogger(__name__)
_refusals_said: set[str] = set()
# turns that are not over, as a template has to write them so that a server can go on with them
_OPEN_TURNS = ("It is\n```text\n", f"{THINK_START}\nIt is\n", f"{THINK_START}\nIt is\n{THINK_END}\n\n42\n")


@dataclass(frozen=True, slots=True)
class _Written:
    """What the model wrote since the last output."""

    thinking: str
    content: str
    code: str = ""
    """The call that ends it, in tags."""


class Talk(ABC):
    """One solution of a chat server as far as it is made. A subclass says how the model calls code."""

    _tools = False
    _stops: tuple[str, ...] = ()

    def __init__(self, start: Start):
        self._start, self._engine, self._tokenizer = start, start.engine, start.tokenizer
        self._settings, self._budget = start.settings, start.budget
        prompt = conversation_of(start.tokenizer, start.messages)
        self._turns = [Turn("user", prompt)] if isinstance(prompt, str) else list(prompt.turns)
        self._format = FORMATS[start.settings.tool_format]
        opening = start.tokenizer.prompt(start.messages).opening
        self._opened = bool(opening) and THINK_END not in opening  # the template begins the thought
        self._parted = False  # the server has shown that it keeps the thinking apart
        self._open = ""  # the assistant's turn that goes on
        self._programs: list[str] = []  # that ran, and what they printed
        self._outputs: list[str] = []
        self._record: list[_Written | str] = []  # the model's words, and the tool's blocks
        self._requests = self._idle = 0
        self._last = ""
        self._cost = Cost()
        self._session: Session | None = None

    async def run(self, sandbox: Sandbox | None) -> Outcome:
        """Let model and tool take turns, and return the solution. Raises EngineError where nothing was generated, or
        where the engine fails, and SandboxError."""
        try:
            while (finish := await self._turn(sandbox)) is None:
                if self._tokens_so_far >= self._settings.max_tokens:
                    finish = Finish.LENGTH
                    break
        finally:
            if self._session is not None:
                await self._session.close()
        times = self._settings.repetition
        if finish is Finish.LENGTH and times and tail_repeats(self._tokenizer.encode_text(self._last), times):
            finish = Finish.REPETITION
        transcript = Transcript(self._start.messages, _spans(self._record), finish is Finish.STOP)
        return Outcome(transcript, finish, self._cost)

    def so_far(self, text: str, tokens: int) -> Outcome:
        """Return the solution as it stands, with what the server has sent of its next text."""
        words = self._unrecorded(text)
        record = [*self._record, words] if words.thinking or words.content else self._record
        cost = replace(self._cost, completion_tokens=self._cost.completion_tokens + tokens)
        return Outcome(Transcript(self._start.messages, _spans(record), finished=False), Finish.TIME, cost)

    def _unrecorded(self, text: str) -> _Written:
        return self._words(text)

    @abstractmethod
    async def _turn(self, sandbox: Sandbox | None) -> Finish | None:
        """Let the model write and run what it calls. Return why the solution ends with it, or None."""

    @property
    def _tokens_so_far(self) -> int:
        """Tokens behind the prompt, as far as the server counts them."""
        return self._cost.completion_tokens + self._cost.tool_tokens

    async def _complete(self) -> Completion | Finish:
        """Ask the server once. A solution that it takes no further, because its context is full or it refuses what
        came of it, ends there: what there is of it is kept."""
        if (room := self._settings.max_tokens - self._tokens_so_far) <= 0:
            return Finish.LENGTH
        try:
            completion = await self._start.complete(self._request(room))
        except InvalidRequest as error:
            if self._requests == 0:
                raise
            if isinstance(error, ContextOverflow):
                return Finish.LENGTH
            if self._engine.model not in _refusals_said:  # once: it may be the case of every solution
                _refusals_said.add(self._engine.model)
                log.warning("%s refuses to go on with a solution, which ends there: %s", self._engine.model, error)
            return Finish.CUT
        usage, cost = completion.usage, self._cost
        if self._requests == 0:
            cost.prompt_tokens = usage.prompt_tokens
        self._requests += 1
        cost.completion_tokens += usage.completion_tokens
        cost.cached_tokens += usage.cached_tokens
        cost.computed_tokens += usage.prompt_tokens - usage.cached_tokens
        if completion.finish is Finish.CANCELLED:  # the engine was closed: what there is is no solution
            raise EngineError("the engine ended the request before it was finished", retryable=True)
        if completion.finish is Finish.STOP and completion.stop is None:  # some servers write the end-of-text token
            completion = replace(completion, text=self._tokenizer.strip_end(completion.text)[0])
        self._last = completion.text
        self._parted = self._parted or bool(completion.thinking)
        return completion

    def _request(self, max_tokens: int) -> Request:
        settings = self._settings
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            seed=derive_seed(self._start.seed, self._requests),
            stop=self._stops if self._idle < IDLE_STOPS else (),
        )
        turns = [*self._turns, Turn("assistant", self._open)] if self._open else self._turns
        return Request(Conversation(tuple(turns), tools=self._tools), sampling, conversation=self._start.key)

    def _words(self, text: str, code: str = "", *, before: str = "") -> _Written:
        """Return the model's words with their thinking apart. ``before``: what stands before them in their turn."""
        inside = self._opened and not self._parted if THINK_START not in before + text else THINK_START in before
        inside = inside and THINK_END not in before
        thinking, ended, content = text.rpartition(THINK_END)
        if not ended and (inside or text.lstrip().startswith(THINK_START)):
            thinking, content = text, ""
        thinking = thinking.lstrip().removeprefix(THINK_START) if THINK_START in thinking else thinking
        return _Written(thinking.strip("\n"), content, code)

    async def _run(self, sandbox: Sandbox | None, code: str | None, error: str) -> str:
        """Run a program, record its output, and return what the model is shown of it."""
        output = error
        if code is not None:
            if self._session is None:
                assert sandbox is not None, "a budget needs a sandbox"
                self._session = await sandbox.session(self._settings.limits)
            result = await self._session.execute(code)
            output = result.output
            self._cost.code_seconds += result.duration_s
        self._cost.code_calls += 1
        output, remaining = cut_output(output, self._settings.output_chars), self._budget - self._cost.code_calls
        while (sign := self._tokenizer.control_in(output)) is not None:  # a chat server would take it for a token
            output = output.replace(sign, f"{sign[0]} {sign[1:]}")
        self._programs += [] if code is None else [code]
        self._outputs.append(output)
        self._record.append(output_block(output) + notice_block(remaining))
        shown = self._format.output(output, remaining)
        self._cost.tool_tokens += len(self._tokenizer.encode_text(shown))
        return shown


class ToolTalk(Talk):
    """The model calls a tool of the server's protocol."""

    _tools = True

    async def _turn(self, sandbox: Sandbox | None) -> Finish | None:
        completion = await self._complete()
        if isinstance(completion, Finish):
            return completion
        words, calls = self._words(completion.text), completion.calls
        if any(spells_a_tag(text) >= 0 for text in (words.thinking, words.content)):
            self._record.append(_Written(*map(_before_tag, (words.thinking, words.content))))
            return Finish.CUT  # in the record it could not be told from a call
        if completion.finish is not Finish.STOP or not calls:
            self._record.append(replace(words, code=f"{CODE_START}\n{begun(calls[0])}" if calls else ""))
            return _finish(completion)
        read = [read_call(call) for call in calls]
        given_back = tuple(call.given_back for call in read)
        self._turns.append(Turn("assistant", completion.content.strip(), completion.thinking, given_back))
        for call in read:
            if CODE_END in call.text:
                self._record.append(words)
                return Finish.CUT
            self._record.append(replace(words, code=as_tags(call.text)))
            words = _Written("", "")  # of the calls behind the first
            if self._cost.code_calls == self._budget:
                return Finish.BUDGET
            shown = await self._run(sandbox, call.code, call.error)
            self._turns.append(Turn("tool", shown, calls=(call.given_back,)))
        return None


class TextTalk(Talk):
    """The model writes its code into its text."""

    def __init__(self, start: Start):
        super().__init__(start)
        continues = start.engine.capabilities.continues
        self._continues = continues and _writes_open_turns(start.tokenizer, start.messages)
        self._stops = self._format.stops if self._continues else ()
        self._since = 0  # where in the open turn the words since the last output begin

    async def _turn(self, sandbox: Sandbox | None) -> Finish | None:
        while True:
            completion = await self._complete()
            before, text = self._open[: self._since], self._open[self._since :]
            if isinstance(completion, Finish):
                self._record.append(self._words(text, before=before))
                return completion
            new = completion.text
            if completion.thinking and THINK_START in self._open:  # a parser begins the thought once more
                new = new.lstrip().removeprefix(OPENING)
            text += new
            stopped = completion.finish is Finish.STOP
            ended = stopped and completion.stop is None
            step = self._read(text, ended=ended)
            if step is None and stopped and not ended:
                self._open, self._idle = before + text, self._idle + 1  # a fence that is no call
                continue
            self._cost.invented_outputs += step is not None and step.invented
            if step is None or not stopped or step.finish is not None:
                recorded = text if step is None else step.recorded if stopped else step.shown
                self._record.append(self._words(recorded, before=before))
                return _finish(completion) if step is None or not stopped else step.finish
            self._record.append(self._words(*_code_apart(step), before=before))
            if self._cost.code_calls == self._budget:
                return Finish.BUDGET
            self._show(before + step.shown, await self._run(sandbox, step.code, step.error))
            return None

    def _unrecorded(self, text: str) -> _Written:
        return self._words(self._open[self._since :] + text, before=self._open[: self._since])

    def _read(self, text: str, *, ended: bool) -> Step | None:
        if self._settings.tool_format == "tags" and CODE_END in text:  # what is behind it knows no output
            text = text[: text.index(CODE_END) + len(CODE_END)]
        return self._format.read(text, ended=ended, ran=self._programs, outputs=self._outputs)

    def _show(self, turn: str, output: str) -> None:
        """Show the model the output behind its turn so far: in the same turn, or in one of the user."""
        if self._continues and self._settings.tool_format == "tags":
            self._open = turn + output
            self._since = len(self._open)
            return
        words = self._words(turn)
        parted = self._parted and words.thinking
        self._turns.append(Turn("assistant", *((words.content.lstrip(), words.thinking) if parted else (turn,))))
        self._turns.append(Turn("user", output.lstrip("\n")))
        self._open, self._since = "", 0


async def talk(start: Start, sandbox: Sandbox | None) -> Outcome:
    """Generate one solution with code by a chat server; see ``loop.roll_out``."""
    kind = ToolTalk if start.settings.tool_format == "tool_calls" else TextTalk
    conversation = kind(start)
    if start.watch is not None:
        start.watch.so_far = conversation.so_far
    return await conversation.run(sandbox)


def _writes_open_turns(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> bool:
    """Tell whether the chat template writes an assistant's turn as it stands, behind what opens it. Some take the
    thinking out, or put an empty one in front, and a server would go on with another text than the model wrote."""
    prompt = tokenizer.prompt(messages)
    head = prompt.text.removesuffix(prompt.opening)
    try:
        for turn in _OPEN_TURNS:
            text = tokenizer.render((*messages, Message("assistant", turn)), add_generation_prompt=False)
            if not text.startswith(head + turn.rstrip("\n")):
                return False
    except UserError:
        return False
    return True


def _spans(record: list[_Written | str]) -> tuple[Span, ...]:
    """Return the assistant's one turn. Where the model thinks, all before its answer is one thought."""
    spans: list[Span] = []
    thinks = any(isinstance(words, _Written) and words.thinking.strip() for words in record)
    for number, words in enumerate(record):
        if isinstance(words, str):
            spans.append(Span(Author.TOOL, words))
            continue
        is_last = number == len(record) - 1 and not words.code
        if thinks and is_last and words.content.strip():
            thought = f"{words.thinking}\n" if words.thinking else ""
            text = f"{thought}{THINK_END}\n\n{words.content.lstrip()}"
        elif words.thinking and words.content.strip():
            text = f"{words.thinking}\n\n{words.content.lstrip()}"
        else:
            text = words.thinking or words.content
        if words.code:
            text += f"{'' if not text or text.endswith(chr(10)) else chr(10)}{words.code}"
        if thinks and number == 0:
            text = OPENING + text.lstrip("\n")
        if text:
            spans.append(Span(Author.MODEL, text))
    return tuple(spans)


def _code_apart(step: Step) -> tuple[str, str]:
    """Return the words of a step and the call that ends them, as the record has both."""
    call = as_tags(step.code or "")
    at = step.recorded.rfind(CODE_START)
    if step.code is not None and step.recorded.endswith(call):
        at = len(step.recorded) - len(call)
    return (step.recorded, "") if at < 0 else (step.recorded[:at], step.recorded[at:])


def _before_tag(text: str) -> str:
    tag = spells_a_tag(text)
    return text if tag < 0 else text[:tag]


def _finish(completion: Completion) -> Finish:
    return completion.finish if completion.finish in (Finish.STOP, Finish.TIME, Finish.CUT) else Finish.LENGTH
