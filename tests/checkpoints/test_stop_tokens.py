"""What was trained to stop stops everywhere: the files of a trained model name the end that its data taught."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_openmath.chat import Message, Transcript
from nemo_openmath.checkpoints.convert import hf_to_megatron, hf_to_trtllm, megatron_to_hf
from nemo_openmath.checkpoints.formats.step_folders import list_checkpoints
from nemo_openmath.checkpoints.merge.combine import average, merge
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem, SftRow
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.tokens.tokenization import write_tokens
from nemo_openmath.models.stop_tokens import StopTokens
from nemo_openmath.training.base_model import end_tokens
from nemo_openmath.training.launch import launch

BASE = Path(__file__).parents[2] / "examples" / "base"
TEXT, TURN = 658, 660  # <|endoftext|>, <|im_end|>


def write(path: Path, **changes: Any) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (old | changes).items() if value is not None}))


def read(folder: Path, name: str = "generation_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that says of itself what Qwen2.5's do, with sampling defaults beside it."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(BASE, folder)
    (folder / "generation_config.json").unlink()
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 9}
    write(folder / "generation_config.json", bos_token_id=TEXT, eos_token_id=TEXT, **sampling)
    write(folder / "config.json", eos_token_id=TEXT)
    write(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    write(folder / "special_tokens_map.json", eos_token={"content": "<|endoftext|>", "lstrip": False})
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training from ``base`` on answers that end their turn."""
    work = tmp_path_factory.mktemp("training")
    with (work / "rows.jsonl").open("w") as file:
        for n in range(8):
            question = f"What is {n} + {n}?"
            problem = Problem.make(question)
            transcript = Transcript.from_text((Message("user", question),), "7")
            row = SftRow.make(problem, problem_id=problem.id, mode="cot", transcript=transcript.to_json())
            file.write(json.dumps(asdict(row)) + "\n")
    write_tokens(work / "rows.jsonl", base, work / "tokens", workers=1)
    write_packs(work / "tokens", work / "packs", capacity=512)
    training = {"lr": 1e-2, "warmup": 0.1, "checkpoints": {"every": 0}}
    job = {"model": str(base), "data": {"folder": "packs", "batch_samples": 8, "steps": 20}, "output": "out"}
    (work / "job.yaml").write_text(json.dumps(job | {"training": training}))
    launch(1, work / "job.yaml")
    return list_checkpoints(work / "out" / "checkpoints")[-1]


@torch.no_grad()
def test_a_trained_model_stops_where_its_data_did(trained: Path, tmp_path: Path) -> None:
    """By transformers' ``generate``, which knows the exported files alone."""
    made = megatron_to_hf(trained, tmp_path / "hf")
    assert read(made) == {"eos_token_id": [TURN, TEXT], "pad_token_id": TEXT, "bos_token_id": TEXT}
    assert read(made, "config.json")["eos_token_id"] == [TURN, TEXT]
    assert read(made, "config.json")["transformers_version"] >= "5"  # else vLLM's warns of the tokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(made), AutoModelForCausalLM.from_pretrained(made)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert read(made, "special_tokens_map.json")["eos_token"] == {"content": "<|im_end|>", "lstrip": False}
    messages = [{"role": "user", "content": "What is 3 + 3?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(prompt, max_new_tokens=30)[0, prompt.shape[1] :].tolist()
    assert answer[-1] == TURN
    assert len(answer) < 30


def test_every_kind_of_export_names_it(base: Path, trained: Path, tmp_path: Path) -> None:
    """Whatever is made of the checkpoint carries what it was taught, and the base's sampling defaults are nowhere."""
    hf = megatron_to_hf(trained, tmp_path / "hf")
    wanted = read(hf)
    made = {
        "other files": megatron_to_hf(trained, tmp_path / "given", model_files=base),
        "average": average([trained, trained], tmp_path / "average", format="hf"),
        "merge": merge("linear", [hf, hf], tmp_path / "merge", weights=[0.5, 0.5]),
        "int8": quantize(hf, tmp_path / "int8", format="int8"),
        "trtllm": hf_to_trtllm(trained, tmp_path / "trtllm") / "tokenizer",
        "megatron": average([hf, hf], tmp_path / "megatron", format="megatron") / "model",
    }
    assert {kind: read(folder) for kind, folder in made.items()} == dict.fromkeys(made, wanted)
    for folder in made.values():
        assert read(folder, "tokenizer_config.json") == read(hf, "tokenizer_config.json")
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_a_merge_ends_where_any_of_its_models_does(base: Path, trained: Path, tmp_path: Path) -> None:
    hf = megatron_to_hf(trained, tmp_path / "hf")
    made = merge("linear", [base, hf], tmp_path / "merge", weights=[0.5, 0.5])
    assert read(made) == {"eos_token_id": [TEXT, TURN], "pad_token_id": TEXT, "bos_token_id": TEXT}


@pytest.mark.parametrize("said", ["658", True, -1, [TEXT, "x"], {}])
def test_an_end_that_is_no_token_is_refused_before_it_is_carried_on(base: Path, tmp_path: Path, said: Any) -> None:
    shutil.copytree(base, folder := tmp_path / "m")
    write(folder / "generation_config.json", eos_token_id=said)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is "):
        StopTokens.of(folder)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is "):
        end_tokens(folder, Counter([TURN]))


def test_a_conversion_of_an_untouched_model_keeps_its_files(base: Path, tmp_path: Path) -> None:
    """Not one byte of what the model's authors say is changed by going there and back."""
    back = megatron_to_hf(hf_to_megatron(base, tmp_path / "megatron"), tmp_path / "back")
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        assert (back / name).read_bytes() == (base / name).read_bytes(), name
    assert read(back, "config.json")["eos_token_id"] == TEXT
