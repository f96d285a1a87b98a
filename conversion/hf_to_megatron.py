#!/usr/bin/env python3
"""Hugging Face folder -> Megatron checkpoint (torch_dist, or --classic mp_rank_* folders). Needs no GPU."""

import argparse

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.script import run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("src", help="Hugging Face folder")
parser.add_argument("dst", help="checkpoint to write")
parser.add_argument("--classic", action="store_true", help="mp_rank_* files instead of torch_dist")
parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks (with --classic)")
parser.add_argument("--pp", type=int, default=1, help="pipeline stages (with --classic)")
parser.add_argument("--rope-theta", type=float, help="new RoPE base, for example 500000")
parser.add_argument("--max-positions", type=int, help="new max_position_embeddings, for example 131072")

if __name__ == "__main__":
    options = parser.parse_args()
    run(
        hf_to_megatron,
        options.src,
        options.dst,
        classic_folders=options.classic,
        tp=options.tp,
        pp=options.pp,
        rope_theta=options.rope_theta,
        max_positions=options.max_positions,
    )
