"""megatron-core itself, in real processes, loads what we write at any layout, and we read what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemo_openmath.checkpoints.formats import torch_dist
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import Parallel
from tests.support import models
from tests.support.ranks import run_ranks

ONE = {"num_key_value_heads": 1}  # fewer than TP: two ranks share the group


@pytest.mark.parametrize(
    ("processes", "layouts"),
    [
        pytest.param(
            2, [(models.TIED.with_changes(**ONE), 2, 1, ""), (models.TIED, 1, 2, "module.")], marks=pytest.mark.slow
        ),
        pytest.param(
            4,
            [(models.UNTIED.with_changes(**ONE), 2, 2, "module."), (models.WIDE, 4, 1, "")],
            marks=pytest.mark.manual,
        ),
    ],
)
def test_megatron_core_loads_and_saves_bitwise(
    tmp_path: Path, processes: int, layouts: list[tuple[ModelConfig, int, int, str]]
) -> None:
    """A vocabulary of 107, which each training pads to a multiple of 128 x TP; NeMo's folder and names, too."""
    cases: list[dict[str, Any]] = []
    for number, (config, tp, pp, prefix) in enumerate(layouts):
        source = models.make(tmp_path / f"hf{number}", config)
        ours = hf_to_megatron(source, tmp_path / f"ours{number}")
        theirs = tmp_path / f"theirs{number}" / ("weights" if prefix else "")
        paths = {"model": source, "checkpoint": ours / "state", "output": theirs}
        cases.append({name: str(path) for name, path in paths.items()} | {"tp": tp, "pp": pp, "prefix": prefix})
    run_ranks("tests.checkpoints.megatron_ranks", processes, cases, tmp_path)
    for number, (config, tp, _, _) in enumerate(layouts):
        stored = torch_dist.read(Path(cases[number]["output"]))
        assert stored["embedding.word_embeddings.weight"].shape[0] == 128 * tp > config.vocab_size
        source = tmp_path / f"hf{number}"
        back = megatron_to_hf(tmp_path / f"theirs{number}", tmp_path / f"back{number}", model_files=source)
        assert models.same(models.load(back), models.load(source))


def test_our_trainings_refuse_what_megatron_core_would_hold() -> None:
    """Its layers gather such a QKV in every forward pass, ours do not: the number to change is named."""
    with pytest.raises(
        UserError, match=r"num_key_value_heads = 2 .* parallel\.tp = 4; set parallel\.tp to a divisor of 2"
    ):
        Parallel(tp=4).check(models.WIDE.with_changes(vocab_size=108), 4)
    with pytest.raises(UserError, match=r"vocab_size = 107 .* parallel\.tp = 2; set parallel\.tp to a divisor of 107"):
        Parallel(tp=2).check(models.WIDE, 2)
