"""Averages and merges against float64 numpy, and what they refuse."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.checkpoints.inspect import inspect
from nemo_openmath.checkpoints.lazy import InMemory
from nemo_openmath.checkpoints.merge.arithmetic import kth_largest_difference
from nemo_openmath.checkpoints.merge.combine import average, merge, select_steps, sweep
from nemo_openmath.checkpoints.methods import NEEDS_BASE, Method
from nemo_openmath.core.errors import UserError
from tests.support import models

SMALL = models.TIED.with_changes(num_hidden_layers=2)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [models.make(tmp_path / name, SMALL, seed) for seed, name in enumerate("abc")]


def doubles(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in models.load(folder).items()}


def assert_equals(folder: Path, oracle: Callable[..., np.ndarray], *sources: Path, atol: float = 1e-6) -> None:
    inputs = [doubles(source) for source in sources]
    made = doubles(folder)
    assert made.keys() == inputs[0].keys()
    for name in made:
        np.testing.assert_allclose(made[name], oracle(*(x[name] for x in inputs)), rtol=0, atol=atol, err_msg=name)


def test_average_equals_numpy(tmp_path: Path, three: list[Path]) -> None:
    assert_equals(average(three, tmp_path / "mean"), lambda a, b, c: (a + b + c) / 3, *three)
    weighted = average(three, tmp_path / "weighted", weights=[0.5, 0.3, 0.2])
    assert_equals(weighted, lambda a, b, c: 0.5 * a + 0.3 * b + 0.2 * c, *three)


@pytest.mark.parametrize("weights", [None, [0.3, 0.3, 0.4], [0.7, 0.2, 0.1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_of_one_checkpoint_with_itself_is_the_identity(
    tmp_path: Path, weights: list[float] | None, dtype: torch.dtype
) -> None:
    source = models.make(tmp_path / "a", SMALL, dtype=dtype)
    made = average([source] * 3, tmp_path / "mean", weights=weights)
    assert models.same(models.load(made), models.load(source))


def test_saves_for_resuming_are_not_averaged(tmp_path: Path) -> None:
    """What a training of 400 steps leaves: every: 20, average_k: 4, and one save where it was asked to stop."""
    for step in (100, 200, 300, 361, 380, 400):
        (tmp_path / f"step-{step:08}").mkdir()
    assert [int(p.name[5:]) for p in select_steps(tmp_path, count=4)] == [100, 200, 300, 400]
    assert [int(p.name[5:]) for p in select_steps(tmp_path, count=2)] == [200, 400]
    assert len(select_steps(tmp_path)) == 6
    with pytest.raises(UserError, match="no checkpoint near step 160, one of 5") as caught:
        select_steps(tmp_path, count=5)
    assert "average_k: 5" in str(caught.value)


def test_average_of_bf16_accumulates_in_fp32(tmp_path: Path) -> None:
    sources = [models.make(tmp_path / str(seed), SMALL, seed, torch.bfloat16) for seed in range(4)]
    made, inputs = models.load(average(sources, tmp_path / "mean")), [models.load(source) for source in sources]
    for name, tensor in made.items():
        exact = sum(x[name].double() for x in inputs) / 4
        # the nearest bf16 to the exact mean, but for ties that fp32 rounding may turn
        assert (tensor != exact.to(torch.bfloat16)).float().mean() < 1e-3


def test_average_of_megatron_steps(tmp_path: Path) -> None:
    root = tmp_path / "training"
    for step in range(1, 9):
        source = models.make(tmp_path / f"hf{step}", SMALL, step)
        (root / "checkpoints").mkdir(parents=True, exist_ok=True)
        hf_to_megatron(source, step_folders.step_folder(root / "checkpoints", 10 * step))
    assert [int(p.name[5:]) for p in select_steps(root, count=4)] == [20, 40, 60, 80]
    assert [int(p.name[5:]) for p in select_steps(root, count=3)] == [30, 50, 80]
    made = average([root], tmp_path / "mean", count=4, format="hf")
    sources = [tmp_path / f"hf{step}" for step in (2, 4, 6, 8)]
    assert_equals(made, lambda *x: sum(x) / 4, *sources)
    megatron = average([root], tmp_path / "megatron", steps=[20, 40, 60, 80])
    assert models.same(models.load(megatron_to_hf(megatron, tmp_path / "back")), models.load(made))
    step_folders.verify(megatron)
    with pytest.raises(UserError, match="no checkpoint of step 15; there are: 10, 20"):
        average([root], tmp_path / "x", steps=[15])
    with pytest.raises(UserError, match="9 checkpoints are wanted, there are 8"):
        average([root], tmp_path / "x", count=9)
    for step in (100, 200):  # Megatron-LM's own folders
        hf_to_megatron(tmp_path / f"hf{step // 100}", tmp_path / f"c{step}", classic_folders=True, tp=2)
        (tmp_path / f"c{step}" / "iter_0000000").rename(root / f"iter_{step:07d}")
    (tmp_path / "c100" / "model").rename(root / "model")
    for folder in (root / "checkpoints").iterdir():
        shutil.rmtree(folder)
    classic = average([root], tmp_path / "classic", steps=[100, 200], format="hf")
    assert_equals(classic, lambda a, b: (a + b) / 2, tmp_path / "hf1", tmp_path / "hf2")


def test_linear_merge_is_the_recipes(tmp_path: Path, three: list[Path]) -> None:
    made = merge("linear", three[:2], tmp_path / "m", weights=[0.3, 0.7])
    assert_equals(made, lambda a, b: 0.3 * a + 0.7 * b, *three[:2])
    candidates = {made.ratio: made.path for made in sweep(three[:2], tmp_path / "sweep", [0.0, 0.7, 1.0])}
    assert models.same(models.load(candidates[0.7]), models.load(made))
    assert models.same(models.load(candidates[0.0]), models.load(three[0]))
    assert models.same(models.load(candidates[1.0]), models.load(three[1]))


def test_slerp(tmp_path: Path, three: list[Path]) -> None:
    def oracle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        angle = np.arccos(cosine)
        return (np.sin(0.6 * angle) * a + np.sin(0.4 * angle) * b) / np.sin(angle)

    made = merge("slerp", three[:2], tmp_path / "m", weights=[0.6, 0.4])
    assert_equals(made, oracle, *three[:2])
    same = merge("slerp", [three[0]] * 2, tmp_path / "same")
    assert_equals(same, lambda a: a, three[0])


def test_task_arithmetic(tmp_path: Path, three: list[Path]) -> None:
    made = merge("task_arithmetic", three[:2], tmp_path / "m", weights=[0.5, 0.25], base=three[2])
    assert_equals(made, lambda a, b, base: base + 0.5 * (a - base) + 0.25 * (b - base), *three)


def test_ties(tmp_path: Path, three: list[Path]) -> None:
    def trim(x: np.ndarray) -> np.ndarray:
        keep = max(1, round(0.3 * x.size))
        return np.where(np.abs(x) >= np.sort(np.abs(x).ravel())[-keep], x, 0)

    def oracle(a: np.ndarray, b: np.ndarray, base: np.ndarray) -> np.ndarray:
        # differences in fp32, as the models are: else elements at the threshold fall to the other side
        a, b = ((x.astype("f4") - base.astype("f4")).astype("f8") for x in (a, b))
        kept, weights = [trim(a), trim(b)], [1.0, 2.0]
        sign = np.sign(weights[0] * kept[0] + weights[1] * kept[1])
        agree = [(np.sign(k) == sign) & (k != 0) for k in kept]
        total = sum(w * k * g for w, k, g in zip(weights, kept, agree, strict=True))
        mass = sum(w * g for w, g in zip(weights, agree, strict=True))
        return base + np.divide(total, mass, out=np.zeros_like(base), where=mass > 0)

    made = merge("ties", three[:2], tmp_path / "m", weights=[1.0, 2.0], base=three[2], density=0.3)
    assert_equals(made, oracle, *three)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=200), st.data())
def test_kth_largest_is_exact(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    tensor = torch.tensor(values)
    found = kth_largest_difference(InMemory(tensor), InMemory(torch.zeros_like(tensor)), k)
    assert found == tensor.abs().sort(descending=True).values[k - 1].item()


def test_dare_drops_and_rescales(tmp_path: Path, three: list[Path]) -> None:
    a, base = three[0], three[2]
    made = merge("dare", [a], tmp_path / "m", base=base, density=0.25, seed=3)
    x, b, m = models.load(a), models.load(base), models.load(made)
    kept = total = 0
    for name in m:
        difference, original = m[name] - b[name], x[name] - b[name]
        dropped = difference == 0
        torch.testing.assert_close(difference[~dropped], 4 * original[~dropped], rtol=1e-4, atol=1e-5)
        kept, total = kept + int((~dropped).sum()), total + m[name].numel()
    assert abs(kept / total - 0.25) < 0.01
    again = merge("dare", [a], tmp_path / "again", base=base, density=0.25, seed=3, format="megatron")
    back = models.load(megatron_to_hf(again, tmp_path / "back"))
    assert models.same(back, m)  # which elements are dropped depends on seed and place, not on who reads in what order
    other = models.load(merge("dare", [a], tmp_path / "other", base=base, density=0.25, seed=4))
    assert not models.same(other, m)


def test_weights_that_do_not_sum_to_one_warn(
    tmp_path: Path, three: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = average(three[:2], tmp_path / "m", weights=[1, 3])
    assert "the weights sum to 4" in caplog.text
    assert_equals(made, lambda a, b: a / 4 + 3 * b / 4, *three[:2])
    with pytest.raises(UserError, match="2 weights for 3 models"):
        average(three, tmp_path / "x", weights=[0.5, 0.5])
    with pytest.raises(UserError, match="sum to 0"):
        average(three[:2], tmp_path / "x", weights=[1, -1])
    with pytest.raises(UserError, match="sum to inf"):
        average(three[:2], tmp_path / "x", weights=[1e308, 1e308])


def test_strangers_are_refused_by_name(tmp_path: Path, three: list[Path]) -> None:
    wide = models.make(tmp_path / "wide", models.WIDE)
    with pytest.raises(UserError, match=r"hidden_size is 64, in .*a it is 48"):
        average([three[0], wide], tmp_path / "x")
    config = json.loads((three[1] / "config.json").read_text())
    (three[1] / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(UserError, match=r"says rope_theta 5\.0, and 1000000\.0 in its other form"):
        average(three[:2], tmp_path / "x")
    older = {key: value for key, value in config.items() if key != "rope_parameters"}  # as transformers 4 wrote it
    (three[1] / "config.json").write_text(json.dumps(older | {"rope_theta": 5.0}))
    newer = {key: value for key, value in config.items() if key != "rope_theta"}
    (three[0] / "config.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match=r"rope_theta is 5\.0, in .*a it is 1000000\.0"):
        average(three[:2], tmp_path / "x")
    (three[1] / "config.json").write_text(json.dumps(older))
    average(three[:2], tmp_path / "the two forms agree")
    (three[2] / "tokenizer.json").write_text('{"version": "1.0", "normalizer": {"type": "NFC"}}')
    with pytest.raises(UserError, match=r"its tokenizer differs from that of .*a: its normalizer is"):
        average([three[0], three[2]], tmp_path / "x")
    with pytest.raises(UserError, match="ties needs a base"):
        merge("ties", three[:2], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_field_that_is_left_out_has_its_default(tmp_path: Path, three: list[Path]) -> None:
    """transformers leaves none out, and writes null for a window that is not used; its older releases did otherwise."""
    config = json.loads((three[1] / "config.json").read_text())
    saved = config | {"sliding_window": None, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
    (three[0] / "config.json").write_text(json.dumps(saved | {"mlp_bias": False, "rms_norm_eps": 1e-5}))
    short = {key: value for key, value in config.items() if key not in ("rms_norm_eps", "architectures")}
    short |= {"sliding_window": 4096, "max_window_layers": 2}
    (three[1] / "config.json").write_text(json.dumps(short))
    with pytest.raises(UserError, match=r"rms_norm_eps is 1e-06, in .*a it is 1e-05"):
        average(three[:2], tmp_path / "x")
    (three[0] / "config.json").write_text(json.dumps(saved))
    assert average(three[:2], tmp_path / "x").is_dir()


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare"])
def test_lineage_of_a_merge_has_the_digests_of_its_inputs(tmp_path: Path, three: list[Path], method: Method) -> None:
    """They are taken while merging: arithmetic in place would change what is hashed."""
    base = three[2] if method in NEEDS_BASE else None
    made = merge(method, three[:2], tmp_path / "m", base=base)
    inputs = json.loads((made / "lineage.json").read_text())["inputs"]
    expected = [inspect(source).digest for source in (three if base else three[:2])]
    assert [inputs[name]["digest"] for name in sorted(inputs)] == expected
