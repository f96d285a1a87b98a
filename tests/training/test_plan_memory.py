"""The plan's bytes against what the trainer really holds: real builds, real optimizer steps, 1 and 2 gloo ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from nemo_openmath.models import loss
from nemo_openmath.models.configs import preset
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training.planning import memory
from nemo_openmath.training.planning.memory import Layout
from tests.support.ranks import run_ranks

TINY = preset("tiny")
MODELS = {"tied": TINY, "untied": TINY.with_changes(tie_word_embeddings=False, vocab_size=640)}
TOKENS = 512
BLOCK_BYTES = (256 << 20, 256 << 10)  # the loss in one block of logits, and in several
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "fp32": (1, "tied", {}),
    "fp32, untied": (1, "untied", {}),
    "fp32, attention recomputed": (1, "tied", {"recompute": "selective"}),
    "fp32, recomputed in full": (1, "tied", {"recompute": "full"}),
    "bf16": (1, "tied", {"precision": "bf16"}),
    "bf16, distributed optimizer": (1, "untied", {"precision": "bf16", "distributed_optimizer": True}),
    "DP2, fp32": (2, "tied", {}),
    "DP2, fp32, distributed optimizer": (2, "untied", {"distributed_optimizer": True}),
    "DP2, bf16": (2, "tied", {"precision": "bf16"}),
    "DP2, bf16, distributed optimizer": (2, "tied", {"precision": "bf16", "distributed_optimizer": True}),
    "CP2, bf16, distributed optimizer": (
        2,
        "tied",
        {"precision": "bf16", "distributed_optimizer": True, "parallel": {"cp": 2}},
    ),
    "TP2": (2, "untied", {"parallel": {"tp": 2}}),
    "TP2 + SP": (2, "tied", {"parallel": {"tp": 2, "sequence_parallel": True}}),
    "TP2 + SP, attention recomputed": (
        2,
        "tied",
        {"recompute": "selective", "parallel": {"tp": 2, "sequence_parallel": True}},
    ),
    "CP2": (2, "tied", {"parallel": {"cp": 2}}),
    "CP2 in a ring": (2, "tied", {"parallel": {"cp": 2}, "context_exchange": "ring"}),
    "CP2, attention recomputed": (2, "tied", {"recompute": "selective", "parallel": {"cp": 2}}),
    "PP2": (2, "tied", {"parallel": {"pp": 2}}),
    "PP2, untied": (2, "untied", {"parallel": {"pp": 2}}),
}
# bf16 on CPU takes torch's composed RMSNorm, which keeps tensors that no GPU keeps; a first stage has no loss to run.
COUNTED = [name for name, (_, _, c) in CASES.items() if "precision" not in c and "pp" not in c.get("parallel", {})]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    root = tmp_path_factory.mktemp("memory")
    for world in (1, 2):
        cases = [
            {
                "model": asdict(MODELS[model]),
                "config": config,
                "tokens": TOKENS,
                "block_bytes": BLOCK_BYTES if name in COUNTED else (),
                "output": str(root / name),
            }
            for name, (size, model, config) in CASES.items()
            if size == world
        ]
        run_ranks("tests.training.memory_ranks", world, cases, root)
    return {name: json.loads((root / name).read_text()) for name in CASES}


def layout_of(name: str) -> Layout:
    world, _, config = CASES[name]
    parallel = Parallel(**config.get("parallel", {}))
    return Layout(
        parallel,
        parallel.data_parallel(world),
        config.get("distributed_optimizer", False),
        config.get("recompute", "none"),
        config.get("context_exchange", "all_gather"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_states_are_what_the_trainer_holds(measured: dict[str, dict[str, int]], name: str) -> None:
    """Exact to the byte; with the distributed optimizer within 1%: its buffers are padded."""
    _, model, config = CASES[name]
    expected = asdict(memory.states(MODELS[model], layout_of(name), config.get("precision", "fp32")))
    got = {kind: measured[name][kind] for kind in expected}
    assert got == (pytest.approx(expected, rel=0.01) if config.get("distributed_optimizer") else expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "TP" not in name and "PP" not in name])
def test_what_checkpoints_take_of_the_host(measured: dict[str, dict[str, int]], name: str) -> None:
    """What a rank copies to save and what it loads: within a part of the largest parameter, and 1% of padding."""
    _, model, config = CASES[name]
    expected = memory.host_memory(MODELS[model], layout_of(name), config.get("precision", "fp32"))
    assert measured[name]["loading"] == pytest.approx(expected.loading, rel=0.01)
    assert measured[name]["saving"] == pytest.approx(expected.saving, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_activations_are_what_autograd_keeps(measured: dict[str, dict[str, int]], name: str) -> None:
    """Within 0.2% of the tensors that autograd saves, each storage once, after what is known to differ on CPU."""
    model, layout = MODELS[CASES[name][1]], layout_of(name)
    parallel = layout.parallel
    tokens = memory.rank_tokens(parallel, TOKENS)
    layer = memory.layer_activations(model, layout, tokens, "fp32")
    extra = cpu_attention(name, tokens) if layout.recompute == "none" else 0
    expected = model.num_hidden_layers * (layer + extra)
    expected += tokens * (4 * model.hidden_size + 4) // (parallel.tp if parallel.sequence_parallel else 1)
    expected += 4 * (tokens * model.hidden_size + model.vocab_size // parallel.tp * model.hidden_size)  # of the loss
    # Autograd holds one of the batch's numbers, and with it all of them; where attention is recomputed, not the angles.
    angles = 4 * model.head_dim * tokens if layout.recompute != "none" else 0
    seen = memory.batch_bytes(model, layout, tokens) - angles
    seen -= 8 * tokens  # every position is a target: no indices of them
    assert measured[name]["activations"] == pytest.approx(expected + seen, rel=0.002)


def cpu_attention(name: str, tokens: int) -> int:
    """What the CPU's attention keeps of a layer beyond flash attention: each sample's output beside their
    concatenation and values as a view of the whole QKV product; under context parallelism the second chunk's mask."""
    which = CASES[name][1]
    model, parallel = MODELS[which], layout_of(name).parallel
    if layout_of(name).exchange == "ring":
        return 0
    if parallel.cp > 1:  # rank 0 holds the first chunk and the last, which sees the whole pack
        return 4 * (tokens // 2) * TOKENS
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    return 4 * tokens * (2 * q + kv) // parallel.tp


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_the_peak_of_a_step(
    measured: dict[str, dict[str, int]], name: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that a forward and backward pass allocates at once is within 5% of the plan."""
    monkeypatch.setattr(loss, "BLOCK_BYTES", block_bytes)
    model, layout = MODELS[CASES[name][1]], layout_of(name)
    plan = memory.memory(model, layout, capacity=TOKENS, micro_batches=1, precision="fp32")
    tokens = memory.rank_tokens(layout.parallel, TOKENS)
    expected = plan.activations + plan.logits + plan.backward
    kept = layout.recompute == "none"  # else the attention's tensors come back for one layer at a time
    expected += cpu_attention(name, tokens) * (model.num_hidden_layers if kept else 1)
    assert measured[name][f"peak {block_bytes}"] == pytest.approx(expected, rel=0.05)
