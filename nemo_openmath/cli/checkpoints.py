"""``openmath convert|quantize|average|merge|inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, NOTHING_KEPT, at_least, numbers, verb
from nemo_openmath.cli.streams import run_async
from nemo_openmath.core.errors import UserError

_MERGE = "what a sweep has finished is kept, and the same command goes on; a single merge begins anew"
_METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare")


def add(groups: Any) -> None:
    _add_convert(groups)
    _add_quantize(groups)
    _add_average(groups)
    _add_merge(groups)
    inspect = verb(groups, "inspect", "what a checkpoint is, or how two differ", _inspect, interrupted=AGAIN)
    inspect.add_argument("path", type=Path, metavar="A")
    inspect.add_argument("other", type=Path, nargs="?", metavar="B")


def _add_convert(groups: Any) -> None:
    convert = groups.add_parser("convert", help="Hugging Face <-> Megatron", description="Convert a checkpoint.")
    directions = convert.add_subparsers(title="directions", metavar="DIRECTION", required=True)
    to_megatron = verb(
        directions,
        "hf-to-megatron",
        "Hugging Face folder -> torch_dist (or classic) checkpoint",
        _to_megatron,
        interrupted=NOTHING_KEPT,
    )
    to_hf = verb(
        directions,
        "megatron-to-hf",
        "torch_dist or classic checkpoint -> Hugging Face folder",
        _to_hf,
        interrupted=NOTHING_KEPT,
    )
    for parser in (to_megatron, to_hf):
        parser.add_argument("source", type=Path, metavar="SRC")
        parser.add_argument("target", type=Path, metavar="DST")
        parser.add_argument("--rope-theta", type=float, help="change the RoPE base in config.json")
        parser.add_argument("--max-positions", type=at_least(1), help="change max_position_embeddings in config.json")
    to_megatron.add_argument("--classic", action="store_true", help="mp_rank_XX folders instead of torch_dist")
    to_megatron.add_argument("--tp", type=at_least(1), default=1, help="tensor-parallel ranks of --classic")
    to_megatron.add_argument("--pp", type=at_least(1), default=1, help="pipeline ranks of --classic")
    to_hf.add_argument(
        "--model-files", type=Path, help="folder with config.json and tokenizer, if not in the checkpoint"
    )

    to_trtllm = verb(
        directions,
        "hf-to-trtllm",
        "Hugging Face or Megatron -> TensorRT-LLM checkpoint (0.18-1.2)",
        _to_trtllm,
        interrupted=NOTHING_KEPT,
    )
    to_trtllm.add_argument("source", type=Path, metavar="SRC")
    to_trtllm.add_argument("target", type=Path, metavar="DST")
    to_trtllm.add_argument("--tp", type=at_least(1), default=1)
    to_trtllm.add_argument("--pp", type=at_least(1), default=1)
    to_trtllm.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the source's")
    to_trtllm.add_argument("--quantization", choices=("int8", "int4"), help="weight-only, done when it is loaded")
    to_trtllm.add_argument("--drafter", type=Path, metavar="DIR", help="a ReDrafter of this model, to decode with")
    to_trtllm.add_argument("--beams", type=at_least(1), default=5, help="with --drafter: width of its search")


def _add_quantize(groups: Any) -> None:
    quantize = verb(
        groups,
        "quantize",
        "quantized Hugging Face folder, with hf_quant_config.json",
        _quantize,
        interrupted=NOTHING_KEPT,
    )
    quantize.add_argument("source", type=Path, metavar="SRC")
    quantize.add_argument("target", type=Path, metavar="DST")
    quantize.add_argument("--format", choices=("fp8", "fp8_kv", "int8", "int4_awq"), required=True)
    quantize.add_argument(
        "--layout",
        choices=("modelopt", "compressed-tensors"),
        default="modelopt",
        help="vLLM reads int8 and int4_awq as the latter",
    )
    quantize.add_argument("--max-tokens", type=at_least(1), default=2048, help="of each text")
    quantize.add_argument(
        "--calibration",
        type=Path,
        help="texts (all formats but int8 need them): .txt, .jsonl, a stage's folder",
    )
    quantize.add_argument("--samples", type=at_least(1), default=256, help="texts to use of it")
    quantize.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model is run over the texts; auto: the GPU where there is one with room",
    )


def _add_average(groups: Any) -> None:
    average = verb(
        groups, "average", "average checkpoints, in fp32, tensor by tensor", _average, interrupted=NOTHING_KEPT
    )
    average.add_argument("sources", nargs="*", type=Path, metavar="CHECKPOINT")
    average.add_argument("--output", type=Path, required=True)
    average.add_argument("--weights", nargs="+", metavar="W", help="such as 0.5 0.5; default: equal")
    average.add_argument("--steps", type=numbers, metavar="7500,15000", help="of trainings: these steps of each")
    average.add_argument("--count", type=at_least(1), help="of trainings: so many equally spaced ones of each")
    average.add_argument("--format", choices=("same", "hf", "megatron"), default="same")


def _add_merge(groups: Any) -> None:
    merge = verb(
        groups, "merge", "merge models: linear, SLERP, task arithmetic, TIES, DARE", _merge, interrupted=_MERGE
    )
    merge.add_argument("sources", nargs="*", type=Path, metavar="MODEL")
    merge.add_argument("--method", choices=_METHODS, default="linear")
    merge.add_argument("--weights", nargs="+", metavar="W", help="such as 0.3 0.7; default: equal")
    merge.add_argument("--base", type=Path, help="the model all were trained from (task_arithmetic, ties, dare)")
    merge.add_argument("--density", type=float, default=0.5, help="share of each difference that ties and dare keep")
    merge.add_argument("--seed", type=int, default=0, help="of dare")
    merge.add_argument("--output", type=Path, required=True)
    merge.add_argument("--format", choices=("same", "hf", "megatron"), default="same")
    merge.add_argument("--sweep", type=_ratios, metavar="0,0.1,...,1", help="one merge per part of the second model")
    merge.add_argument("--benchmark", type=Path, help="with --sweep: problems on which each is evaluated")
    merge.add_argument("--mode", choices=("cot", "tir"), default="tir", help="of the evaluation")
    merge.add_argument("--samples", type=at_least(1), default=16, help="a problem; k of maj@k and pass@k")
    merge.add_argument("--set", nargs="+", metavar="key=value", default=[], help="settings of the evaluation's recipe")


def _to_megatron(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.convert import hf_to_megatron

    done = hf_to_megatron(
        options.source,
        options.target,
        classic_folders=options.classic,
        tp=options.tp,
        pp=options.pp,
        rope_theta=options.rope_theta,
        max_positions=options.max_positions,
    )
    print(done)


def _to_hf(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.convert import megatron_to_hf

    done = megatron_to_hf(
        options.source,
        options.target,
        model_files=options.model_files,
        rope_theta=options.rope_theta,
        max_positions=options.max_positions,
    )
    print(done)


def _to_trtllm(options: argparse.Namespace) -> None:
    import torch

    from nemo_openmath.checkpoints.convert import hf_to_trtllm
    from nemo_openmath.checkpoints.formats.trtllm import commands

    done = hf_to_trtllm(
        options.source,
        options.target,
        tp=options.tp,
        pp=options.pp,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        quantization=options.quantization,
        drafter=options.drafter,
        beams=options.beams,
    )
    print(done)
    print("then, where TensorRT-LLM is installed:", *commands(done), sep="\n  ")


def _quantize(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.quantize.dequantize import check_export
    from nemo_openmath.checkpoints.quantize.export import quantize
    from nemo_openmath.checkpoints.script import texts

    calibration = texts(options.calibration, options.samples) if options.calibration else None
    done = quantize(
        options.source,
        options.target,
        format=options.format,
        calibration=calibration,
        max_tokens=options.max_tokens,
        layout=options.layout,
        device=options.device,
    )
    print(done)
    if calibration:
        print(check_export(done, options.source, calibration[:4], device=options.device).line())


def _average(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.merge.combine import average
    from nemo_openmath.checkpoints.script import weights_and_sources

    weights, sources = weights_and_sources(options.weights, options.sources)
    if any(step != int(step) for step in options.steps or ()):
        raise UserError(f"steps {options.steps}", remedy="write whole numbers: --steps 7500,15000")
    steps = None if options.steps is None else [int(step) for step in options.steps]
    done = average(
        sources,
        options.output,
        weights=weights,
        steps=steps,
        count=options.count,
        format=options.format,
    )
    print(done)


def _merge(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.merge.combine import merge, sweep
    from nemo_openmath.checkpoints.script import shown, weights_and_sources

    weights, sources = weights_and_sources(options.weights, options.sources)
    if options.sweep is not None:
        if weights is not None or len(sources) != 2:
            raise UserError("a sweep is over two models and sets their weights", remedy="give A B and no --weights")
        if options.benchmark is not None:
            return _evaluated_sweep(options, sources)
        settings = {name: getattr(options, name) for name in ("method", "base", "density", "seed", "format")}
        for candidate in sweep(sources, options.output, options.sweep, **settings):
            print(shown(candidate), flush=True)
        return None
    if options.benchmark is not None:
        raise UserError("--benchmark without --sweep", remedy="add --sweep 0,0.1,...,1")
    done = merge(
        options.method,
        sources,
        options.output,
        weights=weights,
        base=options.base,
        density=options.density,
        seed=options.seed,
        format=options.format,
    )
    print(done)
    return None


def _evaluated_sweep(options: argparse.Namespace, sources: list[Path]) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.sweep import Sweep, run_sweep

    register_all()
    plan = Sweep(
        models=(sources[0], sources[1]),
        ratios=tuple(options.sweep),
        benchmark=options.benchmark,
        method=options.method,
        base=options.base,
        density=options.density,
        seed=options.seed,
        mode=options.mode,
        samples=options.samples,
    )
    run_async(run_sweep(plan, options.output, options.set))


def _inspect(options: argparse.Namespace) -> None:
    from nemo_openmath.checkpoints.inspect import compare, inspect

    shown = inspect(options.path) if options.other is None else compare(options.path, options.other)
    for line in shown.lines():
        print(line)


def _ratios(text: str) -> list[float]:
    """Read ``0,0.1,...,1`` as a list, the dots filled in: an argparse type."""
    from nemo_openmath.checkpoints.script import ratios as parse

    try:
        return parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of ratios: {text!r} (write 0,0.1,...,1)") from None
