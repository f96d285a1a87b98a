"""What servers of the OpenAI protocol really send, over HTTP: reasoning, parts, reasons, errors, counts, names."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import (
    Completion,
    ContextOverflow,
    EngineError,
    Finish,
    InvalidRequest,
    Request,
    Sampling,
    WrongServer,
)
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.dialects import DIALECTS, chat_dialect
from nemo_openmath.inference.http.model_names import alias_of
from nemo_openmath.inference.http.retrying import RetryPolicy
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.inference.serving.launch import ServerConfig, server_command
from tests.support.servers import LoopbackServer

BASE = Path(__file__).parents[2] / "examples" / "base"  # its texts end in 658 or 660
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
ASKED = Request("What is 1 + 2?")


class Server(LoopbackServer):
    """Answers each POST with the next body, the last one again and again; a list of bodies is a stream of events, bytes
    are sent as they are."""

    def __init__(self, *bodies: Any, models: Any = None):
        """``models``: the answer of /v1/models, or what makes it."""
        super().__init__(web.post("/v1/{kind:.*}", self._post), web.get("/v1/models", self._models))
        self.bodies, self.asked, self.models = list(bodies), list[dict[str, Any]](), models

    async def _models(self, request: web.Request) -> web.Response:
        if callable(self.models):
            return await self.models(request)
        return web.json_response(self.models or {"data": [{"id": "m", "owned_by": "vllm"}]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        if not isinstance(body, list | bytes):
            return web.json_response(body)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body if isinstance(body, bytes) else b"".join(map(sent, body)) + b"data: [DONE]\n\n")
        return response

    def client(self, **settings: Any) -> HTTPEngine:
        retry = RetryPolicy(2, 0.001, 0.01, 5.0)
        return HTTPEngine(self.url, "m", **({"kind": "openai", "api": "chat", "retry": retry} | settings))


def sent(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def answer(message: dict[str, Any] | None = None, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"} | (message or {}), "finish_reason": finish}
    return {"model": "m", "choices": [choice], "usage": USAGE} | more


async def ask(*bodies: Any, request: Request = ASKED, **settings: Any) -> Completion:
    async with Server(*bodies) as server:
        client = server.client(**settings)
        try:
            return await client.complete(request)
        finally:
            await client.close()


ANSWER = "The answer is \\boxed{3}."
THOUGHT = f"<think>\n1+2=3\n</think>\n\n{ANSWER}"
MESSAGES: Sequence[tuple[dict[str, Any], str]] = (
    ({"content": ANSWER, "reasoning_content": "1+2=3"}, THOUGHT),
    ({"content": f"\n\n{ANSWER}", "reasoning": "\n1+2=3\n"}, THOUGHT),
    ({"content": THOUGHT, "reasoning_content": "1+2=3"}, THOUGHT),  # it is there already
    ({"content": ANSWER, "reasoning_content": "<think>\n1+2=3\n</think>"}, THOUGHT),  # a parser that left the tags
    ({"content": f"</think>\n\n{ANSWER}", "reasoning": "<think>1+2=3"}, THOUGHT),
    ({"content": ANSWER, "reasoning_content": None, "reasoning": ""}, ANSWER),
    ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
    (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "1+2=3"}]},
                {"type": "text", "text": ANSWER},
            ]
        },
        THOUGHT,
    ),
    ({"content": ANSWER, "thinking": "1+2=3"}, THOUGHT),
    ({"content": ANSWER, "reasoning": [{"type": "text", "text": "1+2"}, {"type": "thinking", "text": "=3"}]}, THOUGHT),
    ({"content": None, "refusal": "I cannot."}, "I cannot."),
    ({"content": None, "reasoning_content": "1+2"}, "<think>\n1+2"),  # whether it ended is not known
    ({"content": None}, ""),
)


@pytest.mark.parametrize(("message", "text"), MESSAGES)
async def test_a_message_is_read_in_each_of_its_shapes(message: dict[str, Any], text: str) -> None:
    assert (await ask(answer(message))).text == text


async def test_a_part_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match="image_url"):
        await ask(answer({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}))


def events(*deltas: dict[str, Any], finish: str = "stop") -> list[dict[str, Any]]:
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return [{"model": "m", "choices": [c]} for c in choices] + [{"model": "m", "choices": [], "usage": USAGE}]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_streamed_thinking_is_put_where_the_model_wrote_it(field: str) -> None:
    thinking = [{"role": "assistant", "content": ""}, {field: "\n1+2"}, {field: "=3\n"}, {"content": None}]
    deltas = [*thinking, {"content": "\n\nThe answer "}, {"content": "is \\boxed{3}."}]
    async with Server(events(*deltas)) as server:
        client = server.client()
        *_, last = chunks = [chunk async for chunk in client.stream(ASKED)]
        assert last.completion is not None
        assert "".join(chunk.text for chunk in chunks) == last.completion.text == THOUGHT
        assert last.completion.usage.completion_tokens == 7
        limited = await client.complete(Request(ASKED.prompt, time_limit=30))
        assert (limited.text, limited.usage.estimated) == (THOUGHT, False)
        await client.close()


async def test_a_streamed_answer_may_think_in_both_places() -> None:
    both = [{"reasoning_content": "1+2=3"}, {"content": "<think>\n1+2=3\n</"}, {"content": f"think>\n\n{ANSWER}"}]
    assert (await ask(events(*both), request=Request(ASKED.prompt, time_limit=30))).text == THOUGHT


FINISHES = {
    Finish.STOP: ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "STOP"),
    Finish.LENGTH: ("length", "max_tokens", "model_length"),
    Finish.CUT: ("content_filter", "tool_calls", "function_call", "something new"),
}


@pytest.mark.parametrize(("reason", "finish"), [(r, f) for f, reasons in FINISHES.items() for r in reasons])
async def test_only_what_is_known_as_a_stop_is_finished(reason: str, finish: Finish) -> None:
    assert (await ask(answer(finish=reason))).finish is finish
    assert (await ask(events({"content": "a"}, finish=reason), request=Request("q", time_limit=30))).finish is finish


@pytest.mark.parametrize(
    "taken", [{"tool_calls": [{"function": {"name": "python"}}]}, {"function_call": {"name": "p"}}]
)
async def test_an_answer_whose_tool_call_was_taken_out_is_not_finished(taken: dict[str, Any]) -> None:
    for reason in ("stop", "eos"):
        assert (await ask(answer({"content": None, **taken}, reason))).finish is Finish.CUT
    streamed = events({"content": "a"}, taken)  # why it ended comes in a later event
    assert (await ask(streamed, request=Request("q", time_limit=30))).finish is Finish.CUT


async def test_the_choice_that_was_asked_for_is_read() -> None:
    other = {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"}
    assert (await ask(answer() | {"choices": [other, *answer()["choices"]]})).text == "a"
    first, *rest = events({"content": "a"})
    second = {"model": "m", "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]}
    got = await ask([first, second, *rest], request=Request("q", time_limit=30))
    assert (got.text, got.finish) == ("a", Finish.STOP)


async def test_a_stream_is_read_as_servers_send_it() -> None:
    """With a byte order mark, keep-alives with and without data, other fields; without [DONE]."""
    first, *rest = map(sent, events({"content": "a"}, {"content": "b"}))
    alive = b": alive\n\ndata: \n\ndata:\n\nevent: ping\nid: 7\n\n"
    limited = Request("q", time_limit=30)
    got = await ask(b"\xef\xbb\xbf" + first + alive.join(rest), request=limited)
    assert (got.text, got.finish, got.usage.completion_tokens) == ("ab", Finish.STOP, 7)
    with pytest.raises(EngineError, match="broke off"):
        await ask(first + rest[0], request=limited)


@pytest.mark.parametrize("reason", [None, "", "abort", "insufficient_system_resource"])
async def test_what_a_server_gave_up_is_asked_again(reason: str | None) -> None:
    assert (await ask(answer(finish=reason), answer())).finish is Finish.STOP
    words = "early" if reason else "does not say why its text ended"
    with pytest.raises(EngineError, match=words) as error:
        await ask(answer(finish=reason))
    assert error.value.retryable


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "overloaded", "code": 503}},
        {"error": {"message": "overloaded", "code": "503", "type": "server_error"}},
        {"error": "overloaded"},
        {"object": "error", "message": "overloaded", "code": 429},
        {"detail": "overloaded"},
        {"success": False, "code": 50, "msg": "overloaded"},
        {"errors": [{"message": "overloaded"}]},
        {"model": "m", "choices": [{"finish_reason": "error", "error": {"message": "overloaded", "code": 502}}]},
    ],
)
async def test_an_error_of_status_200_is_an_error(body: dict[str, Any]) -> None:
    """Asked again, and told in the server's words, also where it comes within a stream."""
    streamed = Request("q", time_limit=30)
    for bodies, request in (([body], ASKED), ([[body]], streamed)):
        good = answer() if request is ASKED else events({"content": "a"})
        assert (await ask(*bodies, good, request=request)).text == "a"
        with pytest.raises(EngineError, match="overloaded") as error:
            await ask(*bodies, request=request, retry=RetryPolicy(2, 0.001, 0.01, 0.05))
        assert error.value.retryable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "no such field", "type": "invalid_request_error"}, InvalidRequest),
        ({"message": "prompt is too long: maximum context length is 8 tokens", "code": 400}, ContextOverflow),
        ({"message": "bad key", "type": "authentication_error"}, WrongServer),
    ],
)
async def test_a_refusal_of_status_200_is_final(error: dict[str, Any], kind: type[EngineError]) -> None:
    async with Server({"error": error}) as server:
        client = server.client()
        with pytest.raises(kind, match=error["message"]):
            await client.complete(ASKED)
        assert len(server.asked) == 1
        await client.close()


async def test_no_choices_are_no_answer() -> None:
    for body in ({"model": "m", "choices": []}, {"model": "m"}):
        with pytest.raises(EngineError, match=r"damaged answer: .*`choices`"):
            await ask(body)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (USAGE, (5, 7, False)),
        (None, (4, 2, True)),  # four characters a token, where no tokenizer is known
        ({"total_tokens": 12}, (10, 2, True)),
        ({"prompt_tokens": 5, "total_tokens": 12}, (5, 7, True)),
        ({"prompt_tokens": "many", "completion_tokens": -1}, (4, 2, True)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (4, 2, True)),
        ("none", (4, 2, True)),
    ],
)
async def test_what_was_not_counted_is_estimated_and_marked(usage: Any, counts: tuple[int, int, bool]) -> None:
    found = (await ask(answer({"content": "abcdefgh"}, usage=usage))).usage
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == counts


@pytest.mark.parametrize("ids", [["5"], [5.0], [True], [-1], "56"])
async def test_what_is_no_token_id_is_no_answer(ids: Any) -> None:
    body = {"model": "m", "choices": [{"text": "a", "token_ids": ids, "finish_reason": "stop"}], "usage": USAGE}
    with pytest.raises(EngineError, match=r"damaged answer: .*ids of tokens were expected"):
        await ask(body, kind="vllm", api="completions")


async def test_ids_are_counted_where_a_completions_server_counts_nothing() -> None:
    choice = {"text": "ab", "token_ids": [5, 6, 7], "finish_reason": "stop"}
    got = await ask(
        {"model": "m", "choices": [choice], "usage": None}, request=Request((1, 2)), kind="vllm", api="completions"
    )
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.estimated) == (2, 3, True)


async def test_a_dated_name_is_accepted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with Server(answer(model="m-2026-05-01")) as server:
        client = server.client(kind="vllm")
        for _ in range(3):
            assert (await client.complete(ASKED)).text == "a"
        await client.close()
    assert [r.getMessage() for r in caplog.records if "m-2026-05-01" in r.getMessage()] == [
        "the server calls 'm' 'm-2026-05-01'; taken for the same model"
    ]
    with pytest.raises(EngineError, match="other"):
        await ask(answer(model="other"))


@pytest.mark.parametrize(
    ("served", "asked", "same"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        ("mistral-large-2411", "mistral-large-latest", True),
        ("claude-x-20241022", "claude-x-latest", True),
        ("gemini-1.5-pro-002", "gemini-1.5-pro", True),
        ("qwen/qwen3-8b:free", "Qwen/Qwen3-8B", True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("qwen3-14b", "qwen3-8b", False),
        ("m-7b", "m", False),
    ],
)
def test_an_alias_differs_by_a_date_or_a_revision_alone(served: str, asked: str, same: bool) -> None:
    assert alias_of(served, asked) is same


async def test_what_a_server_did_otherwise_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A limit of its own ends texts as max_tokens does (vLLM takes max_new_tokens from generation_config.json)."""
    caplog.set_level(logging.WARNING)
    models = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}
    async with Server(answer(finish="length"), models=models) as server:
        client = server.client(kind="auto")
        for limit in (7, 100, 100):
            await client.complete(Request("q", Sampling(max_tokens=limit)))
        server.bodies = [answer(usage=None)]
        for _ in range(2):
            assert (await client.complete(ASKED)).usage.estimated
        await client.close()
    limited, counted = [r.getMessage() for r in caplog.records]
    assert "ends texts after 7 tokens, though 100 were asked for" in limited
    assert "the counts are estimates" in counted


# -- requests ----------------------------------------------------------------------------------------------------------

NEUTRAL = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "temperature": 0.0}
BEYOND = {"min_p": 0.0, "repetition_penalty": 1.0}


def test_every_sampling_field_is_sent_that_the_server_takes() -> None:
    """A field that is left out comes from the model's generation_config.json on the server: neutral values are sent."""
    request, ends = Request("q", Sampling(temperature=0.0, top_p=1.0)), (7, 8)
    ids = Request((1, 2), request.sampling)
    want: dict[str, dict[str, Any]] = {
        "vllm": BEYOND | {"top_k": -1, "stop_token_ids": [7, 8], "skip_special_tokens": False},
        "sglang": BEYOND | {"top_k": -1, "stop_token_ids": [7, 8], "skip_special_tokens": False},
        "trtllm": BEYOND | {"top_k": 0, "stop_token_ids": [7, 8]},
        "openmath": BEYOND | {"top_k": 0, "skip_special_tokens": False},
        "openai": {},
    }
    assert want.keys() == DIALECTS.keys()
    known = {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "skip_special_tokens", *NEUTRAL}
    for kind, fields in want.items():
        bodies = [chat_dialect(kind).body(request, "m", False, ends)]
        bodies.append(DIALECTS[kind].body(request if kind == "openai" else ids, "m", False, ends))
        for body in bodies:
            sent = body.get("sampling_params", body)
            assert {key: sent[key] for key in known & sent.keys()} == NEUTRAL | fields, kind
            assert sent.get("max_tokens", sent.get("max_new_tokens")) == request.sampling.max_tokens
    drawn = DIALECTS["vllm"].body(Request((1,), Sampling(top_k=5, min_p=0.1, seed=3)), "m", False)
    assert (drawn["top_k"], drawn["min_p"], drawn["seed"]) == (5, 0.1, 3)


async def test_all_ends_of_a_model_are_named_in_every_way_of_asking() -> None:
    """The base's and the trained one: a vLLM without the model's generation_config.json knows the tokenizer's alone."""
    choice = {"index": 0, "text": "ab", "token_ids": [5, 6, 660], "finish_reason": "stop"}
    whole = {"model": "m", "choices": [choice], "usage": USAGE}
    async with Server(whole, [whole], [whole]) as server:
        client = server.client(kind="vllm", api="completions", tokenizer=ChatTokenizer.load(BASE))
        for limit in (None, 30):
            assert (await client.complete(Request((1, 2), time_limit=limit))).token_ids == (5, 6, 660)
        assert [chunk async for chunk in client.stream(Request((1, 2)))]
        await client.close()
    assert [body["stop_token_ids"] for body in server.asked] == [[658, 660]] * 3
    assert [body["include_stop_str_in_output"] for body in server.asked] == [False] * 3


async def test_what_is_left_to_a_plain_server_is_said_and_what_it_cannot_do_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with Server(answer()) as server:
        client = server.client()
        await client.complete(ASKED)
        await client.complete(ASKED)
        with pytest.raises(InvalidRequest, match="top_k"):
            await client.complete(Request("q", Sampling(top_k=5)))
        await client.close()
    [said] = [r.getMessage() for r in caplog.records if "repetition_penalty" in r.getMessage()]
    assert "top_k, min_p, repetition_penalty, stop_token_ids" in said


# -- waits and ends ----------------------------------------------------------------------------------------------------


def complaints() -> Callable[[], list[dict[str, Any]]]:
    """What the event loop complains of from here on, such as connections that nobody closed."""
    seen = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    def found() -> list[dict[str, Any]]:
        gc.collect()
        return seen

    return found


async def test_a_model_that_is_not_served_is_wrong_input() -> None:
    complained = complaints()
    async with Server(answer(), models={"data": [{"id": "else", "owned_by": "vllm"}]}) as server:
        client = server.client(kind="auto")
        with pytest.raises(WrongServer, match=r"'m'; it serves else") as error:
            await client.probe()
        assert error.value.exit_code is ExitCode.USER_ERROR
        await client.close()
        del client, error
    assert complained() == []


async def test_a_server_that_is_not_there_is_waited_for_aloud() -> None:
    """The address, the limit and the setting that holds it are in the line; the clock is set by hand."""
    lines, seconds = list[str](), iter(range(0, 10_000, 10))
    async with Server(answer()) as server:
        url = server.url
    waiting = Waiting(say=lines.append, clock=lambda: float(next(seconds)), first_s=5, every_s=0)
    client = HTTPEngine(url, "m", retry=RetryPolicy(2, 0.001, 0.01, 0.05), waiting=waiting)
    with pytest.raises(EngineError, match=r"after 0\.05 s"):
        await client.probe()
    await client.close()
    assert lines
    assert lines[0].startswith(f"waiting for {url} (cannot connect")
    assert lines[0].endswith("(patience_s)")


async def test_a_wait_that_is_broken_off_leaves_no_connection_open() -> None:
    """As by Ctrl-C, which cancels whoever waits."""
    complained, asked = complaints(), asyncio.Event()

    async def busy(_: web.Request) -> web.Response:
        asked.set()
        return web.json_response({"error": "loading"}, status=503)

    async with Server(answer(), models=busy) as server:
        config = EngineConfig(kind="http", model="m", urls=(server.url,))
        opening = asyncio.create_task(open_engine(config))
        await asked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        del opening
    assert complained() == []


def test_a_vllm_that_we_start_takes_no_sampling_defaults_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # so that it is found
    for arguments, chosen in ((), "vllm"), (("--generation-config", "auto"), "auto"):
        command = server_command(ServerConfig("m", "vllm", arguments=arguments), 1)
        assert [command[i + 1] for i, word in enumerate(command) if word == "--generation-config"] == [chosen]
