"""Token ids are kept where a student of the recipe trains on them, and nowhere else."""

from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.services import RecipeServices
from tests.support.tokenizers import byte_level, sentencepiece_like

RECIPE = """
name: r
stages:
  problems: {run: problems.read_problems, from: ./p.jsonl}
  mine: {run: rollout.generate, from: problems, engine: ./a}
  graded: {run: solutions.grade, from: {generations: mine}}
  rows: {run: solutions.rows, from: graded}
  tokens: {run: sft.tokenize, from: {rows: rows, model: ./a}}
  packs: {run: sft.pack, from: tokens, capacity: 128}
  train: {run: training.sft, from: {packs: packs, model: ./a}, steps: 1}
  student: {run: checkpoints.average, from: train, count: 1}
  others: {run: rollout.generate, from: problems, engine: ./b}
  rows2: {run: solutions.rows, from: [others, mine]}
  tokens2: {run: sft.tokenize, from: {rows: rows2, model: student}}
  judged: {run: rollout.generate, from: problems, engine: ./a}
"""


@pytest.mark.parametrize(
    ("stage", "tokenizer", "used"),
    [
        ("mine", "a", True),
        ("mine", "b", False),
        ("others", "b", False),
        ("others", "a", True),  # by the student, which is still to be made, of ./a
        ("judged", "a", False),  # nobody trains on it
    ],
)
def test_ids_are_of_use_where_a_stage_behind_encodes_with_the_same_tokenizer(
    stage: str, tokenizer: str, used: bool, tmp_path: Path
) -> None:
    byte_level(tmp_path / "a")
    sentencepiece_like(tmp_path / "b")
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1?"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    services = RecipeServices(load_recipe(tmp_path / "r.yaml"), tmp_path / "out")
    assert services.encoded_with(stage, ChatTokenizer.load(tmp_path / tokenizer)) is used
