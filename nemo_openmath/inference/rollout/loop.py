"""The CoT and TIR loops.

    prompt ids -> engine -> model ids (up to </tool_call>) -> sandbox -> runner's block -> engine -> ... -> end of turn

The context only ever grows by the ids that the model made and the ids of the runner's block, so an engine's prefix
cache holds all of it, and the ids that were generated are the ids that can be trained on.

A ``<think>`` that the chat template writes at the end of the prompt is the transcript's first piece, by the template.
What a program prints is encoded as text through and through: a control token in it is no token.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated

from nemo_openmath.chat import Author, Message, Piece, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.bounds import (
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)
from nemo_openmath.core.engine import (
    ContextOverflow,
    Engine,
    EngineError,
    Finish,
    Request,
    Sampling,
)
from nemo_openmath.core.errors import Refused, UserError
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.sandbox import Limits, Sandbox, Session
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.inference.asking import prompt_for


@dataclass(frozen=True)
class RolloutSettings:
    """How a solution is sampled. Paper: section 2.3 (data), 3.4 (budgets), 5.2 (evaluation), 6 (competition).

    ``max_tokens`` counts everything after the prompt: what the model writes and what the sandbox's output adds.
    ``budgets``: smallest and largest number of code executions; drawn per sample and stated in the prompt.
    The context of the engine ends a solution as well ("length"), never loses it.
    ``output_chars``: characters of a program's output that the model is shown.
    ``repetition``: a solution that ran into its limit while its tail repeated this many times is reported as
    "repetition" instead of "length"; 0: never. Nothing is ended for it before the limit: a row of zeros in a program
    repeats as often.
    """

    temperature: NonNegativeFloat = 0.7
    top_p: PositiveShare = 0.95
    top_k: NonNegativeInt = 0
    min_p: Share = 0.0
    max_tokens: PositiveInt = 16384
    budgets: Annotated[tuple[PositiveInt, ...], Length(2, 2)] = (1, 8)
    code_seconds: PositiveFloat = 10.0
    code_memory_mb: PositiveInt = 1024
    output_chars: NonNegativeInt = 1000
    repetition: NonNegativeInt = 8

    def __post_init__(self) -> None:
        if len(self.budgets) != 2 or not 0 < self.budgets[0] <= self.budgets[1]:
            raise ValueError("budgets: give the smallest and the largest number of code executions, such as [1, 8]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One solution and what it took."""

    transcript: Transcript
    finish: Finish
    prompt_tokens: int = 0
    completion_tokens: int = 0
    runner_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens, over all turns, that the engine did not have to compute
    computed_tokens: int = 0  # and those that it had to
    code_calls: int = 0
    code_seconds: float = 0.0

    @classmethod
    def untried(cls, messages: tuple[Message, ...], tokenizer: Tokenizer, error: Refused) -> Outcome:
        """That of a prompt which is longer than the context, or which the engine refuses."""
        finish = Finish.CONTEXT if isinstance(error, ContextOverflow) else Finish.REFUSED
        return cls(Transcript(messages, tokenizer=tokenizer.fingerprint), finish)

    def plus(self, other: Outcome) -> Outcome:
        """This outcome with the other's costs added."""
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in _COSTS})


_COSTS = tuple(f.name for f in fields(Outcome) if f.default is not MISSING)


@dataclass
class _State:
    ids: list[int]
    text: str | None  # the prompt for an engine that takes no token ids
    pieces: list[Piece] = field(default_factory=list)
    completion: int = 0
    runner: int = 0
    cached: int = 0
    computed: int = 0
    calls: int = 0
    seconds: float = 0.0


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
) -> Outcome:
    """One solution. ``key`` names the conversation for prefix caches; ``budget`` > 0 lets it call code.

    Cancelling releases the engine's request and the sandbox's session. Raises EngineError and SandboxError; whatever
    the model and its code do is an outcome.
    """
    prompt = tokenizer.prompt(messages)
    asked = prompt_for(engine, tokenizer, messages)
    state = _State(tokenizer.encode_parts(prompt.parts), asked if isinstance(asked, str) else None)
    if budget > 0 and state.text is not None:
        raise UserError(
            f"{engine.model} takes no token ids, which solutions with code need",
            remedy="use a server with the completions API (api: completions)",
        )
    prompt_tokens = len(state.ids)
    session: Session | None = None
    try:
        while True:
            room = settings.max_tokens - state.completion - state.runner
            if (limit := engine.capabilities.max_context) is not None and state.text is None:
                room = min(room, limit - len(state.ids))
                if room <= 0 and not state.pieces:
                    raise ContextOverflow(len(state.ids), limit)
                if room <= 0:
                    finish = Finish.LENGTH
                    break
            stop = await _model_turn(engine, tokenizer, settings, state, room, seed, key, tools=budget > 0)
            if stop is not Finish.STOP:
                finish = stop if stop in (Finish.TIME, Finish.CUT) else Finish.LENGTH
                break
            text = state.pieces[-1].text if state.pieces else ""
            if not (budget > 0 and text.endswith(CODE_END)):
                finish = Finish.STOP
                break
            if state.calls == budget:
                finish = Finish.BUDGET
                break
            if session is None:
                assert sandbox is not None, "a budget needs a sandbox"
                session = await sandbox.session(Limits(wall_s=settings.code_seconds, memory_mb=settings.code_memory_mb))
            await _runner_turn(session, tokenizer, settings, state, budget)
            if state.completion + state.runner >= settings.max_tokens:
                finish = Finish.LENGTH
                break
    finally:
        if session is not None:
            await session.close()
    if finish is Finish.LENGTH and settings.repetition and _repeats(state.ids[prompt_tokens:], settings.repetition):
        finish = Finish.REPETITION
    return Outcome(
        transcript=_transcript(engine, tokenizer, messages, state.pieces, prompt.opening, ended=finish is Finish.STOP),
        finish=finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=state.completion,
        runner_tokens=state.runner,
        cached_tokens=state.cached,
        computed_tokens=state.computed,
        code_calls=state.calls,
        code_seconds=state.seconds,
    )


def _transcript(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    pieces: list[Piece],
    opening: str,
    *,
    ended: bool,
) -> Transcript:
    """The transcript with its one ``<think>``. A chat server has a template of its own, and perhaps a parser that takes
    the thinking out: there only a text without the tag, of a model whose template writes it, gets the template's."""
    made = Transcript(messages, tuple(pieces), ended, tokenizer.fingerprint)
    if engine.capabilities.renders and (THINK_START in made.text or THINK_END in opening):
        opening = ""
    if opening:
        return replace(made, pieces=(Piece(Author.TEMPLATE, opening), *made.pieces))
    return made.with_opening() if engine.capabilities.renders else made


async def _model_turn(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: RolloutSettings,
    state: _State,
    room: int,
    seed: int,
    key: str,
    *,
    tools: bool,
) -> Finish:
    sampling = Sampling(
        max_tokens=room,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        seed=derive_seed(seed, state.calls),
        stop=(CODE_END,) if tools else (),
    )
    asked = tuple(state.ids) if state.text is None else state.text
    completion = await engine.complete(Request(asked, sampling, conversation=key if tools else None))
    ids = completion.token_ids
    state.completion += len(ids) or completion.usage.completion_tokens
    state.cached += completion.usage.cached_tokens
    state.computed += len(state.ids) - completion.usage.cached_tokens
    if completion.finish is Finish.CANCELLED:  # the engine was closed: what there is is no solution
        raise EngineError("the engine ended the request before it was finished", retryable=True)
    # without the end-of-turn token: Transcript.ended says it; some servers do not return it
    text = completion.text
    if completion.finish is Finish.STOP and completion.stop is None and ids:
        if ids[-1] not in tokenizer.end_ids and tokenizer.decode(ids) != text:
            ids = ids[:-1]  # a token that ends a text for this model alone
        while ids and ids[-1] in tokenizer.end_ids:
            text, ids = text.removesuffix(tokenizer.decode(ids[-1:])), ids[:-1]
    if state.text is not None and completion.finish is Finish.STOP:  # some servers write the end-of-text token
        text, _ = tokenizer.strip_end(text)
    if text:
        state.pieces.append(Piece(Author.MODEL, text, ids if state.text is None else None))
    state.ids.extend(ids)
    return completion.finish


async def _runner_turn(
    session: Session, tokenizer: Tokenizer, settings: RolloutSettings, state: _State, budget: int
) -> None:
    text = state.pieces[-1].text
    start = text.rfind(CODE_START)
    code = text[start + len(CODE_START) : -len(CODE_END)].strip("\n") if start >= 0 else ""
    if start >= 0:
        result = await session.execute(code)
        output, state.seconds = result.output, state.seconds + result.duration_s
    else:
        output = f"SyntaxError: {CODE_END} without {CODE_START}"
    state.calls += 1
    block = output_block(cut_output(output, settings.output_chars)) + notice_block(budget - state.calls)
    ids = tuple(tokenizer.encode_text(block))
    state.pieces.append(Piece(Author.RUNNER, block, ids))
    state.ids.extend(ids)
    state.runner += len(ids)


def cut_output(output: str, chars: int) -> str:
    """At most ``chars`` characters of a program's output, with a visible note where it was cut."""
    return output if len(output) <= chars else output[:chars] + "... (output cut)\n"


def draw_budget(settings: RolloutSettings, seed: int) -> int:
    """Number of code executions of one sample, uniform over the range (paper section 3.4)."""
    return random.Random(seed).randint(*settings.budgets)


def _repeats(ids: list[int], times: int) -> bool:
    """Whether the ids end in one stretch repeated ``times`` times: looked for at every period, nearly always without
    more than a look at the last few ids."""
    data = array("q", ids).tobytes()
    for shift in range(8, len(data) // times + 1, 8):  # bytes of a period
        rest = shift * (times - 1)  # what must equal what stands a period before it
        few = min(rest, 512)
        if data[-few:] == data[-few - shift : -shift] and data[-rest:] == data[-rest - shift : -shift]:
            return True
    return False
