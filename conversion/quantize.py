#!/usr/bin/env python3
"""Hugging Face folder -> quantized Hugging Face folder (fp8, fp8 with cache, int8, int4 AWQ) for TensorRT-LLM, vLLM."""

import argparse

from nemo_openmath.checkpoints.quantize.dequantize import check_export
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.checkpoints.script import run, texts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("src", help="Hugging Face folder")
parser.add_argument("dst", help="folder to write")
parser.add_argument("--format", required=True, choices=["fp8", "fp8_kv", "int8", "int4_awq"])
parser.add_argument("--calibration", help="texts: a .txt file (one a line) or .jsonl (strings or text fields)")
parser.add_argument("--layout", choices=["modelopt", "compressed-tensors"], default="modelopt", help="vLLM: the latter")
parser.add_argument("--samples", type=int, default=256, help="texts to use of it")
parser.add_argument("--max-tokens", type=int, default=2048, help="of each text")


def work(options: argparse.Namespace) -> str:
    calibration = texts(options.calibration, options.samples) if options.calibration else None
    chosen = {"format": options.format, "layout": options.layout, "max_tokens": options.max_tokens}
    quantize(options.src, options.dst, calibration=calibration, **chosen)
    if calibration:
        print(check_export(options.dst, options.src, calibration[:4]).line())
    return str(options.dst)


if __name__ == "__main__":
    run(work, parser.parse_args())
