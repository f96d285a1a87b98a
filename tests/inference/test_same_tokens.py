"""A server whose tokenizer is not ours is found out before the first request, as far as it tells."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.inference.serving.openai_server import OpenAIServer
from nemo_openmath.recipe.generate import generate
from nemo_openmath.recipe.services import RecipeServices
from tests.support.engines import MODEL, LocalEngine
from tests.support.servers import LoopbackServer

Answer = Callable[[dict[str, Any]], Any]


class Endpoints(LoopbackServer):
    """A server of ``owner``'s kind that answers the given endpoints alone; an answer with an error refuses.

    ``card``: more of its model's entry. ``asked`` are the endpoints in the order of the requests."""

    def __init__(self, owner: str, card: dict[str, Any] | None = None, **answers: Answer):
        super().__init__(web.get("/v1/models", self._models), web.post("/{path:.*}", self._post))
        self._owner, self._card, self._answers = owner, {} if card is None else card, answers
        self.asked: list[str] = []

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self._owner} | self._card]})

    async def _post(self, request: web.Request) -> web.Response:
        name = request.path.rsplit("/", 1)[-1]
        self.asked.append(name)
        if name not in self._answers:
            return web.json_response({"detail": "Not Found"}, status=404)
        answer = self._answers[name](await request.json())
        return web.json_response(answer, status=400 if "error" in answer else 200)


@pytest.fixture
def other(tokenizer: ChatTokenizer, tmp_path: Path) -> ChatTokenizer:
    """The same tokenizer with one merge less: nearly all texts have the same ids."""
    state = json.loads(tokenizer.backend.to_str())
    text = "Solve \\frac{12345}"
    used = {tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)}
    merges = state["model"]["merges"]
    made = ["".join(m) if isinstance(m, list) else m.replace(" ", "") for m in merges]
    at = next(i for i in reversed(range(len(merges))) if made[i] in used)
    del merges[at]
    for path in tokenizer.folder.iterdir():
        if path.suffix in (".json", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    changed = ChatTokenizer.load(tmp_path)
    assert changed.encode(text) != tokenizer.encode(text)
    return changed


def tokenize(tokenizer: ChatTokenizer) -> Answer:
    return lambda body: {"tokens": tokenizer.encode(body["prompt"]), "count": 1}


def count(tokenizer: ChatTokenizer) -> Answer:
    """Of a server that tells no ids."""
    return lambda body: {
        "choices": [{"index": 0, "text": "x", "finish_reason": "length"}],
        "usage": {"prompt_tokens": len(tokenizer.encode_whole(body["prompt"])), "completion_tokens": 1},
    }


@pytest.mark.parametrize(("endpoint", "of"), [("tokenize", tokenize), ("completions", count)])
@pytest.mark.parametrize("owner", ["vllm", "somebody"])
async def test_another_tokenizer_is_refused_and_the_right_one_taken(
    owner: str, endpoint: str, of: Callable[[ChatTokenizer], Answer], tokenizer: ChatTokenizer, other: ChatTokenizer
) -> None:
    for served, fine in ((tokenizer, True), (other, False)):
        async with Endpoints(owner, **{endpoint: of(served)}) as server:
            config = EngineConfig("http", "m", urls=(server.url,), tokenizer=tokenizer.folder)
            if fine:
                engine = await open_engine(config)
                assert engine.capabilities.same_tokens == (endpoint == "tokenize"), "a count alone shows nothing"
                await engine.close()
            else:
                with pytest.raises(UserError, match=r"'m' has another tokenizer than .* give as tokenizer the folder"):
                    await open_engine(config)
        assert server.asked == ["tokenize", "completions"][: 1 + (endpoint == "completions")]


async def test_a_server_that_does_not_tell_is_named(tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    async with Endpoints("vllm", completions=lambda _: {"error": {"message": "ids only"}}) as server:
        config = EngineConfig("http", "m", urls=(server.url,), tokenizer=tokenizer.folder)
        with caplog.at_level(logging.WARNING):
            await (await open_engine(config)).close()
    assert "does not tell how it cuts a text into tokens" in caplog.text


async def test_our_own_server_tells_its_ids(tokenizer: ChatTokenizer, other: ChatTokenizer) -> None:
    async with OpenAIServer(LocalEngine(other)) as server:
        right = HTTPEngine(server.url, MODEL, tokenizer=other)
        wrong = HTTPEngine(server.url, MODEL, tokenizer=tokenizer)
        try:
            assert (await right.probe()).token_ids
            with pytest.raises(UserError, match=r"(behind .*|first of a text) comes token \d+ here, token \d+ there"):
                await wrong.probe()
        finally:
            await right.close()
            await wrong.close()


async def test_a_student_has_one_tokenizer(tokenizer: ChatTokenizer, other: ChatTokenizer, tmp_path: Path) -> None:
    """Prompts are made with that of its folder; another one beside it would read the answers."""
    student = EngineConfig("http", "m", urls=("http://127.0.0.1:1",), tokenizer=other.folder)
    recipe: Any = SimpleNamespace(
        student=student,
        stages={},
        relative=Path,
        error=lambda setting, *words: UserError(f"{setting}: {'; '.join(words)}"),
    )
    with pytest.raises(UserError, match=r"student\.tokenizer: .* is not the tokenizer of .*: .*; leave"):
        await RecipeServices(recipe, tmp_path).engine(str(tokenizer.folder))


async def test_what_a_server_does_not_take_ends_the_job_and_a_mended_one_finishes_it(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """A refusal of every request, and a context that no prompt fits: the same command then, nothing of them is kept."""
    ids = tokenizer.encode("\\boxed{2}")
    accepts, card = False, {"max_model_len": 8}

    def complete(body: dict[str, Any]) -> Any:
        if not accepts:
            return {"error": {"message": "this model has no parameter 'seed'", "code": 400}}
        return {
            "choices": [{"index": 0, "text": "\\boxed{2}", "token_ids": ids, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)},
        }

    async with Endpoints("vllm", card, tokenize=tokenize(tokenizer), completions=complete) as server:
        (tmp_path / "problems.jsonl").write_text('{"problem": "1 + 1?", "expected_answer": "2"}\n' * 2)
        engine = {"kind": "http", "urls": [server.url], "model": "m", "tokenizer": str(tokenizer.folder)}
        job = tmp_path / "job.yaml"
        job.write_text(json.dumps({"problems": "problems.jsonl", "engine": engine, "generate": {"samples": 3}}))
        with pytest.raises(UserError, match=r"none of 3 could be tried \(problem .* does not fit the context of 8\)"):
            await generate(job, (), tmp_path / "out")
        card.clear()
        with pytest.raises(UserError, match=r"refused every request \(3\).*HTTP 400: this model has no parameter"):
            await generate(job, (), tmp_path / "out")
        accepts = True
        await generate(job, (), tmp_path / "out")
    assert [g.finish for g in read_records(tmp_path / "out" / "solutions", Generation)] == ["stop"] * 3
