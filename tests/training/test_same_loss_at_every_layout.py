"""The first promise: one loss, one gradient, one trajectory, whatever the layout; proven against transformers in fp32.

Real gloo processes; one spawn per world size runs all its layouts. Rank counts: 1, 2 and 4.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training.config import TrainingConfig
from tests.support.ranks import run_ranks
from tests.training import reference
from tests.training.packs import LENGTHS, RandomPacks, write_model
from tests.training.results import assert_close, final_weights, records

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "packed": (1, {}),
    "packed, recomputed in full": (1, {"recompute": "full"}),
    "packed, attention recomputed": (1, {"recompute": "selective"}),
    "TP2": (2, {"parallel": {"tp": 2}}),
    "TP2 + SP": (2, {"parallel": {"tp": 2, "sequence_parallel": True}}),
    "TP2 + SP, deterministic": (
        2,
        {"parallel": {"tp": 2, "sequence_parallel": True}, "recompute": "none", "deterministic": True},
    ),
    "PP2": (2, {"parallel": {"pp": 2}}),
    "PP2 interleaved": (2, {"parallel": {"pp": 2, "vpp": 2}}),
    "CP2": (2, {"parallel": {"cp": 2}}),
    "CP2 in a ring": (2, {"parallel": {"cp": 2}, "context_exchange": "ring"}),
    "DP2": (2, {}),
    "DP2 + distributed optimizer": (2, {"distributed_optimizer": True}),
    "TP2 x CP2": (4, {"parallel": {"tp": 2, "cp": 2}}),
    "TP2 + SP x CP2, recomputed in full": (
        4,
        {"parallel": {"tp": 2, "cp": 2, "sequence_parallel": True}, "recompute": "full"},
    ),
    "PP2 interleaved, recomputed in full": (2, {"parallel": {"pp": 2, "vpp": 2}, "recompute": "full"}),
    "TP2 + SP x CP2": (4, {"parallel": {"tp": 2, "cp": 2, "sequence_parallel": True}}),
    "PP2 x DP2": (4, {"parallel": {"pp": 2}}),
    "TP2 x PP2": (4, {"parallel": {"tp": 2, "pp": 2}}),
    "CP4": (4, {"parallel": {"cp": 4}}),
    "CP4 in a ring": (4, {"parallel": {"cp": 4}, "context_exchange": "ring"}),
    "TP2 + SP x CP2 in a ring, recomputed in full": (
        4,
        {
            "parallel": {"tp": 2, "cp": 2, "sequence_parallel": True},
            "context_exchange": "ring",
            "recompute": "full",
        },
    ),
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
# Adam divides by the gradient's size: with the usual epsilon, rounding noise in the tiny gradients of K biases would be
# compared instead of the layouts.
SETTINGS = {"lr": 1e-3, "warmup": 0.2, "weight_decay": 0.1, "epsilon": 1e-6}
STOPPED_AFTER = 5  # steps, by SIGTERM


def _single(root: Path) -> list[dict[str, Any]]:
    base = {"model": str(root / "tied"), "config": {}}
    return [
        {"kind": "gradients", "output": str(root / "shifted.pt"), "shift_masks": 1, **base},
        {"kind": "gradients", "output": str(root / "bf16.pt"), **base, "config": {"precision": "bf16"}},
        {"kind": "leaks", "output": str(root / "leaks.pt"), **base},
        {
            "kind": "train",
            "output": str(root / "diverged"),
            "steps": STEPS,
            **base,
            "config": {
                "guard": {"spike_factor": 0.5, "window": 1},  # a loss that does not halve counts as a spike
                "checkpoints": {"every": 1, "asynchronous": True},
            },
        },
    ]


def _pairs(root: Path) -> list[dict[str, Any]]:
    """A training that SIGTERM stops, its resume at the same layout, and resumes from the same checkpoint at others."""
    base = {"kind": "train", "model": str(root / "tied"), "steps": STEPS}
    stopped = {**SETTINGS, "distributed_optimizer": True}
    cases = [
        {
            **base,
            "output": str(root / "stopped"),
            "config": stopped,
            "signal": [1, int(signal.SIGTERM), STOPPED_AFTER - 1],
        },
        {
            **base,
            "output": str(root / "resumed"),
            "config": stopped,
            "start": str(root / "stopped"),
            "validation": True,
        },
    ]
    for name in RESUMED_AT:
        asynchronous = {"every": 2, "asynchronous": name == "DP2"}
        config = {**SETTINGS, **LAYOUTS[name][1], "checkpoints": asynchronous}
        place = {"output": str(root / f"resumed {name}"), "start": str(root / "stopped"), "validation": True}
        cases.append({**base, "config": config, **place})
    for name, start in (("bf16", {}), ("bf16 resumed", {"start": str(root / "bf16"), "until": STOPPED_AFTER})):
        saved = {"precision": "bf16", "checkpoints": {"every": STOPPED_AFTER, "keep_last": 0}}
        cases.append({**base, "output": str(root / name), "config": {**stopped, **saved}, **start})
    for before, now in (("bf16", "fp32"), ("stopped", "bf16")):
        config = {**stopped, "precision": now}
        cases.append({**base, "output": str(root / f"refused {now}"), "config": config, "start": str(root / before)})
    return cases


RESUMED_AT = ("TP2 + SP", "PP2 interleaved", "DP2", "CP2")
EXTRA: dict[int, Callable[[Path], list[dict[str, Any]]]] = {1: _single, 2: _pairs}


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
            if "recompute" not in config:
                base = {"model": str(root / "tied"), "config": {**config, **SETTINGS}}
                cases.append({"kind": "train", "output": str(root / name), "steps": STEPS, **base})
        cases += EXTRA.get(world, lambda root: [])(root)
        run_ranks("tests.training.training_ranks", world, cases, root)
    return root


@pytest.fixture(scope="module")
def oracle(results: Path) -> Any:
    return cache(lambda model: reference.gradients(results / model))


@pytest.mark.parametrize(
    ("model", "layout"), [*(("tied", name) for name in LAYOUTS), *sorted(OTHER_MODELS)], ids=lambda value: value
)
def test_loss_and_every_gradient(results: Path, oracle: Any, model: str, layout: str) -> None:
    """Loss within 1e-5, each parameter's gradient within 1e-4 (in norm) of transformers on each sample alone."""
    loss, norm, expected = oracle(model)
    got = torch.load(results / f"{layout}-{model}.pt")
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    assert got["norm"] == pytest.approx(norm, rel=1e-5)
    assert set(got["gradients"]) == set(expected)
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        error = (got["gradients"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize(("ranks", "layout"), [(1, "PP2 interleaved"), (2, "PP2 x DP2")])
def test_layouts_above_have_packs_that_train_nothing(ranks: int, layout: str) -> None:
    """The interleaved schedule works in groups of PP micro-batches, and ranks have as many: empty packs fill up. That
    they change neither loss nor gradients is shown above."""
    shares = shard_batch(RandomPacks(1).batch(0), ranks, Parallel(**LAYOUTS[layout][1]["parallel"]))
    assert sum(not any(pack.loss_mask) for share in shares for pack in share) == 1


@pytest.fixture(scope="module")
def adamw(results: Path) -> Any:
    return reference.trajectory(results / "tied", STEPS, TrainingConfig(**SETTINGS))


@pytest.mark.parametrize("layout", [name for name, (_, config) in LAYOUTS.items() if "recompute" not in config])
def test_ten_steps(results: Path, adamw: Any, layout: str) -> None:
    """Losses, gradient norms and final weights of ten steps, within 1e-5 of a plain torch AdamW loop."""
    history, weights = adamw
    got = records(results / layout)
    assert [r["loss"] for r in got] == pytest.approx([s.loss for s in history], rel=1e-5)
    assert [r["grad_norm"] for r in got] == pytest.approx([s.norm for s in history], rel=1e-5)
    assert_close(final_weights(results / layout), weights, 1e-5)


def test_a_stopped_training_resumes_exactly(results: Path) -> None:
    """SIGTERM to one rank saves on all; the resume at the same layout equals the uninterrupted run bit for bit."""
    uninterrupted = results / "DP2 + distributed optimizer"
    assert records(results / "stopped")[-1]["step"] == STOPPED_AFTER
    resumed, whole = records(results / "resumed"), records(uninterrupted)[STOPPED_AFTER - 1 :]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in resumed] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in whole
    ]
    assert_close(final_weights(results / "resumed"), final_weights(uninterrupted), 0.0)
    oracle = reference.load(results / "tied")
    oracle.load_state_dict(final_weights(results / "resumed"), strict=False)  # strict: the tied lm_head is not stored
    held_out = RandomPacks(2, seed=99)
    batches = [held_out.batch(step) for step in range(2)]
    with torch.no_grad():
        expected = float(reference.batch_loss(oracle, batches[0] + batches[1]))
    assert resumed[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_bf16_trains_and_resumes_exactly(results: Path, adamw: Any) -> None:
    """bf16 with fp32 main weights and the distributed optimizer: losses within 0.5% of fp32's, and a resume (main
    weights and moments from the file) that equals the uninterrupted run bit for bit."""
    whole, resumed = records(results / "bf16"), records(results / "bf16 resumed")
    assert [r["loss"] for r in whole] == pytest.approx([step.loss for step in adamw[0]], rel=5e-3)
    assert [(r["step"], r["loss"]) for r in resumed] == [(r["step"], r["loss"]) for r in whole[STOPPED_AFTER - 1 :]]
    assert_close(final_weights(results / "bf16 resumed"), final_weights(results / "bf16"), 0.0)


@pytest.mark.parametrize(("now", "before"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_resume_in_another_precision_is_refused(results: Path, now: str, before: str) -> None:
    """fp32 weights or optimizer state would be lost or made up; every rank says so, in one line, and writes nothing."""
    folder = results / f"refused {now}"
    for rank in (0, 1):
        message = (folder / f"refused-{rank}").read_text()
        assert message.endswith(f"this checkpoint is of {before} training; set training.precision to {before}")
    assert not (folder / "metrics.jsonl").exists()


def test_a_spike_stops_the_training_and_names_the_batch(results: Path) -> None:
    message = (results / "diverged/diverged").read_text()
    assert "weights unchanged" in message
    assert "step1/pack0/sample0" in message
    assert "step1/pack2/sample2" in message
    assert [r["step"] for r in records(results / "diverged")] == [1]
    # what was being written is whole, nothing was saved of the step refused
    assert (
        step_folders.newest_valid(step_folders.list_checkpoints(results / "diverged/checkpoints"))[0].name
        == "step-00000001"
    )


@pytest.mark.parametrize("layout", RESUMED_AT)
def test_resume_at_another_layout(results: Path, layout: str) -> None:
    """From the distributed optimizer's checkpoint, five more steps at another layout, within 1e-5."""
    uninterrupted = results / "DP2 + distributed optimizer"
    resumed, whole = records(results / f"resumed {layout}"), records(uninterrupted)[STOPPED_AFTER - 1 :]
    assert len(resumed) == STEPS - STOPPED_AFTER + 1  # the first line came with the checkpoint
    assert [r["loss"] for r in resumed] == pytest.approx([r["loss"] for r in whole], rel=1e-5)
    held_out = records(results / "resumed")[-1]["validation_loss"]
    assert resumed[-1]["validation_loss"] == pytest.approx(held_out, rel=1e-5)
    assert_close(final_weights(results / f"resumed {layout}"), final_weights(uninterrupted), 1e-5)


def test_samples_do_not_see_each_other(results: Path) -> None:
    """A sample's loss stays when every other sample of its pack changes, when its place changes, and alone."""
    losses = torch.load(results / "leaks.pt")
    assert len(losses) == len(LENGTHS[0])
    for plain, others_changed, moved, alone in losses:
        assert others_changed == plain
        assert moved == pytest.approx(plain, rel=1e-6)
        assert alone == pytest.approx(plain, rel=1e-6)


def test_a_mask_one_token_late_shows(results: Path, oracle: Any) -> None:
    """The proofs above can fail: with masks shifted by one, loss and gradients are far outside their tolerances."""
    loss, _, expected = oracle("tied")
    got = torch.load(results / "shifted.pt")
    assert abs(got["loss"] / loss - 1) > 1e-3
    name = "model.layers.0.mlp.up_proj.weight"
    assert (got["gradients"][name] - expected[name]).norm() / expected[name].norm() > 1e-2


def test_bf16_is_near(results: Path, oracle: Any) -> None:
    loss, norm, _ = oracle("tied")
    got = torch.load(results / "bf16.pt")
    assert got["loss"] == pytest.approx(loss, rel=2.5e-3)
    assert got["norm"] == pytest.approx(norm, rel=2e-2)
