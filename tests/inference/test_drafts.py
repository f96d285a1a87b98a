"""Guessed tokens: verified in one pass, with the bits, draws and ends of plain decoding, and only where it pays."""

import asyncio
import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from aiohttp import ClientSession

from nemo_openmath.core.engine import Finish, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.embedded import drafters as drafters_module
from nemo_openmath.inference.embedded import engine as engine_module
from nemo_openmath.inference.embedded.decoder import DraftTree, PrefillChunk
from nemo_openmath.inference.embedded.kernels import load_kernels
from nemo_openmath.inference.embedded.redrafter import CompiledSearch, TorchSearch
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from nemo_openmath.inference.serving.openai_server import OpenAIServer
from nemo_openmath.models.drafter_texts import save_texts
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from tests.inference.decoders import MODELS, WAYS, compiled
from tests.inference.exact import all_continuations, chi_square
from tests.inference.guessing import RandomTrees, guessing, requests, result, seeded
from tests.support.models import save_random

compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def keys_of(decoder, row: int, length: int) -> torch.Tensor:
    """Keys [layer, head, length, head_dim] and values of a row, position by position."""
    keys, values = decoder.save_row(row, length)
    if not isinstance(decoder, TorchDecoder):
        keys = keys.unflatten(-1, (-1, 32)).transpose(-1, -2).flatten(2, 3)[:, :, :length]
    return torch.stack([keys, values])


def random_tree(draw, row: int, start: int, text: np.ndarray, nodes: int) -> tuple[DraftTree, list[int]]:
    """A tree after text[:start], and its path of right guesses; wrong ones are beside and before them."""
    tokens, parents, path = [int(text[start])], [-1], [0]
    for node in range(1, nodes):
        if draw.random() < 0.5 and start + len(path) < len(text):
            tokens.append(int(text[start + len(path)]))
            parents.append(path[-1])
            path.append(node)
        else:
            tokens.append(1)  # is in no text
            parents.append(int(draw.integers(node)))
    return DraftTree(row, start, np.array(tokens, np.int32), np.array(parents)), path


def check_trees(decoder, equal) -> None:
    """Trees over the border of a span, chains, and plain rows in one pass, against one token after the other."""
    draw = np.random.default_rng(1)
    text = draw.integers(3, 500, 110).astype(np.int32)
    starts = (1, 26, 31, 40, 61, 64)
    decoder.keep_states()
    decoder.prefill([PrefillChunk(7, 0, text[:1])])
    plain = {0: decoder.states[0].clone()}
    logits = {}
    for at in range(1, 90):
        logits[at] = decoder.decode(np.array([7]), text[at : at + 1], np.array([at]))[0].clone()
        plain[at] = decoder.states[0].clone()
    for _ in range(3):
        decoder.prefill([PrefillChunk(row, 0, text[:start]) for row, start in enumerate(starts)])
        made = [random_tree(draw, row, start, text, int(draw.integers(2, 14))) for row, start in enumerate(starts[:-1])]
        made.append((DraftTree(5, 64, text[64:70]), list(range(6))))
        trees = [tree for tree, _ in made]
        got = decoder.verify(trees).clone()
        begin = 0
        for tree, path in made:
            for depth, node in enumerate(path):
                equal(got[begin + node], logits[tree.start + depth])
                equal(decoder.states[begin + node], plain[tree.start + depth])
            decoder.keep(tree.row, tree.start, path)
            length = tree.start + len(path)
            equal(keys_of(decoder, tree.row, length), keys_of(decoder, 7, length))
            drawn = [int(text[tree.start + 1 + path.index(node)]) if node in path else 0 for node in range(len(tree))]
            assert tree.path(drawn) == path
            begin += len(tree)


@compiler
@pytest.mark.parametrize(("kind", "changes"), MODELS)
@torch.inference_mode()
def test_the_nodes_of_a_tree_have_the_bits_of_plain_decoding(tmp_path, kind, changes):
    path = save_random(tmp_path / "m", kind, **changes)

    def equal(a, b):
        assert torch.equal(a, b)

    for way in WAYS:
        check_trees(compiled(path, *way), equal)


@torch.inference_mode()
def test_trees_in_torch_are_those_of_plain_decoding_up_to_rounding(tmp_path):
    weights = load_weights(save_random(tmp_path / "m", "qwen3", head_dim=32))
    check_trees(TorchDecoder(weights, 8), partial(torch.testing.assert_close, atol=1e-4, rtol=1e-5))


async def plain_answers(model, made, **options):
    engine = EmbeddedEngine.load(model, threads=1, drafter="none", **options)
    answers = await asyncio.gather(*(engine.complete(r) for r in made))
    await engine.close()
    return answers


@compiler
@pytest.mark.parametrize("slots", [1, 3, 16])
async def test_completions_are_those_of_plain_decoding(model_dir, slots):
    """With trees, chains and n-grams; more requests than slots, so that rows are moved and refilled on the way."""
    made = requests(40)
    plain = await plain_answers(model_dir, made, slots=16)
    assert {a.finish for a in plain} == {Finish.STOP, Finish.LENGTH}
    assert len({a.stop for a in plain}) > 2
    known = {r.prompt: a.token_ids for r, a in zip(made, plain, strict=True)}
    for chains in (False, True):
        engine = guessing(partial(RandomTrees, vocab=512, known=known, chains=chains), model_dir, slots=slots)
        answers = await asyncio.gather(*(engine.complete(r) for r in made))
        streamed = [c async for c in engine.stream(made[0])]
        await engine.close()
        assert list(map(result, answers)) == list(map(result, plain))
        assert result(streamed[-1].completion) == result(plain[0])
        statistics = engine.statistics
        assert statistics.drafted > sum(statistics.accepted) > statistics.generated_tokens / 5
        assert statistics.steps < statistics.generated_tokens


def guess_for_nothing(engine: EmbeddedEngine) -> None:
    """Let passes seem to cost the same with guesses and without, so that all likely ones are verified."""
    cost = engine._scheduler._batch._drafting.pace.cost
    cost.level, cost.measured = 1.0, lambda *_: None


@compiler
@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("name", ["ngram", "drafter"])
async def test_several_turns_at_once_are_those_of_plain_decoding(model_dir, tmp_path, name, slots):
    """Everything is asked for twice, so that n-grams know the second answers, and some of it with other ends."""
    made = requests(40)
    made += made + [replace(r, sampling=replace(r.sampling, stop=("a", "ti"))) for r in made[:20]]
    plain = await plain_answers(model_dir, made, slots=16)
    source = drafter(tmp_path / "d") if name == "drafter" else name
    engine = EmbeddedEngine.load(model_dir, threads=1, drafter=source, slots=slots)
    guess_for_nothing(engine)
    batch, calls = engine._scheduler._batch, []
    run = batch._turns.run

    def counted(*arguments):
        done = run(*arguments)
        calls.append(len(done.turns))
        return done

    batch._turns.run = counted
    answers = await asyncio.gather(*(engine.complete(r) for r in made))
    assert list(map(result, answers)) == list(map(result, plain))
    streamed = [c async for c in engine.stream(made[0])]
    await engine.close()
    assert result(streamed[-1].completion) == result(plain[0])
    statistics = engine.statistics
    assert statistics.generated_tokens == sum(a.usage.completion_tokens for a in [*plain, plain[0]])
    assert statistics.generated_tokens == statistics.row_steps + sum(statistics.accepted) + statistics.requests
    assert statistics.steps == sum(calls)
    assert max(calls) > 4
    assert statistics.drafted > sum(statistics.accepted) > statistics.generated_tokens / 6


@compiler
async def test_guesses_share_a_memory_that_is_too_small(model_dir):
    """Requests are paused and go on; nodes are counted while they are there, and left out where they do not fit."""
    made = [
        Request((i + 3, 7 + i), Sampling(max_tokens=400, temperature=1.0, seed=i, logprobs=True)) for i in range(12)
    ]
    plain = await plain_answers(model_dir, made, slots=8)
    known = {r.prompt: a.token_ids for r, a in zip(made, plain, strict=True)}
    few = {"slots": 8, "cache_mib": 1, "prefix_cache_bytes": 1 << 20}
    engine = guessing(partial(RandomTrees, vocab=512, known=known), model_dir, **few)
    batch = engine._scheduler._batch
    fits, most = batch.budget.fits, []

    def watched(*args, **options):
        good = fits(*args, **options)
        most.append(batch.decoder.memory_tokens().sum())
        return good

    batch.budget.fits = watched
    answers = await asyncio.gather(*(engine.complete(r) for r in made))
    await engine.close()
    assert list(map(result, answers)) == list(map(result, plain))
    assert engine.statistics.pauses > 0
    assert sum(engine.statistics.accepted) > 100
    assert max(most) <= batch.budget.tokens


@compiler
async def test_a_conversation_goes_on_from_the_same_keys_and_values(model_dir):
    """What a stop string leaves in the store is what plain decoding leaves there, to the last bit."""
    start = Request(tuple(range(10, 60)), Sampling(max_tokens=80, temperature=1.0, seed=3, stop=("call",)), "c")
    kept = []
    known = {}
    for source in ("plain", "guessed"):
        if source == "plain":
            engine = EmbeddedEngine.load(model_dir, slots=2, threads=1, drafter="none")
        else:
            engine = guessing(partial(RandomTrees, vocab=512, known=known), model_dir, slots=2)
        first = await engine.complete(start)
        (entry,) = engine._scheduler._batch.store._entries.values()
        keys = entry.keys.unflatten(-1, (-1, 32)).transpose(-1, -2).flatten(2, 3)[:, :, : len(entry.ids)]
        prompt = (*start.prompt, *first.token_ids, 30, 31)
        second = await engine.complete(Request(prompt, replace(start.sampling, max_tokens=30, stop=()), "c"))
        kept.append((first, entry.ids.tolist(), keys, entry.values, second))
        known |= {start.prompt: first.token_ids, prompt: second.token_ids}
        await engine.close()
    (first, ids, keys, values, second), (first_2, ids_2, keys_2, values_2, second_2) = kept
    assert first.stop == "call"
    assert (first, ids, second) == (first_2, ids_2, second_2)
    assert second.usage.cached_tokens == len(start.prompt) + len(first.token_ids) - 1
    assert torch.equal(keys, keys_2)
    assert torch.equal(values, values_2)
    assert sum(engine.statistics.accepted) > 10


@compiler
async def test_a_full_context_has_room_for_no_guess_beyond_it(model_dir):
    engine = guessing(partial(RandomTrees, vocab=512, nodes=40), model_dir, slots=2, max_context=64)
    answer = await engine.complete(Request(tuple(range(3, 60)), Sampling(max_tokens=50, temperature=0)))
    await engine.close()
    assert (answer.finish, len(answer.token_ids)) == (Finish.LENGTH, 7)


@compiler
async def test_guesses_leave_the_distribution_as_it_is(model_dir):
    """Of four tokens, against the product of transformers' probabilities, with guesses that are right now and then."""
    prompt, sampling = tuple(range(20, 50)), Sampling(max_tokens=4, temperature=1.3, top_k=3, top_p=0.98)
    expected = all_continuations(model_dir, prompt, sampling)
    known = {prompt: max(expected, key=lambda ids: expected[ids])}
    engine = guessing(partial(RandomTrees, vocab=512, known=known), model_dir, slots=16)
    drawn = Counter([c.token_ids for c in await seeded(engine, Request(prompt, sampling), range(1500))])
    await engine.close()
    assert 40 < len(expected) <= 81
    assert engine.statistics.accepted[1] > 20
    assert chi_square(drawn, expected) > 1e-3


@compiler
async def test_outcomes_are_learned_without_verifying(model_dir):
    """Guesses that were not worth a pass are held against the text all the same."""
    engine = guessing(partial(RandomTrees, vocab=512), model_dir, paced=True, slots=1)
    drafting = engine._scheduler._batch._drafting
    await engine.complete(Request((5, 6, 7), Sampling(max_tokens=200, temperature=1.0)))
    await engine.close()
    assert drafting.pace.chances.share[0] < 0.1


@compiler
async def test_only_large_compiled_models_guess_unless_asked(model_dir, monkeypatch):
    for large in (False, True):
        if large:
            monkeypatch.setattr(drafters_module, "LARGE_BYTES", 0)
        engine = EmbeddedEngine.load(model_dir, slots=1, threads=1)
        assert (engine._scheduler._batch._drafting is not None) == large
        await engine.close()
    monkeypatch.setattr(engine_module, "compile_decoder", lambda *_: None)
    engine = EmbeddedEngine.load(model_dir, slots=1, threads=1)
    assert engine._scheduler._batch._drafting is None
    await engine.close()


@compiler
async def test_torch_verifies_guesses_too(model_dir, monkeypatch):
    made = [r for r in requests(24) if r.sampling.temperature == 0]
    plain = await plain_answers(model_dir, made, slots=4)
    monkeypatch.setattr(engine_module, "compile_decoder", lambda *_: None)
    known = {r.prompt: a.token_ids for r, a in zip(made, plain, strict=True)}
    engine = guessing(partial(RandomTrees, vocab=512, known=known), model_dir, slots=4)
    answers = await asyncio.gather(*(engine.complete(r) for r in made))
    await engine.close()
    assert sum(engine.statistics.accepted) > 50
    assert [a.token_ids for a in answers] == [a.token_ids for a in plain]


def test_drafters_that_are_none_are_named(model_dir):
    with pytest.raises(UserError, match="drafter ngrams is no folder"):
        EmbeddedEngine.load(model_dir, drafter="ngrams")


def drafter(folder: Path, vocab: int = 512, hidden: int = 64, **shape) -> Path:
    """A random drafter of the model ``model_dir``, but sure of what it says."""
    torch.manual_seed(1)
    made = ReDrafter(DrafterShape(hidden, vocab, **{"layers": 1, "draft_tokens": 4} | shape))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
        if made.shape.recurrence == "linear":
            made.rnn_u.bias.zero_()
        if made.draft_ids is not None:
            made.draft_ids.copy_(3 * torch.arange(made.shape.draft_vocab) + 1)
    folder.mkdir()
    made.save(folder)
    return folder


@compiler
@pytest.mark.parametrize("shape", [{}, {"layers": 2, "draft_vocab": 100, "recurrence": "linear"}, {"layers": 0}])
@torch.inference_mode()
def test_beams_are_those_of_the_drafter(tmp_path, shape):
    """Its own search of one row, against those of many rows in torch and in C."""
    made = ReDrafter.load(drafter(tmp_path / "d", **shape))
    generator = torch.Generator().manual_seed(0)
    embedding, hidden = torch.randn(512, 64, generator=generator), torch.randn(40, 64, generator=generator)
    tokens = np.arange(40)
    kernels = load_kernels(32, 2, 2)
    for width in (1, 3):
        in_torch = TorchSearch(made, embedding, 4, width)(hidden.numpy(), tokens)
        in_c = CompiledSearch(made, embedding, 4, width, kernels)(hidden.numpy(), tokens)
        for ours, theirs in zip(in_c, in_torch, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
        for row in range(5):
            beams = made.beams(hidden[row], row, embedding, 4, width)
            for last, beam in enumerate(beams):
                path, at = [], last
                for step in (3, 2, 1, 0):
                    path.append(int(in_c[0][row, step, at]))
                    at = int(in_c[1][row, step, at])
                assert [row, *path[::-1]] == beam


@compiler
async def test_a_trained_drafter_changes_nothing_but_the_speed(model_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made = requests(30)
    plain = await plain_answers(model_dir, made, slots=16)
    folder = drafter(tmp_path / "d")
    for paced in (True, False):
        engine = EmbeddedEngine.load(model_dir, slots=5, threads=1, drafter=folder)
        if not paced:
            engine._scheduler._batch._turns = engine._scheduler._batch._drafting.pace = None
        answers = await asyncio.gather(*(engine.complete(r) for r in made))
        await engine.close()
        assert list(map(result, answers)) == list(map(result, plain))
    s = engine.statistics
    assert s.drafted > 100
    tokens = 1 + sum(s.accepted) / s.row_steps
    said = f"guessed tokens: {sum(s.accepted):,} of {s.drafted:,} were right, {tokens:.2f} tokens a step of a request"
    assert caplog.messages[-1] == said


@compiler
@pytest.mark.parametrize("several", [False, True], ids=["turn after turn", "several turns at once"])
async def test_the_drafter_reads_the_state_that_the_token_was_drawn_from(model_dir, tmp_path, several):
    """Behind prompts, steps and trees, in rows that move: each row's state is that of a fresh computation."""
    folder, seen = drafter(tmp_path / "d"), []
    engine = EmbeddedEngine.load(model_dir, slots=3, threads=1, drafter=folder)
    batch = engine._scheduler._batch
    table, run = batch._rows, batch._turns.run

    def watched(call):
        def watching(rows, *rest):
            seen.extend((table.ids[r, : table.length[r]].copy(), table.states[r].copy()) for r in rows)
            return call(rows, *rest)

        return watching

    if several:  # seven turns at most, so that many ends of trees are looked at
        guess_for_nothing(engine)
        batch._turns.run = watched(lambda rows, could_end, most: run(rows, could_end, min(most, 7)))
    else:
        batch._drafting._proposer.propose = watched(batch._drafting._proposer.propose)
        batch._turns = batch._drafting.pace = None
    sampling = Sampling(max_tokens=30 if several else 12, temperature=1.0)
    asked = [Request((i + 3, 5, 7), replace(sampling, seed=i)) for i in range(7)]
    await asyncio.gather(*(engine.complete(r) for r in asked * (3 if several else 1)))
    await engine.close()
    assert len(seen) > 20
    with torch.inference_mode():
        fresh = TorchDecoder(load_weights(model_dir), 1)
        fresh.keep_states()
        for ids, state in seen[:: 1 if several else 5]:
            fresh.prefill([PrefillChunk(0, 0, ids[:-1])])
            np.testing.assert_allclose(state, fresh.states[0].numpy(), atol=1e-4)


async def test_the_memory_of_a_drafter_is_counted(model_dir, tmp_path):
    """Weights or texts that fill what is free leave no room for keys and values."""
    for name in ("model", "texts"):
        folder = drafter(tmp_path / name)
        save_texts(folder, [np.zeros(9, np.int32)])
        engine = EmbeddedEngine.load(model_dir, slots=1, threads=1, drafter=folder)
        await engine.close()
        with (folder / f"{name}.safetensors").open("r+b") as file:
            file.truncate(1 << 43)  # 8 TiB, of which the disk holds nothing
        with pytest.raises(UserError, match="does not fit"):
            EmbeddedEngine.load(model_dir, slots=1, threads=1, drafter=folder)


def test_a_drafter_of_another_model_is_named(model_dir, tmp_path):
    other = drafter(tmp_path / "other", vocab=100)
    with pytest.raises(UserError, match="with 100 tokens and width 64; this model has 512 and 64"):
        EmbeddedEngine.load(model_dir, drafter=other)
    with pytest.raises(UserError, match=r"not a drafter's config\.json"):
        EmbeddedEngine.load(model_dir, drafter=model_dir)


async def test_a_drafter_of_another_model_of_the_same_sizes_is_told(model_dir, tmp_path, caplog):
    """It is slower and no worse."""
    mine = drafter(tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    for digest, told in (("", False), ("0123456789abcdef", True)):
        (mine / "config.json").write_text(json.dumps({**config, "model": digest}))
        caplog.clear()
        engine = EmbeddedEngine.load(model_dir, slots=1, threads=1, drafter=mine)
        await engine.close()
        assert ("was trained for another model" in caplog.text) is told
        assert engine.guesses == str(mine)


async def test_a_server_tells_how_many_guesses_were_right(model_dir):
    engine = guessing(partial(RandomTrees, vocab=512, known={(5, 6, 7): range(3, 60)}), model_dir, slots=1)
    async with OpenAIServer(engine) as server, ClientSession() as http:
        await engine.complete(Request((5, 6, 7), Sampling(max_tokens=20, temperature=0)))
        text = await (await http.get(f"{server.url}/metrics")).text()
    await engine.close()
    assert f"\nopenmath_draft_guesses_total {engine.statistics.drafted}\n" in text
    assert f"\nopenmath_draft_row_steps_total {engine.statistics.row_steps}\n" in text
    for place, right in enumerate(engine.statistics.accepted, 1):
        assert f'openmath_draft_right_total{{place="{place}"}} {right}\n' in text
