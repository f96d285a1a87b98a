"""Against a real vLLM server. Start one (a CPU will do) and say where it is and which folder it serves:

    python -m vllm.entrypoints.openai.api_server --model DIR --dtype float32 --enforce-eager --block-size 32 \\
        --enable-prompt-tokens-details --max-num-batched-tokens 16384 \\
        --enable-auto-tool-choice --tool-call-parser hermes
    OPENMATH_VLLM_URL=http://127.0.0.1:8000 OPENMATH_VLLM_MODEL=DIR pytest -m manual tests/inference/test_vllm.py

On a CPU, vLLM 0.32 dies ("CPU Generator does not use offset") when a seeded request's prompt is computed in parts:
hence the last option.
"""

import asyncio
import os

import numpy as np
import pytest
import torch

from nemo_openmath.chat import ChatTokenizer, Kind, Message, load_template
from nemo_openmath.core.engine import ContextOverflow, Finish, Request, Sampling
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.rollout import RolloutSettings, roll_out
from nemo_openmath.inference.rollout.formats import FORMATS
from nemo_openmath.models.stop_tokens import end_ids
from nemo_openmath.sandbox.local import LocalSandbox

URL, MODEL = os.environ.get("OPENMATH_VLLM_URL"), os.environ.get("OPENMATH_VLLM_MODEL", "")
GREEDY = Sampling(max_tokens=300, temperature=0)
pytestmark = [
    pytest.mark.manual,
    pytest.mark.skipif(URL is None, reason="OPENMATH_VLLM_URL names no server"),
]


@pytest.fixture
async def engine():
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{URL}/v1/models") as answer:
        name = (await answer.json())["data"][0]["id"]
    engine = HTTPEngine(URL, name, tokenizer=ChatTokenizer.load(MODEL))
    assert (await engine.probe()).max_context
    yield engine
    await engine.close()


def prompts(n: int) -> list[tuple[int, ...]]:
    """Of 5-150 tokens of text: after ids that are no whole UTF-8, vLLM's text begins with that of the prompt."""
    rng, tokenizer = np.random.default_rng(1), ChatTokenizer.load(MODEL)
    numbers = [" ".join(map(str, rng.integers(0, 10_000, 150))) for _ in range(n)]
    return [tuple(tokenizer.encode(text)[: rng.integers(5, 150)]) for text in numbers]


async def test_greedy_is_that_of_the_embedded_engine(engine):
    """Token for token; a difference is exempt, and counted, where the two best logits differ by less than 1e-3."""
    from transformers import AutoModelForCausalLM

    embedded = EmbeddedEngine.load(MODEL, slots=16, threads=1)
    asked = [Request(p, Sampling(max_tokens=60, temperature=0, logprobs=True)) for p in prompts(24)]
    theirs = await asyncio.gather(*(engine.complete(r) for r in asked))
    ours = await asyncio.gather(*(embedded.complete(r) for r in asked))
    await embedded.close()
    reference, exempt = AutoModelForCausalLM.from_pretrained(MODEL).eval(), 0
    for request, a, b in zip(asked, ours, theirs, strict=True):
        same = [x == y for x, y in zip(a.token_ids, b.token_ids, strict=False)]
        at = same.index(False) if False in same else len(same)
        assert a.logprobs[:at] == pytest.approx(b.logprobs[:at], abs=1e-3)
        if at == len(same):
            assert (a.token_ids, a.text, a.finish) == (b.token_ids, b.text, b.finish)
            assert a.usage.completion_tokens == b.usage.completion_tokens
            continue
        exempt += 1
        with torch.no_grad():
            two = reference(torch.tensor([request.prompt + a.token_ids[:at]])).logits[0, -1].topk(2).values
        assert two[0] - two[1] < 1e-3
    assert exempt <= 2


PROBLEMS = (
    "What is 17 * 23?",
    "A train travels 120 km in 1.5 hours. What is its average speed in km/h?",
    "Find the sum of the first 20 positive integers.",
    "Solve for x: 3x + 7 = 31.",
    "What is the greatest common divisor of 84 and 126?",
    "How many diagonals does a convex polygon with 10 sides have?",
    "What is the remainder when 2^10 is divided by 7?",
    "The sides of a right triangle are 9 and 12. How long is its hypotenuse?",
)


async def test_greedy_solutions_are_those_of_the_embedded_engine(engine):
    """Character for character, however the server was started: with ``--generation-config vllm`` it has no sampling
    defaults of the model's, without it the requests leave it nothing to decide."""
    embedded, tokenizer = EmbeddedEngine.load(MODEL, slots=8, threads=1), ChatTokenizer.load(MODEL)
    asked = [Request(tuple(tokenizer.prompt_ids((Message("user", p),))), GREEDY) for p in PROBLEMS]
    theirs = await asyncio.gather(*(engine.complete(r) for r in asked))
    ours = await asyncio.gather(*(embedded.complete(r) for r in asked))
    await embedded.close()
    assert [a.text for a in theirs] == [a.text for a in ours]
    assert [a.finish for a in theirs] == [a.finish for a in ours]
    assert [a.token_ids for a in theirs] == [a.token_ids for a in ours]
    for answer in theirs:
        if answer.finish is Finish.STOP:
            assert answer.token_ids[-1] in end_ids(tokenizer)
            assert not answer.text.endswith(tokenizer.decode(answer.token_ids[-1:]))
    assert any(a.finish is Finish.STOP for a in theirs)


async def test_a_chat_answer_is_that_of_the_same_prompt(engine):
    """Rendered by the server: a model whose template is its own says the same as when it is given the ids."""
    chat = HTTPEngine(URL, engine.model, tokenizer=engine.tokenizer, api="chat")
    tokenizer = ChatTokenizer.load(MODEL)
    ids = tuple(tokenizer.prompt_ids((Message("user", PROBLEMS[3]),)))
    assert (await chat.complete(Request(PROBLEMS[3], GREEDY))).text == (
        await engine.complete(Request(ids, GREEDY))
    ).text
    await chat.close()


@pytest.mark.parametrize("tool_format", ["tags", "fences", "tool_calls"])
async def test_solutions_with_code_over_turns(engine, tool_format):
    """Each way of calling code: the conversation is taken in all its turns, and the record is one turn in tags."""
    chat, tokenizer = HTTPEngine(URL, engine.model, tokenizer=engine.tokenizer, api="chat"), ChatTokenizer.load(MODEL)
    assert (await chat.probe()).continues
    settings = RolloutSettings(max_tokens=500, code_seconds=60.0, tool_format=tool_format)
    template = load_template(FORMATS[tool_format].prompt)
    async with LocalSandbox(spares=1) as sandbox:
        outcomes = await asyncio.gather(*(
            roll_out(
                chat,
                tokenizer,
                template.messages(problem=problem, total_code_executions=3),
                settings,
                seed=number,
                key=str(number),
                sandbox=sandbox,
                budget=3,
            )
            for number, problem in enumerate(PROBLEMS)
        ))  # fmt: skip
    await chat.close()
    for out in outcomes:
        assert out.finish in ("stop", "length", "budget", "invented", "repetition", "cut")
        parts = [segment.kind for segment in out.transcript.segments()]
        assert parts.count(Kind.OUTPUT) == parts.count(Kind.NOTICE) == out.cost.code_calls
    if tool_format == "fences":
        assert sum(out.cost.code_calls for out in outcomes) >= 4


async def test_prefixes_are_reused_when_a_conversation_goes_on(engine):
    """The context of the next turn is the ids of the last one and what the runner adds."""
    turn = Sampling(max_tokens=40, temperature=1.0, seed=1)
    starts = [p * 4 for p in prompts(8)]
    first = await asyncio.gather(
        *(engine.complete(Request(p, turn, conversation=str(i))) for i, p in enumerate(starts))
    )
    known = [(*p, *a.token_ids) for p, a in zip(starts, first, strict=True)]
    longer = [(*k, *range(310, 340)) for k in known]
    second = await asyncio.gather(
        *(engine.complete(Request(p, turn, conversation=str(i))) for i, p in enumerate(longer))
    )
    assert sum(a.usage.cached_tokens for a in second) >= 0.9 * sum(map(len, known))


async def test_stop_strings_limits_seeds_and_streams(engine):
    prompt = prompts(1)[0]
    sampling = Sampling(max_tokens=80, temperature=1.0, seed=5)
    free = await engine.complete(Request(prompt, sampling))
    assert (await engine.complete(Request(prompt, sampling))).token_ids == free.token_ids
    stop = free.text[len(free.text) // 2 : len(free.text) // 2 + 3]
    kept = await engine.complete(Request(prompt, Sampling(max_tokens=80, temperature=1.0, seed=5, stop=(stop,))))
    assert (kept.finish, kept.stop, kept.text) == (Finish.STOP, stop, free.text[: free.text.index(stop) + len(stop)])
    assert kept.token_ids == free.token_ids[: len(kept.token_ids)]
    cut = Sampling(max_tokens=80, temperature=1.0, seed=5, stop=(stop,), keep_stop=False)
    assert (await engine.complete(Request(prompt, cut))).text == free.text[: free.text.index(stop)]
    *chunks, last = [c async for c in engine.stream(Request(prompt, sampling))]
    assert "".join(c.text for c in (*chunks, last)) == last.completion.text == free.text
    assert last.completion.token_ids == free.token_ids
    late = await engine.complete(Request(prompt, Sampling(max_tokens=800, temperature=1.0), time_limit=0.3))
    assert late.finish in (Finish.TIME, Finish.STOP)
    limit = engine.capabilities.max_context
    full = await engine.complete(Request(tuple([400] * (limit - 3)), Sampling(max_tokens=50, temperature=1.0)))
    assert len(full.token_ids) <= 3
    with pytest.raises(ContextOverflow):
        await engine.complete(Request(tuple([400] * limit)))
