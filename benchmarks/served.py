"""A real model through other readers of its folder: where its texts end, and whether they are the embedded engine's.

    python benchmarks/served.py ends BASE --folder DISK [--vllm PYTHON]
    python benchmarks/served.py equal MODEL --problems FILE.jsonl --vllm PYTHON [--tokens 120] [--count 8]
    python benchmarks/served.py head FOLDER [--draft-vocab 256] [--epochs 6]
    python benchmarks/served.py drafted MODEL HEAD --generations DIR --vllm PYTHON [--tokens 300] [--count 60]

``ends``: trains BASE, whose files say <|endoftext|>, for a few steps on answers that end in <|im_end|>, exports it, and
asks it three questions through transformers' ``generate`` and, with ``--vllm``, through vLLM, by a client that names no
stop token. Then the same weights with BASE's settings of end and sampling, as exports that keep them would have: these
must run on behind their <|im_end|>, or the comparison shows nothing.

``equal``: greedy solutions by the embedded engine and by vLLM through the HTTP client, with vLLM started as ``openmath
serve`` starts it and with the model's own sampling defaults (``--generation-config auto``). Where two differ: the first
token that does, and by how much the two tokens' log-probabilities differ.

``head``: a model of nine layers that solves problems of the tiny world (``FOLDER/model``), its solutions of other ones
(``FOLDER/drafts/held_out``), and an EAGLE-3 head for it (``FOLDER/drafts/head``): some six minutes.

``drafted``: what vLLM makes of an EAGLE-3 head. Each tensor in its memory against the folder's. Then the model answers
the prompts of its solutions in DIR greedily, as long as these are, without the head and with it: the same tokens. Steps
and accepted drafts that vLLM counts (``/metrics``), against what the measure of ``drafter.train`` says of these
answers; exit 1 where a step's accepted drafts differ by more than 1%. At last the same head with states one layer
later: other counts, or the comparison shows nothing. Both go on behind an answer's end, so
drafts there are counted, which ``acceptance.json`` leaves out.

PYTHON: that of an environment with vLLM and this package. On a CPU vLLM takes ``VLLM_CPU_KVCACHE_SPACE`` GiB besides
the weights. A model of 0.5B parameters takes 12 GB of memory to train.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from served_drafts import drafted, head
from served_start import do, vllm

from nemo_openmath.core.engine import Completion, Engine, Request, Sampling

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TASK = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
QUESTION = "A rectangle has sides {} and {}. What is its area?"
ANSWER = "The area is the product of the sides, ${0} \\cdot {1} = {2}$.\n\nThe answer is $\\boxed{{{2}}}$."
ASKED = [TASK + QUESTION.format(*sides) for sides in ((12, 17), (21, 8), (45, 6))]
STEPS, LIMIT = 4, 120


# -- where texts end ---------------------------------------------------------------------------------------------------


def train(base: Path, work: Path) -> Path:
    """The exported folder."""
    draw = random.Random(1)
    with (work / "rows.jsonl").open("w") as file:
        for _ in range(36):
            a, b = draw.randint(2, 40), draw.randint(2, 40)
            row = {"problem": QUESTION.format(a, b), "generated_solution": ANSWER.format(a, b, a * b)}
            file.write(json.dumps(row | {"expected_answer": str(a * b)}) + "\n")
    stages: dict[str, Any] = {"rows": {"run": "sft.read", "from": "./rows.jsonl", "mode": "cot"}}
    stages["tokens"] = {"run": "sft.tokenize", "from": {"rows": "rows", "model": str(base)}, "workers": 1}
    stages["packs"] = {"run": "sft.pack", "from": "tokens", "capacity": 256}
    (work / "packs.yaml").write_text(json.dumps({"name": "packs", "stages": stages}))
    data = {"folder": "packs/packs", "batch_samples": 9, "steps": STEPS}
    training = {"lr": 1e-5, "warmup": 0.25, "precision": "bf16", "checkpoints": {"every": 0}}
    (work / "job.yaml").write_text(
        json.dumps({"model": str(base), "output": "trained", "data": data, "training": training})
    )
    do("recipe", "run", work / "packs.yaml", "--output", work / "packs")
    do("sft", work / "job.yaml", "--threads", 2)
    do("convert", "megatron-to-hf", work / f"trained/checkpoints/step-{STEPS:08d}", work / "exported")
    return work / "exported"


def with_settings_of(base: Path, exported: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in exported.iterdir():
        if file.name not in SETTINGS:
            (folder / file.name).symlink_to(file.resolve())
    for name in SETTINGS:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    return folder


def show(reader: str, folder: Path, answers: Sequence[Sequence[int]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question, ids in enumerate(answers, 1):
        ends = [place for place, number in enumerate(ids, 1) if tokenizer.decode([number]) == "<|im_end|>"]
        how = f"<|im_end|> first at {ends[0]}" if ends else "no <|im_end|>"
        print(f"{reader:34}{folder.name:10} question {question}: {len(ids):4} tokens, {how}; last ids {ids[-3:]}")
        print(f"    {tokenizer.decode(ids[:60])!r}", flush=True)


def by_transformers(folder: Path) -> list[list[int]]:
    """Greedy, with whatever else the folder's ``generation_config.json`` says."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, answers = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for question in ASKED:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            generated = model.generate(ids, do_sample=False, max_new_tokens=LIMIT)
        answers.append(generated[0, ids.shape[1] :].tolist())
    return answers


def by_chat(url: str, model: str) -> list[list[int]]:
    """As any client of the OpenAI protocol asks: no stop token, no sampling field but the temperature."""
    opener, answers = urllib.request.build_opener(urllib.request.ProxyHandler({})), []
    for question in ASKED:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        content = json.dumps(body | {"max_tokens": LIMIT, "return_token_ids": True}).encode()
        asked = urllib.request.Request(f"{url}/v1/chat/completions", content, {"Content-Type": "application/json"})
        with opener.open(asked) as answer:
            answers.append(json.load(answer)["choices"][0]["token_ids"])
    return answers


def ends(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        exported = train(options.model, Path(work))
        before = with_settings_of(options.model, exported, Path(work) / "before")
        for folder in (exported, before):
            show("transformers' generate", folder, by_transformers(folder))
        if options.vllm is None:
            return
        for folder, arguments in ((exported, ()), (exported, ("auto",)), (before, ("auto",))):
            chosen = [word for value in arguments for word in ("--generation-config", value)]
            with vllm(options.vllm, folder, *chosen) as url:
                show(" ".join(("openmath serve: vLLM", *arguments)), folder, by_chat(url, folder.name))


# -- whether they are equal --------------------------------------------------------------------------------------------


def equal(options: argparse.Namespace) -> None:
    from nemo_openmath.chat import ChatTokenizer, Message
    from nemo_openmath.inference.embedded import EmbeddedEngine
    from nemo_openmath.inference.http.client import HTTPEngine

    tokenizer = ChatTokenizer.load(options.model)
    with options.problems.open() as file:
        problems = [json.loads(next(file))["problem"] for _ in range(options.count)]
    prompts = [tuple(tokenizer.prompt_ids((Message("user", TASK + problem),))) for problem in problems]
    sampling = Sampling(max_tokens=options.tokens, temperature=0, logprobs=True)

    async def solve(engine: Engine) -> list[Completion]:
        try:
            return await asyncio.gather(*(engine.complete(Request(prompt, sampling)) for prompt in prompts))
        finally:
            await engine.close()

    ours = asyncio.run(solve(EmbeddedEngine.load(options.model, slots=options.count, threads=2)))
    for chosen in ("vllm", "auto"):
        with vllm(options.vllm, options.model, "--generation-config", chosen) as url:
            theirs = asyncio.run(solve(HTTPEngine(url, options.model.resolve().name, tokenizer=tokenizer)))
        same = [a.text == b.text and a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True)]
        tokens, characters = sum(len(a.token_ids) for a in ours), sum(len(a.text) for a in ours)
        print(f"--generation-config {chosen}: {sum(same)} of {len(same)} solutions equal character for character")
        print(
            f"    ({tokens} tokens, {characters} characters, {sum(a.finish == 'stop' for a in ours)} ended)", flush=True
        )
        for number, (prompt, a, b) in enumerate(zip(prompts, ours, theirs, strict=True), 1):
            if a.token_ids != b.token_ids:
                print(
                    f"    problem {number}: {difference(options.model, prompt, a.token_ids, b.token_ids)}", flush=True
                )


def difference(model: Path, prompt: tuple[int, ...], a: Sequence[int], b: Sequence[int]) -> str:
    """The first different token, and the two tokens' log-probabilities by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if at == min(len(a), len(b)):
        return f"one ends at token {at + 1}"
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        scores = reference(torch.tensor([[*prompt, *a[:at]]])).logits[0, -1].log_softmax(-1)
    return f"token {at + 1} differs: {a[at]} and {b[at]}, log-probabilities {scores[a[at]]:.5f} and {scores[b[at]]:.5f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    ends_verb = verbs.add_parser("ends")
    ends_verb.add_argument("model", type=Path, metavar="BASE")
    ends_verb.add_argument("--folder", type=Path, help="on a disk with room for 16 bytes a parameter")
    ends_verb.add_argument("--vllm", metavar="PYTHON")
    ends_verb.set_defaults(work=ends)
    equal_verb = verbs.add_parser("equal")
    equal_verb.add_argument("model", type=Path, metavar="MODEL")
    equal_verb.add_argument("--problems", type=Path, required=True, metavar="FILE.jsonl")
    equal_verb.add_argument("--vllm", metavar="PYTHON", required=True)
    equal_verb.add_argument("--tokens", type=int, default=120)
    equal_verb.add_argument("--count", type=int, default=8)
    equal_verb.set_defaults(work=equal)
    head_verb = verbs.add_parser("head")
    head_verb.add_argument("folder", type=Path, metavar="FOLDER", help="to be made")
    head_verb.add_argument("--rows", type=int, default=6000)
    head_verb.add_argument("--problems", type=int, default=600)
    head_verb.add_argument("--epochs", type=int, default=6)
    head_verb.add_argument("--draft-vocab", type=int, default=256)
    head_verb.set_defaults(work=head)
    drafted_verb = verbs.add_parser("drafted")
    drafted_verb.add_argument("model", type=Path, metavar="MODEL")
    drafted_verb.add_argument("head", type=Path, metavar="HEAD")
    drafted_verb.add_argument("--generations", type=Path, required=True, metavar="DIR")
    drafted_verb.add_argument("--vllm", metavar="PYTHON", required=True)
    drafted_verb.add_argument("--tokens", type=int, default=300)
    drafted_verb.add_argument("--count", type=int, default=60)
    drafted_verb.set_defaults(work=drafted)
    options = parser.parse_args()
    if "model" in options:
        options.model = options.model.resolve()
    options.work(options)


if __name__ == "__main__":
    main()
