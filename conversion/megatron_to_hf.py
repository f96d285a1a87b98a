#!/usr/bin/env python3
"""Megatron checkpoint (torch_dist or classic mp_rank_* folders) -> Hugging Face folder. Needs no GPU."""

import argparse

from nemo_openmath.checkpoints.convert import megatron_to_hf
from nemo_openmath.checkpoints.script import run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("src", help="Megatron checkpoint")
parser.add_argument("dst", help="Hugging Face folder to write")
parser.add_argument("--model-files", help="folder with config.json and tokenizer, where the checkpoint has none")
parser.add_argument("--rope-theta", type=float, help="new RoPE base, for example 500000")
parser.add_argument("--max-positions", type=int, help="new max_position_embeddings, for example 131072")

if __name__ == "__main__":
    options = parser.parse_args()
    run(
        megatron_to_hf,
        options.src,
        options.dst,
        model_files=options.model_files,
        rope_theta=options.rope_theta,
        max_positions=options.max_positions,
    )
