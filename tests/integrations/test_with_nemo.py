# ruff: noqa: E402 - what follows importorskip
"""What needs nemo-toolkit: `python -m pytest tests/integrations` in the environment of
nemo_openmath/integrations/nemo/requirements.txt."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

llm = pytest.importorskip("nemo.collections.llm")

import fiddle
import torch
from megatron.core import parallel_state
from nemo.lightning.data import add_megatron_sampler
from nemo.utils.megatron_utils import get_iterator_k_split

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.data import PackedData, write_packs, write_tokens
from nemo_openmath.integrations.nemo.data_module import PackedDataModule
from nemo_openmath.integrations.nemo.packs import packed_data_step
from nemo_openmath.integrations.nemo.recipes import SIZES, finetune_recipe, read_numbers
from nemo_openmath.models.configs import PRESETS
from tests.support.rows import make_rows, store_rows
from tests.support.tokenizers import byte_level

PAPER = {  # lr (section 5.1), RoPE base, TP and CP of the reference
    "qwen2.5-math-1.5b": (3e-4, 500_000, 1, 2),
    "qwen2.5-math-7b": (2e-4, 500_000, 4, 2),
    "qwen2.5-14b": (1e-4, 1_000_000, 8, 2),
    "qwen2.5-32b": (1e-4, 1_000_000, 8, 4),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = byte_level(folder / "tokenizer")
    write_tokens(store_rows(folder / "rows", make_rows(300)), tokenizer, folder / "tokens", workers=1)
    write_packs(folder / "tokens", folder / "packs", capacity=2048, pad_multiple=8)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_recipes_say_the_papers_numbers(size: str, folder: Path) -> None:
    lr, rope, tp, cp = PAPER[size]
    gpus = 2 * tp * cp
    overrides = ["stages.train1.batch_samples=40"]
    recipe = finetune_recipe(
        size, folder / "packs", "base", num_nodes=gpus // 2, num_gpus_per_node=2, overrides=overrides
    )
    optim, strategy, trainer = recipe.optim, recipe.trainer.strategy, recipe.trainer
    packs = PackedData.open(folder / "packs", batch_samples=1, epochs=1).plan
    batch = recipe.data.global_batch_size
    assert abs(batch * len(packs.entries) / packs.num_packs - 40) < 2 * len(packs.entries) / packs.num_packs
    assert trainer.max_steps == optim.lr_scheduler.max_steps == -(-6 * packs.num_packs // batch)
    assert (optim.config.lr, optim.config.weight_decay, optim.config.clip_grad) == (lr, 0.01, 1.0)
    assert optim.lr_scheduler.min_lr == pytest.approx(lr / 1000)
    assert optim.lr_scheduler.warmup_steps == trainer.max_steps // 10
    assert (strategy.tensor_model_parallel_size, strategy.context_parallel_size) == (tp, cp)
    assert recipe.log.ckpt.every_n_train_steps == max(1, trainer.max_steps // 4)

    config = fiddle.build(recipe.model).config
    ours = PRESETS[size]
    assert (config.rotary_base, config.calculate_per_token_loss, config.seq_length) == (rope, True, 2048)
    assert config.share_embeddings_and_output_weights == ours.tie_word_embeddings
    assert config.data_step_fn is packed_data_step
    for theirs, name in (
        ("num_layers", "num_hidden_layers"),
        ("hidden_size", "hidden_size"),
        ("ffn_hidden_size", "intermediate_size"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_query_groups", "num_key_value_heads"),
        ("vocab_size", "vocab_size"),
        ("layernorm_epsilon", "rms_norm_eps"),
        ("rotary_base", "rope_theta"),
        ("add_qkv_bias", "qkv_bias"),
    ):
        assert getattr(config, theirs) == getattr(ours, name), theirs
    recipe.trainer.accelerator, recipe.trainer.devices, recipe.trainer.num_nodes = "cpu", 1, 1
    fiddle.build(recipe)  # every class takes what it is given


def test_the_second_round_keeps_the_rope_base() -> None:
    second = read_numbers("qwen2.5-math-7b", 2)
    assert (second.epochs, second.rope_theta, second.training.lr) == (4, 500_000, 2e-4)
    with pytest.raises(UserError, match="no round 2"):
        read_numbers("qwen2.5-32b", 2)
    with pytest.raises(UserError, match=r"qwen2\.5-14b"):
        read_numbers("qwen2.5-14")


def module(folder: Path, world: int = 2, cp: int = 1, **settings: Any) -> PackedDataModule:
    data = PackedDataModule(str(folder / "packs"), 6, 2, num_workers=0, **settings)
    strategy = SimpleNamespace(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=cp)
    data.trainer = SimpleNamespace(strategy=strategy, world_size=world, max_steps=20, global_step=0)
    return data


def test_batches_through_nemos_sampler_equal_our_loaders(folder: Path) -> None:
    data = module(folder, balance=False)
    data.setup("fit")
    loader = data.train_dataloader()
    ours = PackedData.open(folder / "packs", batch_samples=1, epochs=2)
    expected = [name for step in range(ours.num_steps) for pack in ours.batch(step) for name in pack.sample_ids]
    samples = {s.id: s for tokens in ours.plan.samples.folders for s in tokens}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        found: dict[int, list[dict[str, Any]]] = {}
        for rank in range(2):
            part = add_megatron_sampler(loader, 1, 6, dataloader_type="batch", rank=rank, world_size=2)
            found[rank] = [
                packed_data_step(iter([(micro, 0, 0)]))
                for batch in part
                for micro in get_iterator_k_split(batch, 3, True)
            ]
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    in_order = [micro for pair in zip(found[0], found[1], strict=True) for micro in pair]
    names = iter(expected)
    for micro in in_order:
        bounds = micro["cu_seqlens"][0, : int(micro["cu_seqlens_argmin"])].tolist()
        for start, stop in pairwise(bounds):
            if not micro["loss_mask"][0, start:stop].any():
                continue  # the row's padding
            sample = samples[next(names)]
            size = len(sample.tokens)
            assert 0 <= stop - start - size < 8
            assert micro["tokens"][0, start : start + size].tolist() == sample.tokens.tolist()
            assert micro["labels"][0, start : start + size - 1].tolist() == sample.tokens[1:].tolist()
            mask = micro["loss_mask"][0, start:stop].tolist()
            assert mask == [*sample.loss_mask[1:].astype(int).tolist(), *[0] * (stop - start - size + 1)]
            assert micro["position_ids"][0, start:stop].tolist() == list(range(stop - start))
    assert next(names, None) is None
    assert len(in_order) == len(loader.dataset)


@pytest.mark.manual
def test_finetune_takes_two_steps(folder: Path, tmp_path: Path) -> None:
    program = [
        sys.executable,
        str(Path(__file__).with_name("finetune_on_cpu.py")),
        str(folder / "packs"),
        str(tmp_path),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    losses = [float(found) for found in re.findall(r"reduced_train_loss: ([0-9.]+)", done.stdout + done.stderr)]
    assert losses[0] == pytest.approx(math.log(640), abs=0.2)  # an untrained model knows nothing of 640 entries
    assert losses[1] < losses[0]


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="pack again with pad_multiple=24"):
        module(folder, cp=3).setup("fit")
    other = byte_level(folder / "other", entries=300)
    with pytest.raises(UserError, match="tokenize again"):
        module(folder, model=str(other)).setup("fit")
    data = module(folder, model=str(folder / "tokenizer"))
    data.setup("fit")
    assert ChatTokenizer.load(folder / "tokenizer").fingerprint == data.plan.samples.folders[0].tokenizer
    with pytest.raises(UserError, match="trained on packs"):
        data.load_state_dict({"consumed_samples": 6, "fingerprint": "other-0-6-2"})
    data.data_sampler.trainer = SimpleNamespace(strategy=None)
    assert data.state_dict() == {"consumed_samples": 0, "fingerprint": data.fingerprint}
    assert list(islice(data.val_dataloader(), 1)) == []
