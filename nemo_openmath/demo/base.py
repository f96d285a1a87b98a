"""Makes the student's base checkpoint: ``python -m nemo_openmath.demo.base --output examples/base``.

A Qwen2 of about one million parameters, pre-trained from random weights on plain text about the world (``corpus.py``)
by this project's own packing and trainer. It knows what such problems look like and which program goes with them; it
has never seen a chat turn, a tool tag or a box. The same seed gives the same checkpoint on the same machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.checkpoints.convert import megatron_to_hf
from nemo_openmath.checkpoints.formats.step_folders import list_checkpoints
from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.data import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.demo.corpus import documents, recipe_texts
from nemo_openmath.demo.tokenizer import train_tokenizer
from nemo_openmath.training.config import Checkpoints, TrainingConfig
from nemo_openmath.training.launch import launch

CONTEXT = 2048


@dataclass(frozen=True)
class BaseConfig:
    """Sizes of the student's base model and of its pre-training.

    Copying numbers from a statement into a program is learned late and suddenly: with these settings digits were
    right 49% of the time at step 800, 94% at step 1400 and 99% at the end. With the usual initial scale of 0.02 and
    batches of 64 documents there was no sign of it after 500 steps.
    """

    first_tokens: int = 800_000
    """Tokens of text that teaches copying; each is seen once."""
    tokens: int = 5_000_000
    """Tokens of all sorts of text, after that; each is seen once."""
    batch_samples: int = 32
    """Documents of a step, of about 65 tokens each."""
    initial_scale: float = 0.08
    """Standard deviation of the random weights, about 1 / sqrt(hidden)."""
    processes: int = 2
    """Ranks of the training."""
    hidden: int = 128
    """Width of the model."""
    layers: int = 5
    """Layers of the model."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Heads of keys and values."""
    intermediate: int = 384
    """Width of the feed-forward layers."""
    seed: int = 0
    """The seed of the corpus, the weights and the order of the data."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            lr=3e-3, final_lr_ratio=0.01, warmup=0.03, weight_decay=0.05, checkpoints=Checkpoints(every=200)
        )
    )
    """How it is trained."""


def make_base(output: str | Path, config: BaseConfig, work: str | Path) -> dict[str, float]:
    """Write the Hugging Face folder ``output``; ``work`` holds what is needed on the way, and a killed run resumes
    from it. Returns the numbers that the folder's README quotes."""
    output, work = Path(output), Path(work)
    start = work / "random"
    corpus = chain(islice(documents(config.seed), 8000), recipe_texts(config.seed, 1500))
    tokenizer = train_tokenizer(corpus, start)
    parameters = _random_model(start, tokenizer, config)
    samples, tokens = _write_corpus(work / "tokens", tokenizer, config)
    phases = Mixture(phases=[["first"], ["text"]])
    write_packs(work / "tokens", work / "packs", capacity=CONTEXT, mixture=phases, seed=config.seed)
    job = {
        "model": str(start.resolve()),
        "data": {"folder": str((work / "packs").resolve()), "batch_samples": config.batch_samples, "epochs": 1},
        "output": str((work / "training").resolve()),
        "training": asdict(config.training) | {"seed": config.seed},
    }
    (work / "job.yaml").write_text(json.dumps(job, default=str))
    begun = time.monotonic()
    launch(config.processes, work / "job.yaml")
    seconds = time.monotonic() - begun
    rows = [json.loads(line) for line in (work / "training" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(output, ignore_errors=True)
    megatron_to_hf(list_checkpoints(work / "training" / "checkpoints")[-1], output, dtype=torch.bfloat16)
    (output / "lineage.json").unlink()  # it names the work folder, which is gone; the README tells the origin
    loss = sum(row["loss"] for row in rows[-50:]) / len(rows[-50:])
    facts = {
        "parameters": parameters,
        "documents": samples,
        "tokens": tokens,
        "steps": rows[-1]["step"],
        "loss": round(loss, 4),
        "seconds": round(seconds),
    }
    (output / "README.md").write_text(_README.format(**facts, processes=config.processes))
    return facts


def _random_model(folder: Path, tokenizer: ChatTokenizer, config: BaseConfig) -> int:
    """Write config.json and seeded random weights beside the tokenizer; return the number of parameters."""
    shape = Qwen2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=config.initial_scale,
        eos_token_id=tokenizer.end_of_turn,
        pad_token_id=tokenizer.pad,
        bos_token_id=None,
    )
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(shape)
    # A document of the corpus ends with the pad token, an answered turn with its own: generation stops at either.
    model.generation_config.eos_token_id = [tokenizer.end_of_turn, tokenizer.pad]
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_corpus(folder: Path, tokenizer: ChatTokenizer, config: BaseConfig) -> tuple[int, int]:
    """Token files of documents, each ended by the pad token ``<|endoftext|>``, all trained on; (documents, tokens)."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"demo corpus, seed {config.seed}"
    samples = tokens = 0
    path = folder / "tokens-00000.shard"
    path.unlink(missing_ok=True)
    writer = ShardWriter(path, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size, source=source)
    with writer:
        for group, wanted in (("first", config.first_tokens), ("text", config.tokens)):
            stream = documents(config.seed, first=group == "first")
            until = tokens + wanted
            while tokens < until:
                for ids in tokenizer.encode_batch(list(islice(stream, 250))):
                    ids.append(tokenizer.pad)
                    writer.add(f"{group}-{samples}", group, ids, [True] * len(ids))
                    samples += 1
                    tokens += len(ids)
        writer.finish({})
    write_manifest(folder, [path.name])
    return samples, tokens


_README = """# The student's base checkpoint

A Qwen2-architecture model of {parameters:,} parameters with its tokenizer, made for the recipe in miniature.
It was pre-trained from random weights on {tokens:,} tokens ({documents:,} documents, each seen once)
of plain text about the tiny world of `nemo_openmath/demo`: problems with informal solutions, programs and what they
print, arithmetic. No document holds the recipe's prompts, chat or tool format, and no problem is of the benchmark
or of the forum.

    python -m nemo_openmath.demo.base --output examples/base

makes it again with this project's packing and trainer: {steps} steps, {seconds} s on {processes} processes (of a shared
two-core machine). Mean loss of the last 50 steps: {loss}.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nemo_openmath.demo.base", description=__doc__)
    parser.add_argument("--output", required=True, help="Hugging Face folder to write")
    parser.add_argument("--work", help="folder for corpus and checkpoints; a killed run resumes from it")
    parser.add_argument("--processes", type=int, default=BaseConfig.processes)
    options = parser.parse_args(arguments)
    config = BaseConfig(processes=options.processes)
    try:
        if options.work:
            facts = make_base(options.output, config, options.work)
        else:
            with tempfile.TemporaryDirectory(prefix="openmath-base-") as work:
                facts = make_base(options.output, config, work)
    except OpenMathError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
