"""The compiled decoder against the torch one, and against itself in other batches: there, to the last bit."""

import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch

from nemo_openmath.inference.embedded import kernels as kernels_module
from nemo_openmath.inference.embedded.compiled import compile_decoder
from nemo_openmath.inference.embedded.decoder import Decoder, PrefillChunk
from nemo_openmath.inference.embedded.sampling import RowSampling
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from tests.inference.decoders import MODELS, WAYS, compiled
from tests.support.fake_cuda import fake_cuda
from tests.support.models import save_random

LENGTHS = (1, 16, 17, 63, 64, 65, 200)
compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def logits_of(decoder: Decoder) -> torch.Tensor:
    """Of prompts of unequal lengths, and of three more tokens each."""
    rows = np.arange(len(LENGTHS))
    made = [decoder.prefill([PrefillChunk(r, 0, np.arange(r, r + n) % 500) for r, n in enumerate(LENGTHS)]).clone()]
    for i in range(3):
        made.append(decoder.decode(rows, rows + 3 + i, np.array(LENGTHS) + i).clone())
    return torch.cat(made)


@compiler
@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_compiled_logits_are_those_of_torch(tmp_path, kind, changes):
    path = save_random(tmp_path / "m", kind, **changes)
    with torch.inference_mode():
        expected = logits_of(TorchDecoder(load_weights(path), 8))
        for way in WAYS:
            actual = logits_of(compiled(path, *way))
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


def test_a_gpu_computes_the_same_without_more_rows(tmp_path):
    """Prompts in two chunks, too, of which the second one looks back (a mask that flash attention knows by name)."""
    path, rows, chunk = save_random(tmp_path / "m", "qwen3", head_dim=32), np.arange(5), np.arange(9)
    with torch.inference_mode():
        here = TorchDecoder(load_weights(path), 5)
        with fake_cuda() as cuda:
            there = TorchDecoder(load_weights(path, device="cuda"), 5)
            assert (there.quantum, there.rows) == (1, 5)
            made = [
                [
                    d.prefill([PrefillChunk(r, 0, chunk + r) for r in rows[1:]]),
                    d.prefill([PrefillChunk(0, 0, chunk), PrefillChunk(2, 9, chunk * 2)]),
                    d.decode(rows, rows + 3, np.array([9, 9, 18, 9, 9])),
                ]
                for d in (here, there)
            ]
            assert cuda.devices_in_use == {0}
            options = RowSampling(*(np.full(5, x, t) for x, t in ((1.0, "f4"), (0.9, "f4"), (0, "i8"), (0.0, "f4"))))
            drawn = [
                d.sample(logits[-1], options, np.linspace(0, 0.99, 5), True)
                for d, logits in zip((here, there), made, strict=True)
            ]
        for ours, theirs in zip(*made, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-5)
    assert drawn[0][0].tolist() == drawn[1][0].tolist()
    np.testing.assert_allclose(drawn[0][1], drawn[1][1], atol=1e-4)


@pytest.mark.parametrize(("kind", "changes"), [*MODELS[:2], ("qwen2", {"head_dim": 8, "hidden_size": 128})])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(tmp_path, kind, changes):
    """Each token's logits at the same text, prompt and decoding: norms and scale are apart, scores are float32."""
    from transformers import AutoModelForCausalLM

    path = save_random(tmp_path / "m", kind, **changes)
    texts = torch.randint(3, 500, (8, 48), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(path).bfloat16().float().eval()
    with torch.inference_mode():
        exact = reference(texts).logits[:, 7:]
        theirs = reference.bfloat16()(texts).logits[:, 7:].float()
        decoder = TorchDecoder(load_weights(path, dtype=torch.bfloat16), 8)
        made = [decoder.prefill([PrefillChunk(r, 0, texts[r, :8].numpy()) for r in range(8)]).float()]
        for at in range(8, 48):
            made.append(decoder.decode(np.arange(8), texts[:, at].numpy(), np.full(8, at)).float())
        ours = torch.stack(made, 1)
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()
    greedy = exact.argmax(-1)
    assert (ours.argmax(-1) == greedy).float().mean() >= (theirs.argmax(-1) == greedy).float().mean() - 0.01


@compiler
@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_a_token_has_the_same_bits_however_it_is_computed(tmp_path, kind, changes):
    """In one prompt, in parts, token by token, alone and among others, and from a moved, copied or saved cache."""
    path = save_random(tmp_path / "m", kind, **changes)
    ids = np.random.default_rng(0).integers(3, 500, 130).astype(np.int32)
    seen = []
    with torch.inference_mode():
        for way in WAYS:
            d = compiled(path, *way)
            seen.append(d.prefill([PrefillChunk(0, 0, ids)]).clone())
            d.prefill([PrefillChunk(1, 0, ids[:100]), PrefillChunk(2, 0, ids[:7]), PrefillChunk(4, 0, ids[3:50])])
            seen.append(d.prefill([PrefillChunk(1, 100, ids[100:]), PrefillChunk(2, 7, ids[7:])]).clone())
            d.prefill([PrefillChunk(3, 0, ids[:109])])
            d.move_row(3, 5, 109)
            d.copy_row(5, 6, 109)
            d.load_row(7, *d.save_row(6, 109), 109)
            for rows in ([5], [5, 6], [0, 1, 2, 3, 4, 5, 6, 7]):
                for at in range(109, 130):
                    tokens = np.where(np.isin(rows, (5, 6, 7)), ids[at], at)
                    last = d.decode(np.array(rows), tokens, np.full(len(rows), at))
                seen.append(last[[i for i, r in enumerate(rows) if r in (5, 6, 7 if len(rows) > 2 else 5)]].clone())
    for logits in seen:
        assert torch.equal(logits, seen[0].expand_as(logits))


@compiler
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_without_a_head_of_their_own(tmp_path, threads):
    """Three KV heads, and more rows wanted than threads: parts of unequal size, some of them empty."""
    path = save_random(tmp_path / "m", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    segments = [PrefillChunk(r, 0, np.arange(5, 7 + r)) for r in range(5)]
    with torch.inference_mode():
        alone, wide = compiled(path).prefill(segments), compiled(path, threads, True).prefill(segments)
    assert torch.equal(alone, wide)


def test_a_team_is_what_the_system_allows(monkeypatch):
    """A thread that cannot start is known before anybody waits for it."""
    left = 2

    class Scarce(threading.Thread):
        def start(self):
            nonlocal left
            if left == 0:
                raise RuntimeError("can't start new thread")
            left -= 1
            super().start()

    monkeypatch.setattr(kernels_module, "Thread", Scarce)
    team = kernels_module.Team(8)
    assert len(team) == 3
    meeting, met = threading.Barrier(3), []

    def work(i: int) -> None:
        meeting.wait(20)
        met.append(i)
        if i == 2:
            raise ValueError("told to the caller")

    with pytest.raises(ValueError, match="told"):
        team.run([partial(work, i) for i in range(3)])
    assert sorted(met) == [0, 1, 2]
    team.run([partial(met.append, 3)])
    assert met[-1] == 3


def test_without_compiler_torch_decodes(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = load_weights(save_random(tmp_path / "m"))
    assert compile_decoder(weights, 8, 1) is None
    with torch.inference_mode():
        assert logits_of(TorchDecoder(weights, 8)).isfinite().all()
