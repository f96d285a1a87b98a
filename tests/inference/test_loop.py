"""The loop with the stand-in teacher (a real engine), the real sandbox, and scripted engines for the odd endings."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from nemo_openmath.chat import Author, ChatTokenizer, Kind, Transcript, encode, load_template
from nemo_openmath.chat.blocks import budget_of, notice_block, output_block
from nemo_openmath.core.engine import (
    Completion,
    ContextOverflow,
    EngineError,
    Finish,
    Request,
)
from nemo_openmath.core.records import Generation
from nemo_openmath.demo import StandInTeacher, TeacherConfig, make_problems
from nemo_openmath.inference.asking import Rejected, ask
from nemo_openmath.inference.rollout import RolloutSettings, roll_out
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.formats import cut_output
from nemo_openmath.inference.rollout.outcome import tail_repeats
from nemo_openmath.inference.rollout.settings import draw_budget
from nemo_openmath.sandbox import channel
from nemo_openmath.sandbox.local import LocalSandbox
from tests.support.engines import ScriptedEngine, in_turn
from tests.support.waiting import until

SETTINGS = RolloutSettings(max_tokens=600, code_seconds=300.0)
PROBLEM = "What is 6 times 7?"
FAULTLESS = TeacherConfig(
    **dict.fromkeys(
        ("no_code", "wrong_code", "broken_code", "ignored_output", "over_budget", "unfinished", "cot_error"), 0.0
    )
)


def script(tokenizer: ChatTokenizer, texts: Sequence[str]) -> ScriptedEngine:
    """An engine that says given texts in turn; a text that does not end in the tag ends the model's turn."""
    return ScriptedEngine(tokenizer, in_turn(texts))


in_one_loop = pytest.mark.asyncio(loop_scope="module")  # that of the sandbox, which takes seconds to start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(spares=1) as opened:
        yield opened


def messages(budget: int) -> tuple:
    return load_template("tir").messages(problem=PROBLEM, total_code_executions=budget)


@in_one_loop
async def test_code_runs_and_the_context_grows_by_the_models_own_ids(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox
) -> None:
    texts = ["<think>Let x.\n<tool_call>\nx = 6 * 7\nprint(x)\n</tool_call>", "<tool_call>\nx + 1\n</tool_call>",
             "So 42.\n</think>The answer is \\boxed{42}."]  # fmt: skip
    engine = script(tokenizer, texts)
    out = await roll_out(engine, tokenizer, messages(3), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=3)
    assert (out.finish, out.cost.code_calls) == ("stop", 2)
    expected = (
        texts[0] + output_block("42") + notice_block(2) + texts[1] + output_block("43") + notice_block(1) + texts[2]
    )
    assert out.transcript.text == expected
    assert budget_of(expected) == 3
    # The ids of the last request are the prompt and then, piece by piece, what was generated and what was inserted.
    grown = [*tokenizer.prompt_ids(out.transcript.messages)]
    for piece in out.transcript.spans[:-1]:
        assert piece.ids is not None
        grown += piece.ids
    assert list(engine.requests[-1].prompt) == grown
    assert len({r.conversation for r in engine.requests}) == 1
    assert len({r.sampling.seed for r in engine.requests}) == 3, "each turn draws with a seed of its own"
    # What is trained on is what the model generated, its end of turn included.
    encoded = encode(out.transcript, tokenizer)
    trained = [i for i, t in zip(encoded.ids, encoded.loss_mask, strict=True) if t]
    generated = [i for p in out.transcript.spans if p.author is Author.MODEL for i in p.ids or ()]
    assert trained == [*generated, tokenizer.end_of_turn]
    assert out.cost.completion_tokens + out.cost.tool_tokens == len(encoded.ids) - out.cost.prompt_tokens
    assert Transcript.from_text(out.transcript.messages, expected).segments() == out.transcript.segments()


@pytest.mark.parametrize(
    ("texts", "changes", "finish", "calls"),
    [
        (["<tool_call>\n1\n</tool_call>"] * 3, {}, "budget", 2),
        (["<tool_call>\n1\n</tool_call>"] * 3, {"max_tokens": 16}, "length", 1),
        (["word " * 500], {"max_tokens": 64, "repetition": 8}, "repetition", 0),
        (["word " * 500], {"max_tokens": 64, "repetition": 0}, "length", 0),
        (["<tool_call>\nprint(1)", "never"], {}, "stop", 0),  # an unclosed block is not run
        (["no tag</tool_call>", "done"], {}, "stop", 1),  # a closing tag alone costs a call and says why
    ],
)
@in_one_loop
async def test_odd_endings(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox, texts: list[str], changes: dict, finish: str, calls: int
) -> None:
    settings = replace(SETTINGS, **changes)
    engine = script(tokenizer, texts)
    out = await roll_out(engine, tokenizer, messages(2), settings, seed=1, key="k", sandbox=sandbox, budget=2)
    assert (out.finish, out.cost.code_calls) == (finish, calls)
    assert out.cost.completion_tokens + out.cost.tool_tokens <= settings.max_tokens + 100, (
        "one block of output at most beyond"
    )
    assert out.transcript.finished == (finish == "stop")


def test_a_repeated_tail_is_found_at_every_period() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        times = draw.randint(2, 5)
        stretch = [draw.randrange(3) for _ in range(draw.randint(1, 90))]
        ids = [draw.randrange(2) for _ in range(draw.randrange(40))] + stretch * draw.randrange(7)
        ids = ids[: len(ids) - draw.randrange(2)]
        periods = range(1, len(ids) // times + 1)
        found = any(ids[-p * times :] == ids[-p:] * times for p in periods)
        assert tail_repeats(ids, times) == found


@in_one_loop
async def test_a_full_context_is_a_length_and_nothing_is_lost(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """It may fill up in the model's turn, or by the runner's block; a prompt without room is an error of its own."""
    prompt = len(tokenizer.prompt_ids(messages(2)))
    code = "<tool_call>\nprint('y' * 500)\n</tool_call>"
    for texts, room in (
        ([code, "never asked"], len(tokenizer.encode(code)) + 3),
        ([" ".join(map(str, range(500)))], 40),
    ):
        engine = script(tokenizer, texts)
        engine.capabilities = replace(engine.capabilities, max_context=prompt + room)
        out = await roll_out(engine, tokenizer, messages(2), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=2)
        assert (out.finish, out.transcript.finished, len(engine.requests)) == ("length", False, 1)
        assert engine.requests[0].sampling.max_tokens == room
        assert out.transcript.text.startswith(texts[0][:20])
        assert ("y" * 500 in out.transcript.text) == (out.cost.code_calls == 1) == (texts[0] == code)
    engine.capabilities = replace(engine.capabilities, max_context=prompt)
    with pytest.raises(ContextOverflow):
        await roll_out(engine, tokenizer, messages(2), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=2)


@in_one_loop
async def test_what_a_server_leaves_out_or_breaks_off(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """No end-of-turn token among the ids; a turn of no length after an output; an engine that was closed."""
    code, done = "<tool_call>\nprint(6 * 7)\n</tool_call>", "It is 42"
    for last in (done, ""):
        engine = script(tokenizer, [code, last])
        complete = engine.complete

        async def bare(request: Request, complete=complete) -> Completion:
            made = await complete(request)
            ids = made.token_ids if made.stop else made.token_ids[:-1]
            return replace(made, token_ids=ids, usage=replace(made.usage, completion_tokens=len(ids)))

        engine.complete = bare  # type: ignore[method-assign]
        out = await roll_out(engine, tokenizer, messages(2), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=2)
        assert (out.finish, out.cost.code_calls) == ("stop", 1)
        ids = [i for p in out.transcript.spans for i in p.ids or ()]
        assert tokenizer.decode(ids) == out.transcript.text == code + output_block("42") + notice_block(1) + last
        assert out.cost.completion_tokens + out.cost.tool_tokens == len(ids)

    async def closed(request: Request) -> Completion:
        return Completion("It", (5,), Finish.CANCELLED)

    engine.complete = closed  # type: ignore[method-assign]
    with pytest.raises(EngineError) as error:
        await roll_out(engine, tokenizer, messages(2), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=2)
    assert error.value.retryable, "it is no solution that ended at its length"


@in_one_loop
async def test_output_is_cut_and_errors_are_shown(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    engine = script(
        tokenizer,
        ["<tool_call>\nprint('x' * 5000)\n</tool_call>", "<tool_call>\n1 / 0\n</tool_call>", "end"],
    )
    settings = replace(SETTINGS, output_chars=200, max_tokens=3000)
    out = await roll_out(engine, tokenizer, messages(4), settings, seed=1, key="k", sandbox=sandbox, budget=4)
    first, second = (s.body for s in out.transcript.segments() if s.kind is Kind.OUTPUT)
    assert first == cut_output("x" * 5000, 200)
    assert "(output cut)" in first
    assert "ZeroDivisionError" in second


@in_one_loop
async def test_cancelling_releases_engine_and_session(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    engine = script(tokenizer, ["<tool_call>\nprint('begun')\nimport time; time.sleep(600)\n</tool_call>"])
    task = asyncio.create_task(
        roll_out(engine, tokenizer, messages(1), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=1)
    )

    def printed() -> bool:
        sessions = [session for session in sandbox._sessions if session._busy and session._process]
        return any(channel.HEADER.unpack_from(session._process._memory)[0] for session in sessions)

    await until(lambda: task.done() or printed())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 120)
    assert not sandbox._sessions
    again = script(tokenizer, ["<tool_call>\n1 + 1\n</tool_call>", "end"])
    out = await roll_out(again, tokenizer, messages(1), SETTINGS, seed=1, key="k", sandbox=sandbox, budget=1)
    assert "2\n" in out.transcript.text


@in_one_loop
async def test_a_faultless_teacher_solves_the_world(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """World, teacher, loop, sandbox and extraction agree: where the teacher errs never, every answer is right."""
    teacher = StandInTeacher(tokenizer, FAULTLESS)
    template = load_template("tir")
    items = make_problems(3, 40, pool="train")
    for n, item in enumerate(items):
        budget = draw_budget(SETTINGS, n)
        turns = template.messages(problem=item.statement, total_code_executions=budget)
        out = await roll_out(teacher, tokenizer, turns, SETTINGS, seed=n, key=str(n), sandbox=sandbox, budget=budget)
        generation = Generation(
            id="g",
            problem_id="p",
            mode="tir",
            model="m",
            sample=0,
            transcript=out.transcript.to_json(),
            finish=out.finish,
        )
        assert answer_of(generation) == item.answer, out.transcript.text


@in_one_loop
async def test_answers_that_do_not_parse_are_asked_for_again(tokenizer: ChatTokenizer) -> None:
    def yes(text: str) -> bool | Rejected:
        return True if text == "yes" else Rejected(f"{text} is not yes")

    turns = load_template("classify-proof").messages(problem="p")
    engine = script(tokenizer, ["what", "yes"])
    assert await ask(engine, tokenizer, turns, yes, seed=1) == (True, "yes")
    assert engine.requests[0].sampling.temperature == 0.0
    assert engine.requests[1].sampling.temperature > 0.0
    assert await ask(script(tokenizer, ["a", "b", "c"]), tokenizer, turns, yes, seed=1) == (
        Rejected("c is not yes"),
        "c",
    )
