"""The compiled decoder against the torch one, and against itself in other batches: there, to the last bit."""

import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch

from nemo_openmath.inference.embedded import compiled as compiled_module
from nemo_openmath.inference.embedded import kernels as kernels_module
from nemo_openmath.inference.embedded.compiled import CompiledDecoder, compile_decoder
from nemo_openmath.inference.embedded.decoder import Decoder, PrefillChunk
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from tests.support.models import save_random

LENGTHS = (1, 16, 17, 63, 64, 65, 200)
MODELS = [
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "vocab_size": 509}),
]
compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


# threads; whether they divide the matrices instead of the rows. Seven could take more rows than their scratch holds
WAYS = ((1, False), (3, False), (3, True), (7, True))


def compiled(path, threads: int = 1, wide: bool = False, slots: int = 8) -> CompiledDecoder:
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(compiled_module, "LARGE_BYTES", 0)
        decoder = compile_decoder(load_weights(path), slots, threads)
    assert decoder is not None
    assert (decoder._few > 0) == wide
    assert decoder._few <= decoder._kernels.most_wide
    return decoder


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
