"""Asking with another prompt than a model was trained on is said; where nothing is known, that is said."""

import json
import random
from pathlib import Path

import pytest

from nemo_openmath.chat import load_template
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import read_manifest
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.prompt_match import prompt_notes

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["how", "many", "of", "these", "apples", "are", "left", "when", "some", "go"]
OTHER = "Choose among {num_solutions}.\n\n{problem}\n\n{solutions}\n"
RECIPE = """name: r
teacher: {{url: null, tokenizer: {base}}}
stages:
  read: {{run: sft.read, from: ./rows.jsonl}}
  tokens: {{run: sft.tokenize, from: {{rows: read, model: {base}}}}}
  packs: {{run: sft.pack, from: tokens, capacity: 4096}}
  train: {{run: training.sft, from: {{packs: packs, model: {base}}}, steps: 1}}
  model: {{run: checkpoints.average, from: train, count: 1}}
  select: {{run: genselect.select, from: groups, engine: model{prompt}}}
  select_base: {{run: genselect.select, from: groups, engine: {base}}}
  ask_teacher: {{run: genselect.select, from: groups}}
"""


def notes(recipe: Path, output: Path, *names: str) -> list[str]:
    return list(prompt_notes(load_recipe(recipe), output, names))


def test_a_recipe_that_trains_on_its_own_selections_asks_as_it_trains(tmp_path: Path) -> None:
    tiny = load_recipe(EXAMPLES / "tiny.yaml")
    assert list(prompt_notes(tiny, tmp_path, tiny.stages)) == []
    own = tmp_path / "own.txt"
    own.write_text(OTHER)
    changed = load_recipe(EXAMPLES / "tiny.yaml", [f"stages.student1_select.prompt={own}"])
    (note,) = prompt_notes(changed, tmp_path, changed.stages)
    assert note.startswith(
        f"student1_select asks student1 with the GenSelect prompt {load_template('genselect', own).digest}"
    )
    assert f"trained on another: {load_template('genselect').digest} (selections)" in note


def test_published_rows_say_which_prompt_they_were_written_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, recipe, own = random.Random(1), tmp_path / "r.yaml", tmp_path / "own.txt"
    own.write_text(OTHER)
    published = load_template("genselect", own)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(12):
            num = rng.randint(2, 9)
            texts = [" ".join(rng.sample(WORDS, 4)) + f" \\boxed{{{rng.randrange(99)}}}" for _ in range(num)]
            (message,) = published.messages(
                problem=" ".join(rng.sample(WORDS, 5)), solutions=published.listing(texts), num_solutions=num, max_idx=0
            )
            row = {"problem": message.content, "generated_solution": "Judgment: 1", "inference_mode": "genselect"}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "groups").mkdir()
    recipe.write_text(RECIPE.format(base=EXAMPLES / "base", prompt="").replace("from: groups", "from: ./groups"))
    output = tmp_path / "out"
    shipped = load_template("genselect").digest
    assert notes(recipe, output, "select", "ask_teacher") == [], "the rows are still to be read"
    (unknown,) = notes(recipe, output, "select_base")
    assert "select_base: on which GenSelect prompt" in unknown
    assert f"is unknown; it is asked with {shipped}" in unknown

    assert run(["recipe", "run", str(recipe), "--output", str(output), "--only", "read"]) is ExitCode.OK
    assert f"12 of 12 genselect rows were written with the prompt {published.digest}" in capsys.readouterr().err
    manifest = read_manifest(output / "read")
    assert manifest is not None
    assert manifest.metrics[f"genselect_rows_of_prompt_{published.digest}"] == 12
    (note,) = notes(recipe, output, "select")
    assert note.startswith(f"select asks model with the GenSelect prompt {shipped}, and it was trained on another: ")
    assert f"{published.digest} (read)" in note
    recipe.write_text(recipe.read_text().replace("engine: model}", f"engine: model, prompt: {own}}}"))
    assert notes(recipe, output, "select") == []
