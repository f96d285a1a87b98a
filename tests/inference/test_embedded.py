"""The embedded engine against transformers, against itself in other batches, and at its limits."""

import asyncio
import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_openmath.core.engine import ContextOverflow, EngineError, Finish, InvalidRequest, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.embedded.kernels import load_kernels
from nemo_openmath.inference.embedded.sampling import RowSampling, sample, sample_on_device, uniforms
from tests.inference.exact import exact
from tests.support.models import save_random
from tests.support.waiting import until


def prompts(n: int, longest: int = 120, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, 500, rng.integers(2, longest)).tolist()) for _ in range(n)]


@pytest.fixture
async def engine(model_dir):
    engine = EmbeddedEngine.load(model_dir, slots=6, threads=1)
    yield engine
    await engine.close()


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("qwen3", {"head_dim": 32, "attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}, "attention_bias": True}),
    ],
)
async def test_greedy_is_that_of_transformers(tmp_path, kind, changes):
    """Token for token where transformers' two best logits differ by at least 1e-4; more requests than slots, so that
    rows are refilled, moved and shared on the way."""
    from transformers import AutoModelForCausalLM

    path = save_random(tmp_path / "m", kind, **changes)
    asked = prompts(9, seed=1)
    engine = EmbeddedEngine.load(path, slots=4, threads=1)
    answers = await asyncio.gather(
        *(engine.complete(Request(p, Sampling(max_tokens=10 + 7 * (i % 4), temperature=0, logprobs=True)))
          for i, p in enumerate(asked))
    )  # fmt: skip
    await engine.close()
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    exempt = 0
    for prompt, answer in zip(asked, answers, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
        two = logits.topk(2).values
        sure = two[:, 0] - two[:, 1] >= 1e-4
        ids = torch.tensor(answer.token_ids)
        assert torch.equal(logits.argmax(-1)[sure], ids[sure])
        exempt += int((~sure).sum())
        expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=2e-4, rtol=0)
    assert exempt <= 2
    with torch.no_grad():
        made = reference.generate(torch.tensor(asked[:1]), max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert tuple(made[0, len(asked[0]) :].tolist()) == answers[0].token_ids


async def test_seeded_draws_do_not_depend_on_the_batch(engine):
    """The same request alone, among others, in another order, and with its prompt from the cache."""
    requests = [
        Request(
            p, Sampling(max_tokens=25, temperature=0.5 + i / 10, top_p=0.9, top_k=i % 3 * 20, seed=i, logprobs=True)
        )
        for i, p in enumerate(prompts(12, seed=2))
    ]
    together = await asyncio.gather(*(engine.complete(r) for r in requests))
    backwards = await asyncio.gather(*(engine.complete(r) for r in reversed(requests)))
    for request, a, b in zip(requests, together, reversed(backwards), strict=True):
        alone = await engine.complete(request)
        assert a.token_ids == b.token_ids == alone.token_ids
        assert a.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert len({a.token_ids[:5] for a in together}) > 6  # they are not all the same anyway


def draw_in_torch(logits: torch.Tensor, rows: RowSampling, u: np.ndarray) -> np.ndarray:
    return sample(logits, rows, u)


def draw_on_device(logits: torch.Tensor, rows: RowSampling, u: np.ndarray) -> np.ndarray:
    return sample_on_device(logits, rows, u)


def draw_compiled(logits: torch.Tensor, rows: RowSampling, u: np.ndarray) -> np.ndarray:
    if (kernels := load_kernels(16, 2, 1)) is None:
        pytest.skip("no C compiler")
    n, vocab = logits.shape
    logits, tokens = logits.contiguous(), np.empty(n, np.int64)
    room = np.empty(kernels.room_size(vocab), np.float32)
    given = [a.ctypes.data for a in (rows.temperature, rows.top_p, rows.top_k, rows.min_p, u)]
    kernels.sample(logits.data_ptr(), vocab, vocab, *given, 0, n, room.ctypes.data, tokens.ctypes.data, None)
    return tokens


@pytest.mark.parametrize("draw", [draw_in_torch, draw_on_device, draw_compiled])
@pytest.mark.parametrize(
    ("vocab", "temperature", "top_p", "top_k", "min_p"),
    [
        (64, 1.0, 1.0, 0, 0.0),
        (64, 0.7, 0.95, 0, 0.0),
        (6000, 0.5, 0.9, 0, 0.0),
        (61, 1.3, 0.8, 12, 0.1),
        (6000, 1.0, 0.999, 400, 0.0),
    ],
)
def test_sampled_frequencies_pass_chi_square(draw, vocab, temperature, top_p, top_k, min_p):
    from scipy.stats import chisquare

    n = 20_000 if vocab < 1000 else 4000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 3
    u = uniforms(7, n)
    counts = np.zeros(vocab)
    for part in np.array_split(u, 20):
        full = [np.full(len(part), x, t) for x, t in ((temperature, "f4"), (top_p, "f4"), (top_k, "i8"), (min_p, "f4"))]
        counts += np.bincount(draw(logits.expand(len(part), -1), RowSampling(*full), part), minlength=vocab)
    expected = exact(logits.numpy(), temperature, top_p, top_k, min_p) * n
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    observed = [*counts[common], counts[(expected > 0) & ~common].sum()]
    wanted = [*expected[common], expected[(expected > 0) & ~common].sum()]
    if wanted[-1] < 5:
        observed, wanted = [*observed[:-2], sum(observed[-2:])], [*wanted[:-2], sum(wanted[-2:])]
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("vocab", [5, 64, 1003])
def test_all_samplers_draw_the_same(vocab):
    """Every mix of options, ties and a nearly sure token among them; the same uniform numbers."""
    rng = np.random.default_rng(vocab)
    n = 600
    logits = rng.normal(size=(n, vocab)).astype(np.float32) * rng.choice([0.1, 3, 30], (n, 1)).astype(np.float32)
    logits[::5] = logits[::5].round()
    rows = RowSampling(
        rng.choice([0, 0.3, 1, 2], n).astype(np.float32),
        rng.choice([1, 0.95, 0.5, 1e-6], n).astype(np.float32),
        rng.choice([0, 1, 3, 40, 2000], n),
        rng.choice([0, 0.02, 1], n).astype(np.float32),
    )
    u = rng.random(n)
    expected = sample(torch.from_numpy(logits), rows, u)
    for draw in (draw_compiled, draw_on_device):
        same = draw(torch.from_numpy(logits), rows, u) == expected
        assert same.mean() > 0.998  # but for draws at the edge between two tokens, where rounding decides


async def test_engine_draws_from_the_models_distribution(engine, model_dir):
    from scipy.stats import chisquare
    from transformers import AutoModelForCausalLM

    prompt = prompts(1, seed=5)[0]
    answers = await asyncio.gather(
        *(
            engine.complete(Request(prompt, Sampling(max_tokens=1, temperature=0.8, top_p=0.9, seed=s)))
            for s in range(800)
        )
    )
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model_dir)(torch.tensor([prompt])).logits[0, -1].numpy()
    expected = exact(logits, 0.8, 0.9, 0, 0.0) * len(answers)
    counts = np.bincount([a.token_ids[0] for a in answers], minlength=len(expected))
    common = expected >= 5
    assert counts[expected == 0].sum() == 0
    rest = [counts[~common].sum()], [expected[~common].sum()]
    keep = slice(None) if rest[1][0] >= 5 else slice(0)
    observed, wanted = [*counts[common], *rest[0][keep]], np.array([*expected[common], *rest[1][keep]])
    assert chisquare(observed, wanted * sum(observed) / wanted.sum()).pvalue > 1e-3


async def test_continuing_conversations_recompute_only_what_is_new(engine):
    """More conversations than slots: their prefixes wait in the store."""
    starts = prompts(20, seed=4, longest=100)
    turn = Sampling(max_tokens=20, temperature=1.0)
    first = await asyncio.gather(
        *(engine.complete(Request(p, turn, conversation=f"c{i}")) for i, p in enumerate(starts))
    )
    longer = [(*p, *a.token_ids, *range(40, 60)) for p, a in zip(starts, first, strict=True)]
    second = await asyncio.gather(
        *(engine.complete(Request(p, turn, conversation=f"c{i}")) for i, p in enumerate(longer))
    )
    for p, a, b in zip(starts, first, second, strict=True):
        known = len(p) + len(a.token_ids) - 1  # the last token was drawn, not computed
        assert b.usage.cached_tokens == (known if known >= 16 else 0)


async def test_a_loop_with_tools_that_is_over_leaves_only_its_prompt(engine):
    """Its context waits in the store while the tool works; then nothing of it but what other samples begin with."""
    store, prompt = engine._scheduler._batch.store, tuple(range(10, 90))
    free = await engine.complete(Request(prompt, Sampling(max_tokens=40, temperature=1.0, seed=4)))
    assert [len(p.ids) for p in store._entries.values()] == [80]
    turn = Sampling(max_tokens=40, temperature=1.0, seed=4, stop=(free.text[20:24],))
    stopped = await engine.complete(Request(prompt, turn, "c"))
    context = (*prompt, *stopped.token_ids)
    assert sorted(len(p.ids) for p in store._entries.values()) == [80, len(context) - 1]
    turn = Sampling(max_tokens=8, temperature=1.0, stop=("never said",))
    assert (await engine.complete(Request(context, turn, "c"))).usage.cached_tokens == len(context) - 1
    assert sorted(len(p.ids) for p in store._entries.values())[:1] == [80]
    assert "c" not in store._by_conversation


async def test_samples_of_one_prompt_compute_it_once(engine):
    prompt = prompts(1, seed=6)[0] + tuple(range(30, 90))
    answers = await asyncio.gather(
        *(engine.complete(Request(prompt, Sampling(max_tokens=12, temperature=1, seed=s))) for s in range(10))
    )
    assert sorted(a.usage.cached_tokens for a in answers) == [0] + [len(prompt) - 1] * 9
    again = await engine.complete(Request(prompt, Sampling(max_tokens=12, temperature=1, seed=3)))
    assert again.token_ids == answers[3].token_ids
    assert again.usage.cached_tokens == len(prompt) - 1


async def test_stop_strings(engine):
    prompt = prompts(1, seed=8)[0]
    sampling = Sampling(max_tokens=60, temperature=1.0, seed=5)
    free = await engine.complete(Request(prompt, sampling))
    stop = free.text[len(free.text) // 2 : len(free.text) // 2 + 3]
    before = free.text[: free.text.index(stop)]
    kept = await engine.complete(Request(prompt, Sampling(max_tokens=60, temperature=1.0, seed=5, stop=("zzzz", stop))))
    assert (kept.text, kept.stop, kept.finish) == (before + stop, stop, Finish.STOP)
    assert kept.token_ids == free.token_ids[: len(kept.token_ids)]
    assert engine.tokenizer.decode(kept.token_ids).startswith(kept.text)
    assert stop not in engine.tokenizer.decode(kept.token_ids[:-1])
    cut_sampling = Sampling(max_tokens=60, temperature=1.0, seed=5, stop=(stop,), keep_stop=False)
    cut = await engine.complete(Request(prompt, cut_sampling))
    assert (cut.text, cut.stop) == (before, stop)
    assert cut.usage.completion_tokens == len(kept.token_ids)
    pieces = [c async for c in engine.stream(Request(prompt, cut_sampling))]
    assert "".join(p.text for p in pieces) == before


async def test_end_of_turn_is_in_the_ids_and_not_in_the_text(tmp_path):
    path = save_random(tmp_path / "m", eos_token_id=list(range(3, 60)))  # ends soon, at any of these
    engine = EmbeddedEngine.load(path, slots=2, threads=1)
    answer = await engine.complete(Request(prompts(1)[0], Sampling(max_tokens=300, temperature=1.5, seed=1)))
    await engine.close()
    assert (answer.finish, answer.stop) == (Finish.STOP, None)
    assert answer.token_ids[-1] in range(3, 60)
    assert answer.text == engine.tokenizer.decode(answer.token_ids[:-1])


async def test_stream_is_the_completion_in_pieces(engine):
    request = Request(prompts(1, seed=9)[0], Sampling(max_tokens=50, temperature=1.0, seed=2))
    whole = await engine.complete(request)
    chunks = [c async for c in engine.stream(request)]
    assert chunks[-1].completion is not None
    assert "".join(c.text for c in chunks) == whole.text == chunks[-1].completion.text
    assert tuple(i for c in chunks for i in c.token_ids) == whole.token_ids
    assert len(chunks) > 20


async def test_cancelling_frees_the_slot(engine, monkeypatch):
    batch, told = engine._scheduler._batch, threading.Event()
    turn = batch.turn

    def turn_when_told(now, *, some_cancelled):
        if batch.statistics.steps:  # a token has been streamed: nothing ends by itself until all are cancelled
            told.wait()
        turn(now, some_cancelled=some_cancelled)

    monkeypatch.setattr(batch, "turn", turn_when_told)
    long = Sampling(max_tokens=400, temperature=1.0, seed=0)
    tasks = [asyncio.create_task(engine.complete(Request(p[:9], long))) for p in prompts(20)]
    stream = engine.stream(Request((5, 6, 7), long))
    await anext(stream)
    for task in tasks:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await stream.aclose()
    told.set()
    await until(lambda: batch.idle)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert engine.statistics.finished[Finish.CANCELLED] == 21


class Ticks:
    """A clock that is a second later whenever it is read."""

    def __init__(self):
        self.time = 0.0

    def now(self) -> float:
        self.time += 1
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


async def test_time_limit_returns_what_there_is(model_dir):
    engine = EmbeddedEngine.load(model_dir, slots=2, threads=1, clock=Ticks())
    sampling = Sampling(max_tokens=500, temperature=1.0)
    whole = await engine.complete(Request((5, 6, 7), sampling))
    answer = await engine.complete(Request((5, 6, 7), sampling, time_limit=20))
    assert (whole.finish, answer.finish) == (Finish.STOP, Finish.TIME)
    assert 10 < len(answer.token_ids) <= 20 < len(whole.token_ids)
    assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert answer.text == engine.tokenizer.decode(answer.token_ids)
    await engine.close()


async def test_full_context_ends_with_length(engine):
    limit = engine.capabilities.max_context
    answer = await engine.complete(Request(tuple([7] * (limit - 3)), Sampling(max_tokens=50, temperature=1.0)))
    assert (answer.finish, len(answer.token_ids)) == (Finish.LENGTH, 3)
    with pytest.raises(ContextOverflow):
        await engine.complete(Request(tuple([7] * limit)))


@pytest.mark.parametrize(
    "request_",
    [
        Request(()),
        Request((1, 99999)),
        Request((1, 2**40)),
        Request((1, 2), Sampling(top_p=0)),
        Request((1,), Sampling(max_tokens=0)),
        Request((1,), Sampling(temperature=1e39)),
    ],
)
async def test_wrong_requests_are_refused(engine, request_):
    with pytest.raises(InvalidRequest):
        await engine.complete(request_)
    with pytest.raises(InvalidRequest):
        await anext(engine.stream(request_))


async def test_numbers_of_any_size_leave_the_engine_alive(engine):
    greedy = await engine.complete(Request((5, 6, 7), Sampling(max_tokens=8, temperature=0)))
    for odd in (
        {"top_k": 2**63}, {"top_p": 1e-60}, {"min_p": 1.0}, {"seed": -(2**70)}, {"temperature": 1e6, "seed": 2**64},
        {"temperature": 1e-45}, {"temperature": 1e-6}, {"max_tokens": 2**70, "top_k": 1},
    ):  # fmt: skip
        sampling = Sampling(**{"max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "logprobs": True} | odd)
        answer = await engine.complete(Request((5, 6, 7), sampling))
        assert answer.logprobs is not None
        assert np.isfinite(answer.logprobs).all()
        if odd.keys() & {"top_p", "min_p"} or sampling.temperature < 1e-5 or sampling.top_k == 1:
            assert answer.token_ids[:8] == greedy.token_ids
    assert engine.alive


async def test_a_stream_stops_within_a_token(engine):
    """What a token says behind the stop string is in neither the stream nor the completion; logprobs come in time."""
    prompt, tried = prompts(1, seed=9)[0], 0
    for seed in range(20):
        sampling = Sampling(max_tokens=50, temperature=1.0, seed=seed, logprobs=True)
        free = await engine.complete(Request(prompt, sampling))
        before = ""
        for text in (engine.tokenizer.decode([i]) for i in free.token_ids):
            if len(text) > 3 and text.isascii() and text[:2] not in before + text[0] and tried < 4:
                tried += 1
                for keep in (True, False):
                    stopped = replace(sampling, stop=(text[:2],), keep_stop=keep)
                    chunks = [c async for c in engine.stream(Request(prompt, stopped))]
                    whole = chunks[-1].completion
                    assert whole.text == before + text[:2] * keep == "".join(c.text for c in chunks)
                    assert [p for c in chunks for p in c.logprobs][: len(whole.token_ids)] == list(whole.logprobs)
            before += text
    assert tried


async def test_close_ends_everything_pending(model_dir):
    engine = EmbeddedEngine.load(model_dir, slots=2, threads=1)
    sampling = Sampling(max_tokens=400)
    tasks = [asyncio.create_task(engine.complete(Request((5, i), sampling))) for i in range(3, 500)]  # a second's work
    await until(lambda: len(engine._scheduler._batch.running) == 2)
    await engine.close()
    finished = [t.finish for t in await asyncio.gather(*tasks)]
    assert finished[-1] is Finish.CANCELLED  # had no slot yet
    assert set(finished) <= {Finish.CANCELLED, Finish.STOP, Finish.LENGTH}
    assert not engine.alive
    with pytest.raises(EngineError):
        await engine.complete(Request((1, 2)))


async def test_a_closed_engine_holds_no_cache(model_dir):
    """Whoever still holds the engine, and without waiting for the garbage collector."""
    engine = EmbeddedEngine.load(model_dir, slots=2, threads=1)
    await engine.complete(Request(tuple(range(3, 60)), Sampling(max_tokens=4), "c"))
    batch = engine._scheduler._batch
    decoder, store = weakref.ref(batch.decoder), batch.store
    del batch
    assert store._entries
    gc.disable()
    try:
        await engine.close()
        assert decoder() is None
        assert not store._entries
    finally:
        gc.enable()


def test_models_it_does_not_compute_are_named(tmp_path):
    path = save_random(tmp_path / "m", "llama", mlp_bias=True)
    with pytest.raises(UserError, match="mlp_bias is True: biases in the MLP"):
        EmbeddedEngine.load(path)
    with pytest.raises(UserError, match=r"config\.json"):
        EmbeddedEngine.load(tmp_path)
