"""Every example resolves, and the paper's recipes say the paper's numbers (arXiv 2504.16891)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.recipe.file import Recipe, load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = ("qwen2.5-math-1.5b", "qwen2.5-math-7b", "qwen2.5-14b", "qwen2.5-32b")
TWO_ROUNDS = SIZES[:3]


@cache
def recipe(name: str) -> Recipe:
    return load_recipe(EXAMPLES / f"{name}.yaml")


def value(name: str, setting: str) -> Any:
    """A resolved setting, such as ``train1.training.lr``."""
    key = ("stages", *setting.split("."))
    return next(v.value for v in recipe(name).values if v.key == key)


JOBS = ("generate", "sft-job")  # files of other verbs


@pytest.mark.parametrize("path", sorted(p for p in EXAMPLES.glob("*.yaml") if p.stem not in JOBS), ids=lambda p: p.stem)
def test_resolves(path: Path) -> None:
    loaded = recipe(path.stem)
    assert loaded.name == path.stem
    assert {v.origin.file for v in loaded.values} - {"default"}


# (section, setting, 1.5B, 7B, 14B, 32B)
BY_SIZE = [
    ("5.1", "train1.training.lr", 3e-4, 2e-4, 1e-4, 1e-4),
    ("5.1", "train1.rope_theta", 500_000.0, 500_000.0, None, None),
    ("5.1", "train1.max_position_embeddings", 131_072, 131_072, None, None),
    ("ref", "train1.training.parallel.tp", 1, 4, 8, 8),
    ("ref", "train1.training.parallel.cp", 2, 2, 2, 4),
    ("ref", "train1.training.parallel.pp", 1, 1, 1, 1),
]

EVERY_SIZE = [
    ("5.1", "train1.batch_samples", 1024),
    ("5.1", "train1.epochs", 6.0),
    ("5.1", "train1.training.schedule", "cosine"),
    ("5.1", "train1.training.warmup", 0.1),
    ("5.1", "train1.training.final_lr_ratio", 1e-3),
    ("5.1", "train1.training.weight_decay", 0.01),
    ("5.1", "train1.training.checkpoints.average_k", 4),
    ("5.1", "model1.count", 4),
    ("5.1", "packs1.capacity", 32768),
    ("5.2", "model1_cot.samples", 64),
    ("5.2", "model1_tir.samples", 64),
    ("5.2", "model1_tir.temperature", 0.6),
    ("5.2", "model1_tir.top_p", 0.95),
    ("5.2", "model1_tir.max_tokens", 32768),
    ("T7", "model1_groups.groups", 64),
]

SECOND_ROUND = [
    ("5.1", "hard_rows.choice.max_pass_rate", 0.3),
    ("5.1", "packs2.at_least.cot", 5000),
    ("5.1", "train2.epochs", 4.0),
    ("5.1", "train2.batch_samples", 1024),
    ("5.1", "train2.training.checkpoints.average_k", 4),
    ("5.1", "packs2.capacity", 32768),
    ("5.2", "model2_cot.samples", 64),
    ("5.2", "model2_tir.max_tokens", 32768),
]

OTHERS = [
    ("2.3", "data-generation", "cot_qwq.temperature", 0.7),
    ("2.3", "data-generation", "cot_qwq.top_p", 0.95),
    ("2.3", "data-generation", "cot_r1.max_tokens", 16384),
    ("2.3", "data-generation", "probe.samples", 32),
    ("3.2", "data-generation", "tir0_kept.max_blocks", 2),
    ("3.3", "data-generation", "tir1_train.epochs", 7.0),
    ("3.3", "data-generation", "tir1_train.training.lr", 5e-6),
    ("3.3", "data-generation", "tir1_train.training.schedule", "constant"),
    ("3.3", "data-generation", "tir1_kept.max_blocks", 0),
    ("4.1", "data-generation", "summarized.candidates", 4),
    ("4.1", "data-generation", "summarized.max_tokens", 2048),
    ("4.2", "data-generation", "groups.groups", 8),
    ("4.2", "data-generation", "groups.mixed", True),
    ("4.2", "data-generation", "selections.keep_correct", True),
    ("6", "kaggle", "cot_train.epochs", 8.0),
    ("6", "kaggle", "tir_train.steps", 400),
    ("6", "kaggle", "tir_train.training.lr", 1e-5),
    ("6", "kaggle", "tir_train.training.schedule", "constant"),
    ("6", "kaggle", "tir_train.training.warmup", 0.0),
    ("6", "kaggle", "merged_eval.samples", 16),
    ("5.2", "kaggle", "merged_eval.temperature", 0.6),
    ("6", "kaggle", "merged_eval.code_seconds", 2.0),
    ("6", "kaggle", "merged_eval.output_chars", 200),
    ("6.3.2", "kaggle", "drafter_solutions.samples", 1),
    ("6.3.2", "kaggle", "drafter_solutions.temperature", 0.0),
    ("6.3.2", "kaggle", "drafter.draft_tokens", 3),
    ("ref", "kaggle", "drafter.layers", 2),
    ("ref", "kaggle", "drafter.lr", 1e-3),
    ("ref", "kaggle", "drafter.warmup", 0.1),
    ("ref", "kaggle", "drafter.epochs", 1),
    ("6", "kaggle", "contest.total_seconds", 5 * 3600.0),
    ("6.3.4", "kaggle", "contest.base_seconds", 350.0),
    ("6.3.4", "kaggle", "contest.bank_seconds", 210.0),
    ("6.3.3", "kaggle", "contest.solver.batch", 16),
    ("6.3.2", "kaggle", "contest.solver.rollout.temperature", 0.0),
]

TABLE = [
    *((section, size, setting, expected) for section, setting, *by_size in BY_SIZE
      for size, expected in zip(SIZES, by_size, strict=True)),
    *((section, size, setting, expected) for section, setting, expected in EVERY_SIZE for size in SIZES),
    *((section, size, setting, expected) for section, setting, expected in SECOND_ROUND for size in TWO_ROUNDS),
    *(
        (section, size, setting.replace("train1", "train2"), expected)
        for section, setting, *by_size in BY_SIZE
        if "training" in setting
        for size, expected in zip(TWO_ROUNDS, by_size, strict=False)
    ),
    *OTHERS,
]  # fmt: skip


@pytest.mark.parametrize(("section", "name", "setting", "expected"), TABLE)
def test_number_of_the_paper(section: str, name: str, setting: str, expected: Any) -> None:
    assert value(name, setting) == expected, f"section {section}"


def listed(name: str, setting: str) -> tuple[Any, ...]:
    """A resolved list: its elements are recorded one by one."""
    key = ("stages", *setting.split("."))
    return tuple(v.value for v in recipe(name).values if v.key[:-1] == key)


@pytest.mark.parametrize(
    ("section", "name", "setting", "expected"),
    [
        ("6", "kaggle", "merged.weights", (0.3, 0.7)),
        ("6", "kaggle", "merged_eval.budgets", (6, 6)),
        ("3.4", "data-generation", "tir1.budgets", (1, 8)),
        ("3.2", "data-generation", "tir0.budgets", (8, 8)),
        ("4.2", "data-generation", "groups.sizes", (2, 16)),
        ("fig. 4", "qwen2.5-14b", "train1.training.checkpoints.epochs", (0.75, 1.5, 3.0, 6.0)),
        ("5.1", "qwen2.5-14b", "hard_rows.choice.sources", ("olympiad",)),
        ("4.3", "qwen2.5-32b", "model1_groups.sizes", (16, 16)),
    ],
)
def test_numbers_of_the_paper(section: str, name: str, setting: str, expected: Any) -> None:
    assert listed(name, setting) == expected, f"section {section}"


def test_the_second_round_filters_the_length_of_cot_alone() -> None:
    """As the published models did, by a note of the reference."""
    assert recipe("qwen2.5-14b").stages["packs2"].stage.config.at_least == {"cot": 5000}


def test_32b_has_one_round() -> None:
    assert "train2" in recipe("qwen2.5-14b").stages
    assert "train2" not in recipe("qwen2.5-32b").stages


@pytest.mark.parametrize("name", SIZES)
def test_a_size_names_one_base_model(name: str) -> None:
    """Tokenizer and weights are of the same folder, and packs suit the layout."""
    stages = recipe(name).stages
    (folder,) = {stages[stage].inputs["model"] for stage in ("tokens1", "train1")}
    assert folder[0].name.lower() == name
    for round_ in ("1", "2") if name in TWO_ROUNDS else ("1",):
        parallel = stages[f"train{round_}"].stage.config.training.parallel
        assert stages[f"packs{round_}"].stage.config.pad_multiple == parallel.sample_multiple


def test_what_cannot_run_says_what_is_missing() -> None:
    from nemo_openmath.core.errors import UserError

    loaded = recipe("kaggle")
    with pytest.raises(UserError, match="kaggle-cot"):
        loaded.check_files(list(loaded.stages))
