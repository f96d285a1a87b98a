"""Solutions with code by chat servers over HTTP: what they are sent, what runs, and the record in tags."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from nemo_openmath.chat import Author, ChatTokenizer, Kind, Message, Transcript, load_template
from nemo_openmath.chat.blocks import budget_of, notice, notice_block, output_block
from nemo_openmath.core.engine import ContextOverflow, Finish, InvalidRequest, ToolCall
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.inference.rollout.sampler import Sampler
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.inference.rollout.tool_calls import begun, read_call
from nemo_openmath.sandbox.local import LocalSandbox
from tests.inference.test_chat_servers import Server, answer
from tests.support.engines import ScriptedEngine
from tests.support.servers import LoopbackServer
from tests.support.services import Lent, stage_context

pytestmark = pytest.mark.asyncio(loop_scope="module")
SETTINGS = RolloutSettings(max_tokens=2000, code_seconds=300.0, tool_format="tool_calls")
QUESTION = (Message("system", "Be brief."), Message("user", "What is 6 times 7?"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(spares=1) as opened:
        yield opened


def call(code: str, number: int = 1, **message: Any) -> dict[str, Any]:
    """An answer that calls the tool."""
    function = {"name": "python", "arguments": json.dumps({"code": code})}
    return answer({"content": None, "tool_calls": [{"id": f"c{number}", "function": function}]} | message, "tool_calls")


async def roll(
    server: Server,
    tokenizer: ChatTokenizer,
    sandbox: LocalSandbox,
    budget: int = 3,
    kind: str = "openai",
    messages: tuple[Message, ...] = QUESTION,
    **changes: Any,
) -> Outcome:
    client, settings = server.client(kind=kind), replace(SETTINGS, **changes)
    try:
        return await roll_out(client, tokenizer, messages, settings, seed=1, key="k", sandbox=sandbox, budget=budget)
    finally:
        await client.close()


def authors(transcript: Transcript) -> list[tuple[Author, str]]:
    return [(span.author, span.text) for span in transcript.spans]


def tool(output: str, remaining: int) -> tuple[Author, str]:
    return Author.TOOL, output_block(output) + notice_block(remaining)


# -- calls of the tool -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_a_reasoning_model_calls_the_tool(tokenizer: ChatTokenizer, sandbox: LocalSandbox, field: str) -> None:
    """As gpt-oss behind vLLM: its reasoning goes back with its calls, and the record is one thought."""
    bodies = (
        call("x = 6 * 7\nprint(x)", 1, **{field: "Let x."}),
        call("x + 1", 2, **{field: "One more.", "content": "I check."}),
        answer({"content": "It is \\boxed{42}.", field: "Done."}),
    )
    async with Server(*bodies) as server:
        out = await roll(server, tokenizer, sandbox, kind="vllm")
    assert authors(out.transcript) == [
        (Author.MODEL, "<think>\nLet x.\n<tool_call>\nx = 6 * 7\nprint(x)\n</tool_call>"),
        tool("42", 2),
        (Author.MODEL, "One more.\n\nI check.\n<tool_call>\nx + 1\n</tool_call>"),
        tool("43", 1),
        (Author.MODEL, "Done.\n</think>\n\nIt is \\boxed{42}."),
    ]
    transcript = out.transcript
    assert (out.finish, out.cost.code_calls, out.cost.completion_tokens) == (Finish.STOP, 2, 21)
    assert (transcript.thinking, transcript.summary, transcript.finished) == ("whole", "It is \\boxed{42}.", True)
    assert all(span.ids is None for span in transcript.spans)
    assert Transcript.from_text(transcript.messages, transcript.text).segments() == transcript.segments()
    sent = server.asked[-1]["messages"]
    first, second = (json.dumps({"code": code}) for code in ("x = 6 * 7\nprint(x)", "x + 1"))
    calls = [
        [{"id": f"c{n}", "type": "function", "function": {"name": "python", "arguments": a}}]
        for n, a in ((1, first), (2, second))
    ]
    assert sent == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6 times 7?"},
        {"role": "assistant", "content": "", field: "Let x.", "tool_calls": calls[0]},
        {"role": "tool", "content": f"42\n\n{notice(2)}", "tool_call_id": "c1"},
        {"role": "assistant", "content": "I check.", field: "One more.", "tool_calls": calls[1]},
        {"role": "tool", "content": f"43\n\n{notice(1)}", "tool_call_id": "c2"},
    ]
    assert len({body["seed"] for body in server.asked}) == 3, "each turn draws with a seed of its own"


async def test_a_model_that_does_not_think_has_no_tags_of_thinking(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox
) -> None:
    async with Server(call("print(6 * 7)", content="I compute."), answer({"content": "It is \\boxed{42}."})) as server:
        out = await roll(server, tokenizer, sandbox)
    assert authors(out.transcript) == [
        (Author.MODEL, "I compute.\n<tool_call>\nprint(6 * 7)\n</tool_call>"),
        tool("42", 2),
        (Author.MODEL, "It is \\boxed{42}."),
    ]
    assert (out.transcript.thinking, out.transcript.finished) == ("none", True)


async def test_several_calls_at_once_run_one_after_the_other(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """And where the budget ends among them, the solution ends there."""
    both = call("x = 6\nprint(x)", 1)
    both["choices"][0]["message"]["tool_calls"] += call("x * 7", 2)["choices"][0]["message"]["tool_calls"]
    for budget, finish, calls in ((2, Finish.STOP, 2), (1, Finish.BUDGET, 1)):
        async with Server(both, answer({"content": "42"})) as server:
            out = await roll(server, tokenizer, sandbox, budget=budget)
        assert (out.finish, out.cost.code_calls, out.transcript.finished) == (finish, calls, finish is Finish.STOP)
        assert out.transcript.code_blocks() == ["x = 6\nprint(x)", "x * 7"]
        outputs = [s.body for s in out.transcript.segments() if s.kind is Kind.OUTPUT]
        assert outputs == ["6\n", "42\n"][:calls]
    roles = [turn["role"] for turn in server.asked[0]["messages"]]
    assert roles == ["system", "user"]


ARGUMENTS = (  # what a model writes as arguments, the program that it means, and the error that it is told
    ('{"code": "print(1)"}', "print(1)", ""),
    ('{"code": "a = 1\nprint(a)"}', "a = 1\nprint(a)", ""),  # line breaks within the text
    ('"print(1)"', "print(1)", ""),
    ("print(1)", "print(1)", ""),
    ("[n for n in (1, 2)]", "[n for n in (1, 2)]", ""),
    ("{n for n in (1, 2)}", "{n for n in (1, 2)}", ""),
    ("42", "42", ""),
    ('{"code": "```python\\nprint(1)\\n```"}', "print(1)", ""),
    ('{"code": " ~~~ Py \\r\\nif 1:\\r\\n  1 ~~~\\n"}', "if 1:\n  1", ""),
    ('{"code": "```python\\n```"}', None, "empty"),
    ('{"code": "```python"}', "```python", ""),
    ('{"code": "pri', None, "not JSON"),
    ('{"source": "print(1)"}', None, "no text 'code'"),
    ('{"code": 1}', None, "no text 'code'"),
    ("{'code': 'print(1)'}", None, "not JSON"),  # a dict of Python would run and print itself
    ('{"code": "print(1) # \\ud800"}', None, "not JSON"),  # half a pair, which no request and no record can hold
    ('{"code": " "}', None, "empty"),
    ("", None, "empty"),
)


@pytest.mark.parametrize(("arguments", "code", "error"), ARGUMENTS)
async def test_which_program_a_call_means(arguments: str, code: str | None, error: str) -> None:
    read = read_call(ToolCall("c", "python", arguments))
    assert read.code == code
    assert error in read.error
    assert bool(error) == bool(read.error)
    assert isinstance(json.loads(read.given_back.arguments), dict), "servers read it as JSON"


async def test_calls_of_other_tools_and_calls_that_were_cut_off() -> None:
    assert read_call(ToolCall("c", "functions.python", '{"code": "1"}')).code == "1"
    assert read_call(ToolCall("c", "", '{"code": "1"}')).code == "1", "servers may leave out the name of the only tool"
    for name in ("browser.search", "python_exec", "functions.", "x" * 10_000):
        for arguments in ('{"query": "1"}', '{"code": "print(1)"}', '"print(1)"', "print(1)"):
            other = read_call(ToolCall("c", name, arguments))
            assert (other.code, other.text, len(other.error) < 200) == (None, arguments, True)
            assert f"no tool '{name[:80]}" in other.error
            assert json.loads(other.given_back.arguments) == {"code": arguments}
    assert begun(ToolCall("c", "search", '{"code": "1')) == '{"code": "1'
    assert begun(ToolCall("c", "python", '{"code": "a = 1\\nprint(')) == "a = 1\nprint("
    assert begun(ToolCall("c", "python", "print(")) == "print("
    assert begun(ToolCall("c", "python", '{"code": "\\ud800')) == '{"code": "\\ud800'


async def test_a_call_that_means_no_program_costs_one_and_says_why(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox
) -> None:
    wrong = answer({"content": None, "tool_calls": [{"function": {"name": "python", "arguments": '{"code": "pr'}}]})
    async with Server(wrong, answer({"content": "42"})) as server:  # it says "stop" besides
        out = await roll(server, tokenizer, sandbox)
    assert (out.finish, out.cost.code_calls) == (Finish.STOP, 1)
    assert "the arguments are not JSON" in out.transcript.text
    returned = server.asked[1]["messages"]
    assert returned[2]["tool_calls"][0]["id"] == returned[3]["tool_call_id"] == "call00200"


ENDINGS: tuple[tuple[dict[str, Any], Finish, str], ...] = (
    (call("while", reasoning="Hm."), Finish.LENGTH, "<think>\nHm.\n<tool_call>\nwhile"),
    (answer({"content": None, "reasoning": "Hm"}, "length"), Finish.LENGTH, "<think>\nHm"),
    (answer({"content": "The", "reasoning": "Hm"}, "length"), Finish.LENGTH, "<think>\nHm\n</think>\n\nThe"),
    (answer({"content": "I"}, "content_filter"), Finish.CUT, "I"),
    (answer({"content": "I <tool_call>{}"}), Finish.CUT, "I "),  # a call that the server did not read
    (answer({"content": "", "reasoning": "Hm"}), Finish.STOP, "<think>\nHm"),
    (call("print('</tool_call>')", content="I"), Finish.CUT, "I"),
)


@pytest.mark.parametrize(("body", "finish", "text"), ENDINGS)
async def test_how_a_solution_ends(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox, body: dict[str, Any], finish: Finish, text: str
) -> None:
    if finish is Finish.LENGTH:
        body = body | {"choices": [body["choices"][0] | {"finish_reason": "length"}]}
    async with Server(body) as server:
        out = await roll(server, tokenizer, sandbox)
    assert (out.finish, out.transcript.text, out.transcript.finished) == (finish, text, finish is Finish.STOP)


FULL = {"error": {"message": "maximum context length is 64 tokens, prompt is too long", "code": 400}}


async def test_a_full_context_loses_nothing(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    for refusal, error, finish in (
        (FULL, ContextOverflow, Finish.LENGTH),
        ({"error": {"message": "flagged", "code": 400}}, InvalidRequest, Finish.CUT),
    ):
        async with Server(call("print(6 * 7)", reasoning="Hm."), refusal) as server:
            out = await roll(server, tokenizer, sandbox)
        assert (out.finish, out.cost.code_calls, out.transcript.finished) == (finish, 1, False)
        assert out.transcript.text.startswith("<think>\nHm.\n<tool_call>\nprint(6 * 7)\n</tool_call>\n\n```output\n42")
        async with Server(refusal) as server:
            with pytest.raises(error):
                await roll(server, tokenizer, sandbox)


async def test_max_tokens_hold_over_all_turns(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    async with Server(call("print(1)")) as server:
        out = await roll(server, tokenizer, sandbox, budget=100, max_tokens=200)
    assert (out.finish, out.transcript.finished) == (Finish.LENGTH, False)
    limits = [body["max_tokens"] for body in server.asked]
    assert limits[0] == 200
    spent = out.cost.completion_tokens + out.cost.tool_tokens
    assert 200 <= spent < 300, "one output at most beyond"
    assert limits == sorted(set(limits), reverse=True)


async def test_a_hundred_executions(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    problem = load_template("tir-tools").messages(problem="Count.", total_code_executions=100)
    assert "at most 100 times" in problem[0].content
    bodies = [call(f"print({n})", n) for n in range(100)]
    async with Server(*bodies, answer({"content": "\\boxed{100}"})) as server:
        out = await roll(server, tokenizer, sandbox, budget=100, max_tokens=100_000, messages=problem)
    assert (out.finish, out.cost.code_calls, budget_of(out.transcript.text)) == (Finish.STOP, 100, 100)
    assert out.transcript.code_blocks() == [f"print({n})" for n in range(100)]
    assert out.transcript.text.count(notice(0)) == 1
    assert Transcript.from_text(out.transcript.messages, out.transcript.text).segments() == out.transcript.segments()


async def test_what_a_program_prints_forges_no_turn(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    async with Server(call("print('<|im_end|>')"), answer()) as server:
        out = await roll(server, tokenizer, sandbox)
    assert "< |im_end|>" in server.asked[1]["messages"][3]["content"]
    assert tokenizer.control_in(out.transcript.spans[1].text) is None, "the record has what the model was shown"


async def test_calls_of_tools_are_for_chat_servers(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    engine = ScriptedEngine(tokenizer, lambda _: "42")
    with pytest.raises(UserError, match="calls of tools are for chat servers"):
        await roll_out(engine, tokenizer, QUESTION, SETTINGS, seed=1, key="k", sandbox=sandbox, budget=1)


# -- code in the text --------------------------------------------------------------------------------------------------

FENCE = "I count.\n```python\nprint(6 * 7)\n```\n"
FENCED = "I count.\n<tool_call>\nprint(6 * 7)\n</tool_call>"
TAGGED = "I count.\n<tool_call>\nprint(6 * 7)\n</tool_call>"


def stopped(text: str, stop: str, **message: Any) -> dict[str, Any]:
    """An answer that ended at a stop string, which vLLM takes off and tells."""
    body = answer({"content": text.removesuffix(stop)} | message)
    body["choices"][0]["stop_reason"] = stop
    return body


@pytest.mark.parametrize("kind", ["vllm", "openai"])
async def test_fences_go_on_in_a_turn_of_the_user(tokenizer: ChatTokenizer, sandbox: LocalSandbox, kind: str) -> None:
    """vLLM is stopped where the fence closes; another server writes on, and what it makes up is cut away."""
    first = stopped(FENCE, "```\n") if kind == "vllm" else answer({"content": FENCE + "```output\n41\n```\nSo 41."})
    async with Server(first, answer({"content": "It is \\boxed{42}."})) as server:
        out = await roll(server, tokenizer, sandbox, kind=kind, tool_format="fences")
    assert authors(out.transcript) == [
        (Author.MODEL, FENCED),
        tool("42", 2),
        (Author.MODEL, "It is \\boxed{42}."),
    ]
    assert (out.finish, out.transcript.tokenizer) == (Finish.STOP, None)
    assert server.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": FENCE},
        {"role": "user", "content": "```output\n42\n```\n"},
    ]
    assert ("stop" in server.asked[0]) == (kind == "vllm")
    assert len(server.asked[0].get("stop", ())) <= 4, "vLLM and OpenAI take no more"
    assert all("tools" not in body for body in server.asked)


async def test_a_fence_that_is_no_call_goes_on_in_its_turn(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    bodies = (stopped("```text\na\n```\n", "```\n"), stopped("Now:\n" + FENCE, "```\n"), answer({"content": "42"}))
    async with Server(*bodies) as server:
        out = await roll(server, tokenizer, sandbox, kind="vllm", tool_format="fences")
    assert out.transcript.text.startswith("```text\na\n```\nNow:\nI count.\n<tool_call>")
    second, third = server.asked[1:]
    assert second["messages"][2:] == [{"role": "assistant", "content": "```text\na\n```\n"}]
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert [turn["role"] for turn in third["messages"]] == ["system", "user", "assistant", "user"]
    assert "continue_final_message" not in third


async def test_fences_of_a_model_whose_thinking_comes_apart(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    bodies = (
        answer({"content": FENCE, "reasoning": "Hm."}),
        answer({"content": "It is \\boxed{42}.", "reasoning": "Good."}),
    )
    async with Server(*bodies) as server:
        out = await roll(server, tokenizer, sandbox, tool_format="fences")
    assert authors(out.transcript) == [
        (Author.MODEL, f"<think>\nHm.\n\n{FENCED}"),
        tool("42", 2),
        (Author.MODEL, "Good.\n</think>\n\nIt is \\boxed{42}."),
    ]
    assert server.asked[1]["messages"][2] == {"role": "assistant", "content": FENCE, "reasoning": "Hm."}


async def test_tags_go_on_in_the_same_turn_where_the_server_can(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox
) -> None:
    shown = output_block("42") + notice_block(2)
    bodies = (stopped("<think>\n" + TAGGED, "</tool_call>"), answer({"content": "So.\n</think>\n\nIt is \\boxed{42}."}))
    async with Server(*bodies) as server:
        out = await roll(server, tokenizer, sandbox, kind="vllm", tool_format="tags")
    assert authors(out.transcript) == [
        (Author.MODEL, "<think>\n" + TAGGED),
        tool("42", 2),
        (Author.MODEL, "So.\n</think>\n\nIt is \\boxed{42}."),
    ]
    assert server.asked[1]["messages"][2:] == [{"role": "assistant", "content": "<think>\n" + TAGGED + shown}]
    assert server.asked[1]["continue_final_message"] is True
    async with Server(answer({"content": TAGGED + "\nIt is 41."}), answer({"content": "It is \\boxed{42}."})) as server:
        out = await roll(server, tokenizer, sandbox, tool_format="tags")
    assert [text for _, text in authors(out.transcript)] == [TAGGED, shown, "It is \\boxed{42}."]
    assert server.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": TAGGED},
        {"role": "user", "content": shown.lstrip()},
    ]


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool_format", ["tags", "fences", "tool_calls"])
async def test_the_record_says_that_it_was_asked_in_turns(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox, tool_format: str
) -> None:
    settings = replace(SETTINGS, tool_format=tool_format)  # type: ignore[arg-type]
    asked = load_template({"tags": "tir", "fences": "tir-fences", "tool_calls": "tir-tools"}[tool_format])
    async with Server(answer({"content": "\\boxed{42}"})) as server:
        client, quick = server.client(), server.client(reasoning_effort="low")
        samplers = [
            Sampler(
                engine, tokenizer, sandbox, asked, Mode.TIR, settings, 1, keep_ids=True, recorded=load_template("tir")
            )
            for engine in (client, quick)
        ]
        for engine in (client, quick):
            await engine.probe()
        problem = Problem(id="p", problem="6 * 7?")
        outcome = await samplers[0].roll_out(problem, 0)
        record = samplers[0].record(problem, 0, outcome)
        assert samplers[0].id_of(problem, 0) == record.id != samplers[1].id_of(problem, 0)
        for engine in (client, quick):
            await engine.close()
    assert record.extra["asked"] == {"tool_format": tool_format, "prompt": asked.digest, "ids": "re-encoded"}
    transcript = Transcript.from_json(record.transcript)
    tir = load_template("tir").messages(problem="6 * 7?", total_code_executions=record.budget)
    assert transcript.messages == tir


class Patient(LoopbackServer):
    """Calls the tool once for each problem and then answers; of a problem that says "wait" the answer never comes while
    ``holds``. ``asked`` counts the requests by problem."""

    def __init__(self) -> None:
        super().__init__(web.post("/v1/chat/completions", self._answer), web.get("/v1/models", self._models))
        self.asked, self.holds, self.held = Counter[str](), True, asyncio.Event()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def _answer(self, request: web.Request) -> web.Response:
        *_, last = messages = (await request.json())["messages"]
        problem = messages[0]["content"].rpartition("\n")[2]
        self.asked[problem] += 1
        if last["role"] != "tool":
            return web.json_response(call("print(6 * 7)"))
        if self.holds and problem == "wait":
            self.held.set()
            await asyncio.Event().wait()
        return web.json_response(answer({"content": "It is \\boxed{42}."}))


async def test_a_kill_asks_nothing_twice_that_was_finished(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox, tmp_path: Path
) -> None:
    problems = [Problem(id=name, problem=name) for name in ("a", "b", "wait")]
    write_records(tmp_path / "in", problems)
    config = GenerateConfig(mode=Mode.TIR, tool_format="tool_calls", budgets=(2, 2), code_seconds=300.0, concurrency=1)
    async with Patient() as server:

        async def run() -> None:
            engine = HTTPEngine(server.url, "m", kind="openai", api="chat")
            services = Lent(engine=engine, tokenizer=tokenizer, sandbox=sandbox)
            try:
                await Generate(config).run(
                    stage_context({"problems": [tmp_path / "in"]}, tmp_path / "out", services=services)
                )
            finally:
                await engine.close()

        first = asyncio.create_task(run())
        await server.held.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        before = server.asked.copy()
        server.holds = False
        await run()
    finished = {name for name, count in before.items() if count == 2 and name != "wait"}
    assert {name: server.asked[name] for name in finished} == dict.fromkeys(finished, 2)
    assert server.asked["wait"] == 4, "a solution that was not finished begins anew"
    records = list(read_records(tmp_path / "out", Generation))
    assert sorted((r.problem_id, r.code_calls, r.finish) for r in records) == [
        (n, 1, "stop") for n in ("a", "b", "wait")
    ]
