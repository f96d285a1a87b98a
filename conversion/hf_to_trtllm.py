#!/usr/bin/env python3
"""Checkpoint (Hugging Face or Megatron) -> TensorRT-LLM checkpoint (0.18 to 1.2). Needs no GPU, no TensorRT-LLM."""

import argparse

import torch

from nemo_openmath.checkpoints.convert import hf_to_trtllm
from nemo_openmath.checkpoints.formats.trtllm import commands
from nemo_openmath.checkpoints.script import run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("src", help="Hugging Face folder or Megatron checkpoint")
parser.add_argument("dst", help="folder to write")
parser.add_argument("--tp", type=int, default=1)
parser.add_argument("--pp", type=int, default=1)
parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="that of the source when left out")
parser.add_argument("--quantization", choices=["int8", "int4"], help="weight-only, done by TensorRT-LLM when it loads")

if __name__ == "__main__":
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    layout = {"tp": options.tp, "pp": options.pp}
    run(hf_to_trtllm, options.src, options.dst, dtype=dtype, quantization=options.quantization, **layout)
    print("then, where TensorRT-LLM is installed:", *commands(options.dst), sep="\n  ")
