"""Drafts of an EAGLE-3 head in a real vLLM, against those that ``drafter.train`` counts: the verbs ``head`` and
``drafted`` of ``served.py``."""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from served_start import do, vllm

BASE = Path(__file__).parents[1] / "examples" / "base"
LAYERS = 9
TOLERANCE = 0.01  # of accepted drafts a step: sums are rounded in another order, so that a close guess may differ
_ACCEPTED = re.compile(r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{.*position="(\d+)".*\} (\S+)$', re.M)
_STEPS = re.compile(r"^vllm:spec_decode_num_drafts_total\{.*\} (\S+)$", re.M)


# -- a model and a head ------------------------------------------------------------------------------------------------


def deepen(base: Path, folder: Path) -> None:
    """Write ``base`` with ``LAYERS`` layers: behind some of its own stands a copy that adds half as much."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    own = config["num_hidden_layers"]
    sources = sorted([*range(own), *range(LAYERS - own)])
    tensors, deep = load_file(base / "model.safetensors"), {}
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            deep[name] = tensor
            continue
        _, _, number, rest = name.split(".", 3)
        for place in (i for i, source in enumerate(sources) if source == int(number)):
            is_copy = place > 0 and sources[place - 1] == sources[place]
            adds = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            deep[f"model.layers.{place}.{rest}"] = tensor * 0.5 if is_copy and adds else tensor.clone()
    save_file(deep, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}, indent=2))


def rows(file: Path, count: int) -> None:
    """Problems of the tiny world, solved by hand."""
    from nemo_openmath.demo import solver, world
    from nemo_openmath.demo.rates import TeacherConfig

    draw, rates = random.Random(1), TeacherConfig(unfinished=0)
    with file.open("w") as out:
        for _ in range(count):
            item = world.sample(draw, pool="train")
            row = {"problem": item.statement, "generated_solution": solver.cot(item, draw, rates)}
            out.write(json.dumps(row | {"expected_answer": item.answer}) + "\n")


def head(options: argparse.Namespace) -> None:
    work = options.folder
    work.mkdir()
    deepen(BASE, work / "base")
    rows(work / "rows.jsonl", options.rows)
    stages: dict[str, Any] = {"rows": {"run": "sft.read", "from": "./rows.jsonl", "mode": "cot"}}
    stages["tokens"] = {"run": "sft.tokenize", "from": {"rows": "rows", "model": "./base"}, "workers": 1}
    stages["packs"] = {"run": "sft.pack", "from": "tokens", "capacity": 2048}
    (work / "packs.yaml").write_text(json.dumps({"name": "packs", "stages": stages}))
    data = {"folder": "packs/packs", "batch_samples": 32, "epochs": 1}
    training = {"lr": 2e-3, "warmup": 0.1, "final_lr_ratio": 0.01, "checkpoints": {"every": 0}}
    job = {"model": "base", "output": "trained", "data": data, "training": training}
    (work / "job.yaml").write_text(json.dumps(job))
    do("recipe", "run", work / "packs.yaml", "--output", work / "packs")
    do("sft", work / "job.yaml", "--threads", 1)
    (checkpoint,) = (work / "trained/checkpoints").glob("step-*")
    do("convert", "megatron-to-hf", checkpoint, work / "model")
    solve = {"run": "rollout.generate", "engine": "./model", "mode": "cot", "samples": 1, "temperature": 0.0}
    solve["max_tokens"] = 192
    stages = {
        "problems": {"run": "demo.benchmark", "problems": options.problems, "pool": "train"},
        "benchmark": {"run": "demo.benchmark", "problems": 60},
        "solutions": solve | {"from": "problems"},
        "held_out": solve | {"from": "benchmark"},
        "head": {
            "run": "drafter.train",
            "from": {"generations": "solutions", "model": "./model", "held_out": "held_out"},
            "form": "eagle3",
            "draft_vocab": options.draft_vocab,
            "epochs": options.epochs,
            "batch_tokens": 2048,
            "measure_every": 50,
        },
    }
    student = {"kind": "embedded", "slots": 64, "max_context": 1024, "threads": 1}
    recipe = {"name": "drafts", "seed": 1, "student": student, "stages": stages}
    (work / "drafts.yaml").write_text(json.dumps(recipe))
    do("recipe", "run", work / "drafts.yaml", "--output", work / "drafts")


# -- what the server accepts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt of the model's solutions, and how many tokens of an answer are wanted."""

    prompt: list[int]
    tokens: int


@dataclass
class Count:
    """Steps with drafts, and in how many of them the first, the second, ... was accepted."""

    steps: int
    accepted: list[int]

    @property
    def per_step(self) -> float:
        return sum(self.accepted) / self.steps

    def __str__(self) -> str:
        return f"{self.steps} steps, accepted {' '.join(map(str, self.accepted))}, {self.per_step:.4f} a step"


def solutions(model: Path, folder: Path, count: int, most: int) -> list[Asked]:
    """Prompts and lengths of the first answer of each of the solutions in ``folder``."""
    from nemo_openmath.chat import ChatTokenizer
    from nemo_openmath.core.records import Generation, read_records
    from nemo_openmath.speculative.texts import read_texts

    read = islice(read_records(folder, Generation), count)
    texts = read_texts(read, ChatTokenizer.load(model), max_tokens=1 << 20, held_out=0.0, seed=0)
    asked = []
    for text in texts.training:
        own = text.loss_mask.tolist()
        start = own.index(True)
        end = own.index(False, start) if False in own[start:] else len(own)
        asked.append(Asked(text.ids[:start].tolist(), min(end - start, most)))
    return asked


class Server:
    """A vLLM that answers with token ids and goes on behind the end of a turn."""

    def __init__(self, url: str, model: str):
        self._url, self._model = url, model
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers(self, asked: Sequence[Asked], more: int = 0) -> list[list[int]]:
        """Greedy token ids after each prompt, ``more`` than are wanted; all are asked for at once."""
        with ThreadPoolExecutor(len(asked)) as pool:
            return list(pool.map(lambda one: self._answer(one.prompt, one.tokens + more), asked))

    def _answer(self, prompt: list[int], tokens: int) -> list[int]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        content = json.dumps(body | {"ignore_eos": True, "return_token_ids": True}).encode()
        request = urllib.request.Request(f"{self._url}/v1/completions", content, {"Content-Type": "application/json"})
        with self._opener.open(request) as answer:
            return json.load(answer)["choices"][0]["token_ids"]

    def count(self) -> Count:
        """Steps and accepted drafts since it was started."""
        with self._opener.open(f"{self._url}/metrics") as answer:
            text = answer.read().decode()
        by_place = sorted((int(place), int(float(number))) for place, number in _ACCEPTED.findall(text))
        (steps,) = _STEPS.findall(text)
        return Count(int(float(steps)), [number for _, number in by_place])


def ours(model: Path, head: Path, asked: Sequence[Asked], answers: Sequence[Sequence[int]]) -> Count:
    """What the project's own measure says of the same answers, each of which goes on behind its end, so that a last
    step's drafts are judged as the server judges them."""
    import torch

    from nemo_openmath.models.eagle3 import Eagle3
    from nemo_openmath.speculative.eagle3 import Eagle3Training
    from nemo_openmath.speculative.frozen import load_base
    from nemo_openmath.speculative.settings import DrafterSettings

    base, drafter = load_base(model, DrafterSettings(form="eagle3"), "cpu"), Eagle3.load(head)
    kind, drafts = Eagle3Training(base), drafter.shape.draft_tokens
    counted = Count(0, [0] * drafts)
    for one, answer in zip(asked, answers, strict=True):
        ids = torch.tensor([*one.prompt, *answer])
        right = kind.drafts(drafter, ids, kind.states(ids[None])[0])
        done = 1  # the prompt's own pass gives the first token
        while done < one.tokens:
            accepted = right[len(one.prompt) + done - 2]
            counted.steps += 1
            for place in range(accepted):
                counted.accepted[place] += 1
            done += accepted + 1
    return counted


@contextmanager
def other_layers(head: Path, move: int) -> Iterator[Path]:
    """The same head, whose config names layers that stand ``move`` places further."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "head"
        shutil.copytree(head, folder)
        config = json.loads((folder / "config.json").read_text())
        read = config["eagle_aux_hidden_state_layer_ids"]
        config["eagle_aux_hidden_state_layer_ids"] = [layer + move for layer in read]
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


def loaded(python: str, model: Path, head: Path) -> dict[str, list[str]]:
    """Names of the head's tensors by what vLLM made of them."""
    with tempfile.TemporaryDirectory() as work:
        output, log = Path(work) / "found.json", Path(work) / "log"
        with log.open("w") as file:
            script = Path(__file__).with_name("served_loaded.py")
            done = subprocess.run([python, script, model, head, output], stdout=file, stderr=file, check=False)
        if done.returncode:
            sys.exit(f"vLLM did not load the head:\n{log.read_text()[-4000:]}")
        found: dict[str, list[str]] = json.loads(output.read_text())
        return found


def drafted(options: argparse.Namespace) -> None:
    model, head, python = options.model, options.head.resolve(), options.vllm
    found = loaded(python, model, head)
    print("the head's tensors in vLLM:", ", ".join(f"{len(names)} {how}" for how, names in found.items()), flush=True)
    if wrong := {how: names for how, names in found.items() if how != "equal" and names}:
        sys.exit(f"not as the folder says: {wrong}")
    tokens = json.loads((head / "config.json").read_text())["draft_tokens"]
    asked = solutions(model, options.generations, options.count, options.tokens)

    def serve(*arguments: str) -> Any:
        return vllm(python, model, "--generation-config", "vllm", *arguments)

    def with_head(folder: Path) -> tuple[list[list[int]], Count]:
        chosen = {"method": "eagle3", "model": str(folder), "num_speculative_tokens": tokens}
        with serve("--speculative-config", json.dumps(chosen)) as url:
            server = Server(url, model.name)
            return server.answers(asked), server.count()

    with serve() as url:
        plain = Server(url, model.name).answers(asked, tokens + 1)
    wanted = sum(one.tokens for one in asked)
    print(f"{len(asked)} answers, {wanted} tokens, greedy; {tokens} drafts a step", flush=True)
    answers, theirs = with_head(head)
    same = [a == b[: len(a)] for a, b in zip(answers, plain, strict=True)]
    print(f"vLLM with the head, against vLLM without: {sum(same)} of {len(same)} answers equal token for token")
    mine = ours(model, head, asked, plain)
    print(f"vLLM, /metrics:      {theirs}\nthe stage's measure: {mine}", flush=True)
    with other_layers(head, 1) as moved:
        _, off = with_head(moved)
    print(f"vLLM, from the states one layer later: {off}", flush=True)
    if not all(same):
        sys.exit("the head changes what the model says")
    if abs(theirs.per_step - mine.per_step) > TOLERANCE * mine.per_step:
        sys.exit(f"accepted drafts a step differ by more than {TOLERANCE:.0%}")
