"""Compiled decoders of several shapes, that divide their work in every way they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.inference.embedded import compiled as compiled_module
from nemo_openmath.inference.embedded.compiled import CompiledDecoder, compile_decoder
from nemo_openmath.inference.embedded.weights import load_weights

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "vocab_size": 509}),
]

# threads; whether they divide the matrices instead of the rows. Seven could take more rows than their scratch holds
WAYS = ((1, False), (3, False), (3, True), (7, True))


def compiled(path: Path, threads: int = 1, wide: bool = False, slots: int = 8) -> CompiledDecoder:
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(compiled_module, "LARGE_BYTES", 0)
        decoder = compile_decoder(load_weights(path), slots, threads)
    assert decoder is not None
    assert (decoder._few > 0) == wide
    assert decoder._few <= decoder.kernels.most_wide
    return decoder
