"""Parameter counts, config.json both ways, and the tensor mapping as exact inverses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_openmath.core.errors import UserError
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.configs import PRESETS, ModelConfig, preset
from nemo_openmath.models.layout import Parallel

SMALL = preset("tiny").with_changes(num_key_value_heads=4)
SHAPES = [SMALL, SMALL.with_changes(tie_word_embeddings=False), SMALL.with_changes(model_type="qwen3", head_dim=16)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-math-1.5b", 1_543_714_304),
        ("qwen2.5-math-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert preset(name).num_parameters == count
    assert sum(torch.Size(entry.shape).numel() for entry in hf_mapping.stored_tensors(preset(name))) == count


@pytest.mark.parametrize("name", ["qwen2.5-math-1.5b", "qwen2.5-7b", "qwen3-4b", "tiny"])
def test_transformers_builds_the_same_parameters(name: str) -> None:
    """Names and shapes of transformers' own model, built without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = preset(name)
    raw = shape.to_hf()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw))
    theirs = {key: tuple(p.shape) for key, p in model.named_parameters()}
    ours = dict(source for entry in hf_mapping.stored_tensors(shape) for source in entry.sources)
    assert ours == theirs


@pytest.mark.parametrize("name", PRESETS)
def test_config_json_both_ways(name: str, tmp_path: Path) -> None:
    raw = preset(name).to_hf()
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    for drop in ("rope_theta", "rope_parameters"):  # either form alone is enough
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k != drop}))
        assert ModelConfig.from_hf(tmp_path) == preset(name)


def test_the_math_bases_get_the_recipes_positions() -> None:
    for name in ("qwen2.5-math-1.5b", "qwen2.5-math-7b"):
        assert (preset(name).rope_theta, preset(name).max_position_embeddings) == (500_000.0, 131_072)


@pytest.mark.parametrize("shape", SHAPES, ids=["tied", "untied", "qwen3"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_mapping_and_slicing_invert(shape: ModelConfig, tp: int) -> None:
    hf = {n: torch.randn(s) for entry in hf_mapping.stored_tensors(shape) for n, s in entry.sources}
    for entry in hf_mapping.stored_tensors(shape):
        stored = hf_mapping.join(entry, hf_mapping.read_sources(entry, hf.__getitem__))
        assert tuple(stored.shape) == entry.shape
        slices = [hf_mapping.tp_slice(entry, stored, tp, rank) for rank in range(tp)]
        whole = hf_mapping.tp_join(entry, slices)
        assert torch.equal(whole, stored)
        for name, tensor in zip(dict(entry.sources), hf_mapping.split(entry, whole), strict=True):
            assert torch.equal(tensor, hf[name])


def test_wrong_weights_are_named() -> None:
    embedding = hf_mapping.stored_tensors(SMALL)[0]
    with pytest.raises(UserError, match=r"no model\.embed_tokens\.weight"):
        hf_mapping.read_sources(embedding, {}.__getitem__)
    with pytest.raises(UserError, match=r"embed_tokens\.weight has shape \(3, 3\)"):
        hf_mapping.read_sources(embedding, lambda _: torch.zeros(3, 3))


@pytest.mark.parametrize("groups", [1, 4])
def test_queries_keys_and_values_lie_by_group(groups: int) -> None:
    """Row for row against the layout as Megatron's attention reshapes it: [groups, queries a group + 2, head]."""
    shape = SMALL.with_changes(num_key_value_heads=groups, head_dim=2)
    entry = next(e for e in hf_mapping.stored_tensors(shape) if e.name.endswith("linear_qkv.bias"))
    q, k, v = (torch.arange(rows[0]) + 1000 * n for n, (_, rows) in enumerate(entry.sources))
    grouped = torch.cat([q.view(groups, -1, 2), k.view(groups, 1, 2), v.view(groups, 1, 2)], 1)
    assert torch.equal(hf_mapping.join(entry, [q, k, v]), grouped.flatten())


@pytest.mark.parametrize(
    ("parallel", "world", "says"),
    [
        (Parallel(tp=3), 3, "num_attention_heads = 8 is not divisible by parallel.tp = 3"),
        (Parallel(tp=8), 8, "num_key_value_heads = 4"),
        (Parallel(pp=3), 3, "4 layers are not divisible"),
        (Parallel(pp=2, vpp=4), 2, "4 layers are not divisible"),
        (Parallel(vpp=2), 1, "parallel.vpp needs pipeline stages"),
        (Parallel(tp=2, cp=2), 6, "6 processes are not a multiple of tp x pp x cp = 2 x 1 x 2 = 4"),
        (Parallel(sequence_parallel=True), 1, "parallel.tp to 2 or more"),
        (Parallel(tp=0), 1, "parallel.tp is 0"),
    ],
)
def test_invalid_products_say_which_number_to_change(parallel: Parallel, world: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parallel.check(SMALL, world)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
