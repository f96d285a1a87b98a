"""What no drafter can be made from, and what none was trained for: refused by name, before anything is removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.records import Generation, RecordWriter
from nemo_openmath.models.drafter_shape import Eagle3Shape
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from nemo_openmath.models.eagle3 import Eagle3
from nemo_openmath.speculative.sources import TextReader
from nemo_openmath.speculative.texts import Text, drafts_taught, frequent_tokens
from tests.speculative.served import HIDDEN, VOCAB, generations, qwen2


def test_more_guesses_than_were_trained_are_refused(tmp_path: Path) -> None:
    drafter, head = tmp_path / "drafter", tmp_path / "head"
    for folder, made in (
        (drafter, ReDrafter(DrafterShape(HIDDEN, VOCAB))),
        (head, Eagle3(Eagle3Shape(HIDDEN, VOCAB, 7, 4, 2, 8, 64))),
    ):
        folder.mkdir()
        made.save(folder)
        kind, config = type(made), folder / "config.json"
        written = json.loads(config.read_text())
        assert written["draft_tokens"] == written["trained_draft_tokens"] == 3
        config.write_text(json.dumps(written | {"draft_tokens": 2}))
        assert kind.load(folder).shape.draft_tokens == 2, "fewer may be asked for"
        config.write_text(json.dumps(written | {"draft_tokens": 8}))
        refused = rf"{folder.name}/config\.json: draft_tokens 8, and the drafter was trained for 3; write 3 at most, or"
        with pytest.raises(UserError, match=refused):
            kind.load(folder)
        # one that an earlier version wrote
        del written["trained_draft_tokens"]
        config.write_text(json.dumps(written | {"draft_tokens": 8}))
        assert kind.load(folder).shape.draft_tokens == 8, "nothing says for how many it was trained"
        (folder / "lineage.json").write_text(
            json.dumps({"kind": "drafter", "inputs": {}, "config": {"draft_tokens": 3}})
        )
        with pytest.raises(UserError, match=refused):
            kind.load(folder)
        config.write_text(json.dumps(written | {"draft_tokens": 0}))
        with pytest.raises(UserError, match="not a"):
            kind.load(folder)


def test_how_many_drafts_have_something_to_learn() -> None:
    """Draft i made at token t is token t+1+i."""
    text = Text(np.array([4, 5, 6, 7, 8], np.int32), np.array([False, False, True, True, True]))
    assert drafts_taught([text]) == 3, "the third is token 4, from the state at 0"
    assert drafts_taught([text], np.array([4, 6])) == 1, "token 2 alone can be guessed"
    assert drafts_taught([text], np.array([4])) == drafts_taught([]) == 0


def test_nothing_to_train_on_is_refused_before_what_was_made_is_removed(
    tmp_path: Path, tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    qwen2(tokenizer.vocab_size).save_pretrained(model)
    for file in tokenizer.folder.glob("tokenizer*"):
        shutil.copy(file, model)
    generations(tmp_path / "some", tokenizer, 6)
    with RecordWriter(tmp_path / "none"):
        pass
    with RecordWriter(tmp_path / "empty") as writer:
        asked = Transcript((Message("user", "1 + 1?"),), (), finished=False).to_json()
        of_length = Generation(
            id="g", problem_id="p", mode="cot", model="m", sample=0, transcript=asked, finish="length"
        )  # fmt: skip
        writer.commit("g", [of_length])

    def recipe(name: str, source: str, **settings: object) -> Path:
        inputs = {"generations": source, "model": "./model", **settings.pop("inputs", {})}  # type: ignore[dict-item]
        stage = {"run": "drafter.train", "from": inputs, "batch_tokens": 300, "device": "cpu", **settings}
        read = {"run": "solutions.read_generations", "from": "./rows.jsonl", "model": "m", "mode": "cot"}
        stages = {"drafter" if name == "r" else "second": stage} | ({"read": read} if source == "read" else {})
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name, "stages": stages}))
        return tmp_path / f"{name}.yaml"

    def go(file: Path) -> ExitCode:
        return run(["recipe", "run", str(file), "--output", str(out), "--replace"])

    rows = [{"problem": f"{n} + {n}?", "generation": f"It is \\boxed{{{2 * n}}}."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert go(recipe("r", "read")) is ExitCode.OK
    before = {path: path.read_bytes() for path in (out / "drafter").rglob("*") if path.is_file()}

    def refused(said: str, name: str, source: str = "./some", **settings: object) -> None:
        capsys.readouterr()
        assert go(recipe(name, source, **settings)) is ExitCode.USER_ERROR
        assert said in " ".join(capsys.readouterr().err.split())
        assert {path: path.read_bytes() for path in before if path.is_file()} == before

    refused("max_tokens 6 cuts 6 before what the model wrote; give a larger", "r", "read", max_tokens=6)
    for name in ("r", "other"):  # its own settings, and a recipe that would take its place and has no such stage
        refused(
            "max_tokens 3 leaves draft 2 of 3 no token to learn: it is at least draft_tokens + 2", name, max_tokens=3
        )
        cut = "some: nothing to train or measure on: of 6 generations, max_tokens 6 cuts 6 before what the model wrote"
        refused(f"{cut}; give a larger max_tokens or more generations", name, max_tokens=6)
        refused(
            "of 6 generations, held_out 0.999999 keeps 6 from the training; give a smaller", name, held_out=0.999999
        )
        refused("none: nothing to train or measure on: no generation; give more", name, "./none")
        refused("of 1 generations, 1 have nothing that the model wrote; give more", name, "./empty")
        refused("none: nothing to train or measure on: no", name, inputs={"held_out": "./none"})
        longest = "has nothing to learn: no generation, cut to max_tokens 8192, has a token of the model at place"
        refused(longest, name, draft_tokens=500)
    (model / "model.safetensors").unlink()
    refused("model", "r", lr=0.5)


def test_a_draft_that_the_vocabulary_leaves_nothing_is_said(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    texts = [Text(np.array([7, 8, 8, 8, 5], np.int32), np.array([False, True, True, True, True]))]
    reader = TextReader(tokenizer, max_tokens=64, draft_tokens=3, seed=1)
    reader.refuse_untaught(texts, tmp_path)
    most = frequent_tokens(texts, 1, 10)
    said = "draft 3 of draft_tokens 3 has nothing to learn.* of the 1 of draft_vocab, at place 5 or behind it"
    with pytest.raises(UserError, match=said):
        reader.refuse_untaught(texts, tmp_path, most)
