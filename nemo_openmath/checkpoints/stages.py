"""Averaging, merging and quantizing as stages of a recipe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from nemo_openmath.checkpoints.methods import Layout, Method, QuantizedFormat
from nemo_openmath.core.bounds import FiniteFloat, Length, PositiveInt, PositiveShare
from nemo_openmath.core.stage import Stage, StageContext


@dataclass(frozen=True)
class AverageConfig:
    """``count`` equally spaced checkpoints of every training (the recipe takes 4), or those of ``steps``.
    ``weights``: of the checkpoints, in their order; null: equal ones."""

    count: PositiveInt | None = None
    steps: Annotated[tuple[PositiveInt, ...], Length()] | None = None
    weights: Annotated[tuple[FiniteFloat, ...], Length()] | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.steps is None):
            raise ValueError("give either count or steps")


class Average(Stage[AverageConfig]):
    """The mean of several checkpoints of a training, as a Hugging Face model."""

    kind = "checkpoints.average"
    Config = AverageConfig
    ports = {"training": "folders of a training, holding checkpoints/step-*"}
    takes = {"training": "checkpoints"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.merge.combine import average, select_steps  # torch takes seconds to import

        config = self.config
        sources = [p for root in context.inputs["training"] for p in select_steps(root, config.steps, config.count)]
        context.progress.log(f"averaging {', '.join(path.name for path in sources)}")
        await asyncio.to_thread(
            average, sources, context.output, weights=config.weights, format="hf", into_existing=True
        )
        context.metrics.update(averaged=[path.name for path in sources])


@dataclass(frozen=True)
class MergeConfig:
    """``weights`` follow the order of the models; the base of ``task_arithmetic``, ``ties`` and ``dare`` is a port."""

    method: Method = "linear"  # the weighted sum; or as the paper of that name does it
    weights: Annotated[tuple[FiniteFloat, ...], Length()] | None = None
    density: PositiveShare = 0.5  # share of each difference that ties and dare keep


class Merge(Stage[MergeConfig]):
    """Models merged into one Hugging Face model (the recipe: 0.3 CoT + 0.7 TIR, section 6)."""

    kind = "checkpoints.merge"
    version = 2  # the model of the largest weight is the pivot
    Config = MergeConfig
    ports = {"models": "models to merge, in the order of the weights", "base?": "the model all were trained from"}
    takes = {"models": "model", "base": "model"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.merge.combine import merge

        config, base = self.config, context.inputs.get("base")
        await asyncio.to_thread(
            merge,
            config.method,
            list(context.inputs["models"]),
            context.output,
            weights=config.weights,
            base=base[0] if base else None,
            density=config.density,
            seed=context.seed,
            format="hf",
            into_existing=True,
        )


@dataclass(frozen=True)
class QuantizeConfig:
    """``format`` and ``layout`` as of ``openmath quantize``; ``samples``: calibration texts, each cut to
    ``max_tokens``."""

    format: QuantizedFormat
    layout: Layout = "modelopt"
    samples: PositiveInt = 256
    max_tokens: PositiveInt = 2048


class Quantize(Stage[QuantizeConfig]):
    """A model quantized for TensorRT-LLM or vLLM; checked against its source on some of the texts."""

    kind = "checkpoints.quantize"
    version = 2  # calibrates on transcripts, not on ids
    Config = QuantizeConfig
    ports = {"model": "Hugging Face model", "calibration?": "texts: a .txt or .jsonl file, or the records of a stage"}
    takes = {"model": "model", "calibration": "records"}
    makes = "quantized"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.quantize.dequantize import check_export
        from nemo_openmath.checkpoints.quantize.export import quantize
        from nemo_openmath.checkpoints.script import texts

        config, model = self.config, context.only("model")
        given = [t for path in context.inputs.get("calibration", ()) for t in texts(path, config.samples)]
        await asyncio.to_thread(
            quantize,
            model,
            context.output,
            format=config.format,
            calibration=given[: config.samples],
            max_tokens=config.max_tokens,
            layout=config.layout,
            into_existing=True,
        )
        if given:
            check = await asyncio.to_thread(check_export, context.output, model, given[:4])
            context.progress.log(check.line())
            context.metrics.update(check=check.line())


@dataclass(frozen=True)
class DequantizeConfig:
    pass


class Dequantize(Stage[DequantizeConfig]):
    """The plain model that a quantized one stands for, so that any engine can evaluate what rounding cost."""

    kind = "checkpoints.dequantize"
    Config = DequantizeConfig
    ports = {"quantized": "folder of checkpoints.quantize"}
    takes = {"quantized": "quantized"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.quantize.dequantize import write_dequantized

        await asyncio.to_thread(write_dequantized, context.only("quantized"), context.output, into_existing=True)
