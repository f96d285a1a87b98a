"""The first promise: one loss, one gradient, one trajectory, whatever the layout; proven against transformers in fp32.

Real gloo processes; one spawn per world size runs all its layouts. Rank counts: 1, 2 and 4.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_openmath.models import hf_mapping, torch_dist
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.launch_local import spawn
from tests.training import reference
from tests.training.packs import write_model

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "packed": (1, {}),
    "packed, recomputed in full": (1, {"recompute": "full"}),
    "packed, attention recomputed": (1, {"recompute": "selective"}),
    "TP2": (2, {"parallel": {"tp": 2}}),
    "TP2 + SP": (2, {"parallel": {"tp": 2, "sequence_parallel": True}}),
    "PP2": (2, {"parallel": {"pp": 2}}),
    "PP2 interleaved": (2, {"parallel": {"pp": 2, "vpp": 2}}),
    "CP2": (2, {"parallel": {"cp": 2}}),
    "DP2": (2, {}),
    "DP2 + distributed optimizer": (2, {"distributed_optimizer": True}),
    "TP2 x CP2": (4, {"parallel": {"tp": 2, "cp": 2}}),
    "TP2 + SP x CP2": (4, {"parallel": {"tp": 2, "cp": 2, "sequence_parallel": True}}),
    "PP2 x DP2": (4, {"parallel": {"pp": 2}}),
    "TP2 x PP2": (4, {"parallel": {"tp": 2, "pp": 2}}),
    "CP2 x DP2": (4, {"parallel": {"cp": 2}}),
    "CP2 x DP2 + distributed optimizer": (4, {"parallel": {"cp": 2}, "distributed_optimizer": True}),
}
OTHER_MODELS = {  # untied embeddings and QK norm take other paths
    ("untied", "TP2 x PP2"),
    ("untied", "PP2 interleaved"),
    ("qwen3", "TP2 + SP"),
    ("qwen3", "packed"),
}
STEPS = 10
SETTINGS = {"lr": 1e-3, "warmup": 0.2, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs every layout; a folder of MODEL/ and of LAYOUT-MODEL.pt and LAYOUT/ results."""
    root = tmp_path_factory.mktemp("layouts")
    for model in ("tied", "untied", "qwen3"):
        write_model(root / model, model)
    for world in (1, 2, 4):
        cases = []
        for name, (size, config) in LAYOUTS.items():
            if size != world:
                continue
            for model in ("tied", "untied", "qwen3"):
                if model == "tied" or (model, name) in OTHER_MODELS:
                    base = {"model": str(root / model), "config": config}
                    cases.append({"kind": "gradients", "output": str(root / f"{name}-{model}.pt"), **base})
            base = {"model": str(root / "tied"), "config": {**config, **SETTINGS}}
            cases.append({"kind": "train", "output": str(root / name), "steps": STEPS, **base})
        spec = root / f"world-{world}.json"
        spec.write_text(json.dumps(cases))
        spawn(world, [sys.executable, "-m", "tests.training.rank_main", str(spec)], on_line=lambda _: None)
    return root


@pytest.fixture(scope="module")
def oracle(results: Path) -> Any:
    return cache(lambda model: reference.gradients(results / model))


@pytest.mark.parametrize(
    ("model", "layout"), [*(("tied", name) for name in LAYOUTS), *sorted(OTHER_MODELS)], ids=lambda value: value
)
def test_loss_and_every_gradient(results: Path, oracle: Any, model: str, layout: str) -> None:
    """Loss within 1e-5, each parameter's gradient within 1e-4 (relative, in norm) of transformers on each sample alone."""
    loss, norm, expected = oracle(model)
    got = torch.load(results / f"{layout}-{model}.pt")
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    assert got["norm"] == pytest.approx(norm, rel=1e-5)
    assert set(got["gradients"]) == set(expected)
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        error = (got["gradients"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, error)


@pytest.fixture(scope="module")
def adamw(results: Path) -> Any:
    return reference.trajectory(results / "tied", STEPS, TrainingConfig(**SETTINGS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_steps(results: Path, adamw: Any, layout: str) -> None:
    """Losses, gradient norms and final weights of ten steps, within 1e-5 of a plain torch AdamW loop."""
    history, weights = adamw
    records = [json.loads(line) for line in (results / layout / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in records] == pytest.approx([s.loss for s in history], rel=1e-5)
    assert [r["grad_norm"] for r in records] == pytest.approx([s.norm for s in history], rel=1e-5)
    folder = torch_dist.step_folder(results / layout / "checkpoints", STEPS)
    torch_dist.verify(folder)
    config, tensors = torch_dist.read_model(folder)
    final = {name: t for e, stored in tensors for name, t in zip(e.hf, hf_mapping.split(e, stored, config), strict=True)}
    assert set(final) == set(weights)
    for name, weight in weights.items():
        error = (final[name] - weight).norm() / weight.norm()
        assert error < 1e-5, (name, error)
