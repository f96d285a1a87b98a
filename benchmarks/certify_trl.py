"""A real TRL trainer's first step, held against a certificate of ours.

    python benchmarks/certify_trl.py --trl ENVIRONMENT/bin/python [--output runs/certify-trl]

ENVIRONMENT has TRL and torch, and nothing of ours: `pip install torch==2.13.0`, then `pip install trl==1.16.0
transformers==5.23.0`. A random model and two packs of samples are made here and certified. TRL trains a step on these
samples, once for each way to batch them and for both kinds of attention that a CPU has: samples alone (padded),
padding-free, packed by best fit (`bfd`), and packed by cutting the joined samples (`wrapped`), where a pack is one
sequence. Each run's own log is written as a CSV and diagnosed. The exit status is 1 where one is not what it must be.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CAPACITY = 512
LENGTHS = (151, 37, 88, 203, 33, 64, 119, 17, 90, 222)  # two full packs, so that to cut is to pack
EXPECTED = {"alone": "right", "padding_free": "right", "bfd": "right", "wrapped": "pack_as_one_sequence"}
ATTENTION = ("sdpa", "eager")


def make(folder: Path) -> None:
    """Write a model, the packs and their certificate."""
    import numpy as np
    import torch
    from engine import VOCAB, make_model
    from safetensors.torch import load_file, save_file

    from nemo_openmath.cli.main import run
    from nemo_openmath.data.packs.write import write_packs
    from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
    from nemo_openmath.training.worker import tokenizer_fingerprint

    make_model(folder / "model", "1m")
    weights = load_file(folder / "model" / "model.safetensors")
    biases = {name: 0.2 * torch.randn_like(value) for name, value in weights.items() if name.endswith("bias")}
    save_file({**weights, **biases}, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    tokens = folder / "tokens"
    tokens.mkdir()
    random = np.random.default_rng(0)
    tokenizer = tokenizer_fingerprint(folder / "model")
    with ShardWriter(tokens / "00000.tokens", tokenizer=tokenizer, vocab_size=VOCAB, source="random") as writer:
        for number, length in enumerate(LENGTHS):
            mask = np.arange(length) >= length // (2 + number)
            writer.add(f"sample-{number}", "cot", random.integers(2, VOCAB, length), mask)
        writer.finish({})
    write_manifest(tokens, ["00000.tokens"])
    write_packs(tokens, folder / "packs", capacity=CAPACITY)
    arguments = ["certify", str(folder / "packs"), str(folder / "model"), "--packs", "2"]
    code = run([*arguments, "--output", str(folder / "cert.json"), "--data", str(folder / "packs.jsonl")])
    if code:
        sys.exit(int(code))


def train(folder: Path, mode: str, attention: str) -> None:
    """Train one step with TRL and write what its log says of it: runs in TRL's environment."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = []
    for pack in map(json.loads, (folder / "packs.jsonl").read_text().splitlines()):
        start = 0
        for length in pack["seq_lengths"]:
            part = slice(start, start := start + length)
            mask = [int(label != -100) for label in pack["labels"][part]]
            rows.append({"input_ids": pack["input_ids"][part], "completion_mask": mask})
    settings: dict[str, Any] = {"per_device_train_batch_size": len(rows), "max_length": None}
    if mode == "padding_free":
        settings["padding_free"] = True
    if mode in ("bfd", "wrapped"):
        settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_length": CAPACITY}
        settings |= {"packing": True, "packing_strategy": mode}
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        completion_only_loss=True,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    losses: list[float] = []
    compute = trainer.compute_loss

    def recorded(*arguments: Any, **rest: Any) -> Any:
        result = compute(*arguments, **rest)
        losses.append(float((result[0] if isinstance(result, tuple) else result).detach()))
        return result

    trainer.compute_loss = recorded
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    # Its log shows four digits; the parts that its micro-batches add to the step's loss have all of them.
    if abs(sum(losses) - log["loss"]) > 1e-3:
        sys.exit(f"{mode}: TRL computed {losses}, and logged {log['loss']}")
    with (folder / f"{mode}-{attention}.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(log))
        writer.writeheader()
        writer.writerow({**log, "loss": repr(sum(losses))})


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl", type=Path, required=True, metavar="PYTHON", help="of an environment with TRL")
    parser.add_argument("--output", type=Path, default=Path("runs/certify-trl"))
    parser.add_argument("--train", nargs=2, metavar=("MODE", "ATTENTION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.output, *options.train)
        return 0
    if options.output.exists():
        parser.error(f"{options.output} is there already")
    options.output.mkdir(parents=True)
    make(options.output)
    from nemo_openmath.training.certificate.diagnose import diagnose
    from nemo_openmath.training.certificate.files import Certificate
    from nemo_openmath.training.certificate.losses import read_losses
    from nemo_openmath.training.certificate.report import verdict

    certificate, wrong = Certificate.read(options.output / "cert.json"), 0
    for mode, expected in EXPECTED.items():
        for attention in ATTENTION:
            command = [options.trl, __file__, "--trl", options.trl, "--output", options.output]
            done = subprocess.run([*command, "--train", mode, attention], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"FAIL  {mode}, {attention}: {done.stderr.strip().splitlines()[-1]}")
                wrong += 1
                continue
            read = read_losses(options.output / f"{mode}-{attention}.csv", certificate)
            diagnosis = diagnose(certificate, read.losses, certificate.tolerances["fp32"])
            word = "PASS" if diagnosis.names == [expected] else "FAIL"
            wrong += word == "FAIL"
            print(f"{word}  TRL {mode}, {attention}: loss {read.losses[0].loss:.6f}: {verdict(diagnosis, certificate)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
