"""The compiled step against the torch step: the same logits at unequal lengths."""

import shutil

import pytest
import tiny
import torch

from nemo_openmath.engines.embedded.decoder import Decoder, Segment
from nemo_openmath.engines.embedded.weights import load_weights

LENGTHS = (1, 16, 17, 63, 64, 65, 200)


def step(path, compiled: bool, threads: int = 1) -> tuple[torch.Tensor, Decoder]:
    import numpy as np

    with torch.inference_mode():
        decoder = Decoder(load_weights(path), len(LENGTHS) + 1, threads, compiled)
        for row, length in enumerate(LENGTHS):
            decoder.prefill([Segment(row, 0, np.arange(row, row + length) % 500)])
            decoder.activate(row, length)
            decoder.positions[row] = length
            decoder.tokens[row] = row + 3
        for _ in range(2):  # twice: the second sees what the first wrote
            logits = decoder.decode(len(LENGTHS), max(LENGTHS) + 2)[: len(LENGTHS)].clone()
            decoder.positions[: len(LENGTHS)] += 1
    return logits, decoder


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("kind", "changes"), [("qwen2", {}), ("qwen3", {"head_dim": 32, "num_key_value_heads": 1})])
def test_compiled_step_is_the_torch_step(tmp_path, kind, changes):
    path = tiny.save_model(tmp_path / "m", kind, **changes)
    expected, _ = step(path, compiled=False)
    for threads in (1, 3):
        actual, decoder = step(path, compiled=True, threads=threads)
        assert decoder.kernels is not None
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


def test_without_compiler_torch_decodes(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    logits, decoder = step(tiny.save_model(tmp_path / "m"), compiled=True)
    assert decoder.kernels is None
    assert logits.isfinite().all()
