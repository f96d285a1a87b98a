"""Conversations with chat servers: messages that are sent, calls that come back, and what a full context says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Message
from nemo_openmath.core.engine import (
    ContextOverflow,
    Conversation,
    Finish,
    InvalidRequest,
    Request,
    Sampling,
    ToolCall,
    Turn,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.dialects import DIALECTS, chat_dialect
from nemo_openmath.inference.http.tool_calls import PYTHON
from nemo_openmath.inference.http.transport import room_in
from nemo_openmath.inference.open import EngineConfig
from nemo_openmath.recipe.teacher import Teacher
from tests.inference.test_chat_servers import USAGE, Server, answer, ask, events

CALL = ToolCall("c1", "python", '{"code": "print(6 * 7)"}')
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "python", "arguments": CALL.arguments}}
USER = Turn("user", "6 * 7?")
OFFERED = Request(Conversation((USER,), tools=True))
STREAMED = Request(OFFERED.prompt, time_limit=30)

# a conversation, and the fields of the body that say it
BODIES: tuple[tuple[Conversation | str, dict[str, Any]], ...] = (
    ("q", {"messages": [{"role": "user", "content": "q"}]}),
    (
        Conversation((Turn("system", "Be brief."), USER)),
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]},
    ),
    (
        Conversation((USER, Turn("assistant", "42", thinking="6 * 7"), Turn("user", "And 6 * 8?"))),
        {
            "messages": [
                {"role": "user", "content": "6 * 7?"},
                {"role": "assistant", "content": "42", "reasoning_content": "6 * 7"},
                {"role": "user", "content": "And 6 * 8?"},
            ]
        },
    ),
    (
        Conversation((USER, Turn("assistant", "", "hm", (CALL,)), Turn("tool", "42\n", calls=(CALL,))), tools=True),
        {
            "messages": [
                {"role": "user", "content": "6 * 7?"},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [SENT_CALL]},
                {"role": "tool", "content": "42\n", "tool_call_id": "c1"},
            ],
            "tools": [PYTHON],
            "tool_choice": "auto",
        },
    ),
    (
        Conversation((USER, Turn("assistant", "It is"))),
        {
            "messages": [{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "It is"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    ),
)
KEYS = ("messages", "tools", "tool_choice", "continue_final_message", "add_generation_prompt")


@pytest.mark.parametrize(("prompt", "fields"), BODIES)
def test_what_is_sent_of_a_conversation(prompt: Conversation | str, fields: dict[str, Any]) -> None:
    body = chat_dialect("vllm").body(Request(prompt), "m", False)
    assert {key: body[key] for key in KEYS if key in body} == fields
    if isinstance(prompt, Conversation):
        for dialect in DIALECTS.values():
            with pytest.raises(InvalidRequest, match="api: chat"):
                dialect.body(Request(prompt), "m", False)
        if prompt.turns[-1].role == "assistant":
            with pytest.raises(InvalidRequest, match="cannot go on"):
                chat_dialect("openai").body(Request(prompt), "m", False)


def function(arguments: Any, name: str | None = "python", **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


CALLS: tuple[tuple[dict[str, Any], tuple[ToolCall, ...]], ...] = (
    ({"tool_calls": [function(CALL.arguments, id="c1")]}, (CALL,)),
    ({"tool_calls": [function({"code": "print(6 * 7)"}, id="c1")]}, (CALL,)),  # the object itself
    ({"function_call": function("x")["function"]}, (ToolCall("call00100", "python", "x"),)),
    ({"tool_calls": [function(None)]}, (ToolCall("call00100", "python", ""),)),
    (
        {"tool_calls": [function("1", id="a"), function("2", id="b")]},
        (ToolCall("a", "python", "1"), ToolCall("b", "python", "2")),
    ),
)


@pytest.mark.parametrize(("message", "calls"), CALLS)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call"])
async def test_a_call_of_the_tool_is_read(message: dict[str, Any], calls: tuple[ToolCall, ...], reason: str) -> None:
    got = await ask(answer({"content": None} | message, reason), request=OFFERED)
    assert (got.calls, got.finish, got.text) == (calls, Finish.STOP, "")


STREAMS: tuple[tuple[list[dict[str, Any]], tuple[tuple[str, str], ...]], ...] = (
    (  # arguments in pieces, two calls whose pieces are mixed
        [
            function("", id="a", index=0),
            function('{"code', None, index=0),
            function("2", id="b", index=1),
            function('": "1"}', None, index=0),
            function("2", None, index=1),
        ],
        (("a", '{"code": "1"}'), ("b", "22")),
    ),
    ([function("1", id="a"), function("2", None), function("3", id="b")], (("a", "12"), ("b", "3"))),  # no index
    ([function("1", id="a", index=0), function("2", id="b", index=0)], (("a", "1"), ("b", "2"))),  # one for all
    ([function("1", id="a", index=0), function("2", id="a", index=0)], (("a", "12"),)),  # the id again and again
)


@pytest.mark.parametrize(("parts", "calls"), STREAMS)
async def test_a_streamed_call_is_put_together(parts: list[dict[str, Any]], calls: tuple[tuple[str, str], ...]) -> None:
    deltas = [{"reasoning": "hm"}, {"content": "So:"}, *({"tool_calls": [part]} for part in parts)]
    got = await ask(events(*deltas, finish="tool_calls"), request=STREAMED)
    assert tuple((call.id, call.arguments) for call in got.calls) == calls
    assert {call.name for call in got.calls} == {"python"}
    assert (got.finish, got.thinking, got.content) == (Finish.STOP, "hm", "So:")


async def test_what_is_no_finished_call() -> None:
    """Cut off in its arguments; taken out by a filter; announced and not there; no call at all."""
    called = {"content": None, "tool_calls": [function('{"code": "pri', id="a")]}
    for reason, finish in (("length", Finish.LENGTH), ("content_filter", Finish.CUT)):
        assert (await ask(answer(called, reason), request=OFFERED)).finish is finish
    got = await ask(answer({"content": "a"}, "tool_calls"), request=OFFERED)
    assert (got.finish, got.calls) == (Finish.CUT, ())
    for wrong in ("python", [7], [{"function": {"name": 7}}]):
        good = answer({"content": "again"})
        assert (await ask(answer({"content": None, "tool_calls": wrong}), good, request=OFFERED)).text == "again"


async def test_thinking_goes_back_in_the_field_in_which_it_came() -> None:
    again = Request(Conversation((USER, Turn("assistant", "a", "hm"), USER)))
    for field in ("reasoning", "reasoning_content", "thinking"):
        async with Server(answer({"content": "a", field: "hm"})) as server:
            client = server.client()
            first = await client.complete(OFFERED)
            assert (first.thinking, first.content) == ("hm", "a")
            await client.complete(again)
            await client.close()
        assert server.asked[1]["messages"][1] == {"role": "assistant", "content": "a", field: "hm"}


async def test_effort_and_options_of_the_template_are_sent_and_are_part_of_the_identity() -> None:
    options = {"enable_thinking": False}
    async with Server(answer()) as server:
        client = server.client(reasoning_effort="high", template_options=options)
        await client.complete(OFFERED)
        assert client.capabilities.options == (
            '{"chat_template_kwargs":{"enable_thinking":false},"reasoning_effort":"high"}'
        )
        plain = server.client()
        await plain.complete(OFFERED)
        assert plain.capabilities.options == ""
        for opened in (client, plain):
            await opened.close()
        with pytest.raises(UserError, match="renders nothing"):
            server.client(api="completions", reasoning_effort="low")
    first, second = server.asked
    assert (first.pop("reasoning_effort"), first.pop("chat_template_kwargs")) == ("high", options)
    assert first == second


# -- a full context ----------------------------------------------------------------------------------------------------

REFUSALS = (  # a server's words, and what its prompt leaves of the context
    (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (904 in the messages, "
        "4096 in the completion). Please reduce the length of the messages or completion.",
        3191,
    ),
    (
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
        "5000 tokens: 904 tokens from the input messages and 4096 tokens for the completion.",
        3191,
    ),
    ("The input (9000 tokens) is longer than the model's context length (4096 tokens).", 0),
    (
        "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4096 input tokens, "
        "which exceeds this limit even without any output tokens.",
        0,
    ),
    ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 0),
    ("Your input exceeds the context window of this model.", None),
)


@pytest.mark.parametrize(("words", "room"), REFUSALS)
async def test_a_full_context_is_asked_for_what_it_leaves(words: str, room: int | None) -> None:
    """In the words of vLLM, SGLang and OpenAI; where they give no number, for half as much, and so on."""
    assert room_in(words) == room
    refusal, request = {"error": {"message": words, "code": 400}}, Request("q", Sampling(max_tokens=4096))
    for limit in (None, 30):
        limited = Request("q", request.sampling, time_limit=limit)
        good = answer() if limit is None else events({"content": "a"})
        async with Server(refusal if limit is None else [refusal], good) as server:
            client = server.client()
            if room == 0:
                with pytest.raises(ContextOverflow):
                    await client.complete(limited)
            else:
                assert (await client.complete(limited)).text == "a"
                assert [body["max_tokens"] for body in server.asked] == [4096, room or 2048]
            await client.close()


async def test_a_context_without_numbers_is_given_up_in_the_end() -> None:
    async with Server({"error": {"message": "exceeds the context window", "code": 400}}) as server:
        client = server.client()
        with pytest.raises(ContextOverflow):
            await client.complete(Request("q", Sampling(max_tokens=300)))
        assert [body["max_tokens"] for body in server.asked] == [300, 150, 75]
        await client.close()


async def test_no_more_is_asked_for_than_the_context_holds() -> None:
    models = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]}
    async with Server(answer(usage=USAGE), models=models) as server:
        client = server.client(kind="auto")
        await client.complete(Request(OFFERED.prompt, Sampling(max_tokens=4096)))
        assert server.asked[0]["max_tokens"] == 99
        await client.close()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_where_effort_and_options_act(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Both are sent to chat servers; options act where prompts are rendered here, too, and effort is refused there."""
    server = {"url": "http://h:1", "model": "m"}
    assert Teacher(**server, api="chat").digest() == "m chat"
    high = Teacher(**server, api="chat", reasoning_effort="high", template_options={"enable_thinking": False})
    assert high.digest() == 'm chat {"reasoning_effort":"high","template_options":{"enable_thinking":false}}'
    for settings in (Teacher, EngineConfig):
        with pytest.raises(ValueError, match="reasoning_effort would be ignored"):
            settings(reasoning_effort="low")
    folder = tmp_path / "model"
    shutil.copytree(tokenizer.folder, folder)
    template = "{{ messages[0].content }}{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    plain = ChatTokenizer.load(folder)
    quiet = plain.with_options({"enable_thinking": False})
    turn = (Message("user", "6 * 7?"),)
    assert (plain.prompt(turn).opening, quiet.prompt(turn).opening) == ("", "<think>\n\n</think>\n\n")
    assert plain.fingerprint != quiet.fingerprint
    assert (plain.options, quiet.options) == ("", '{"enable_thinking": false}')
    for name in ("enable_thought", "messages"):
        with pytest.raises(UserError, match=f"no option {name}"):
            plain.with_options({name: 1})
    assert plain.with_options({"enable_thought": 1}, all_read=False).fingerprint == plain.fingerprint
