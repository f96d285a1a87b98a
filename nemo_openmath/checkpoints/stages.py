"""Averaging, merging and quantizing as stages of a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nemo_openmath.checkpoints.methods import Layout, Method, QuantizedFormat
from nemo_openmath.core.bounds import FiniteFloat, Length, PositiveInt, PositiveShare
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.models.devices import DeviceChoice


@dataclass(frozen=True)
class AverageConfig:
    """Which checkpoints of a training are averaged."""

    count: PositiveInt | None = None
    """How many equally spaced checkpoints of every training are averaged, the last among them. Either this or
    ``steps``. Paper section 5.1: 4."""
    steps: Annotated[tuple[PositiveInt, ...], Length()] | None = None
    """The steps of every training whose checkpoints are averaged."""
    weights: Annotated[tuple[FiniteFloat, ...], Length()] | None = None
    """Weights of the checkpoints, in their order. ``null`` weighs them equally."""

    def __post_init__(self) -> None:
        if (self.count is None) == (self.steps is None):
            raise ValueError("give either count or steps")


class Average(Stage[AverageConfig]):
    """The mean of several checkpoints of a training, as a Hugging Face model."""

    kind = "checkpoints.average"
    version = 2  # 2: equally spaced by their steps, where saves for resuming lie among them
    Config = AverageConfig
    ports = {"training": "folders of a training, holding checkpoints/step-*"}
    takes = {"training": "checkpoints"}
    makes = "model"

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        self._sources(inputs.get("training", ()))

    def _sources(self, trainings: Sequence[Path]) -> list[Path]:
        """Return the folders of the checkpoints that are averaged. Raises UserError where there are fewer."""
        if not trainings:
            return []
        from nemo_openmath.checkpoints.merge.combine import select_steps  # torch takes seconds to import

        return [step for root in trainings for step in select_steps(root, self.config.steps, self.config.count)]

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.merge.combine import average  # torch takes seconds to import

        config = self.config
        sources = self._sources(context.paths("training"))
        context.progress.log(f"averaging {', '.join(path.name for path in sources)}")
        await asyncio.to_thread(
            average, sources, context.output, weights=config.weights, format="hf", into_existing=True
        )
        context.metrics.update(averaged=[path.name for path in sources])


@dataclass(frozen=True)
class MergeConfig:
    """How models are merged."""

    method: Method = "linear"
    """``linear`` is the weighted sum; the other methods merge as the papers of their names do. ``task_arithmetic``,
    ``ties`` and ``dare`` need the input ``base``."""
    weights: Annotated[tuple[FiniteFloat, ...], Length()] | None = None
    """Weights of the models, in their order. ``null`` weighs them equally. Paper section 6: 0.3 CoT and 0.7 TIR."""
    density: PositiveShare = 0.5
    """Share of each difference that ``ties`` and ``dare`` keep."""


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

        config, base = self.config, context.paths("base")
        await asyncio.to_thread(
            merge,
            config.method,
            list(context.paths("models")),
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
    """How a model is quantized."""

    format: QuantizedFormat
    """The format of the weights. ``fp8_kv`` also quantizes the cache of keys and values. All but ``int8`` need
    calibration texts."""
    layout: Layout = "modelopt"
    """How the quantized weights are written. ``modelopt`` is what TensorRT-LLM and vLLM read; vLLM reads ``int8``
    and ``int4_awq`` as ``compressed-tensors``."""
    samples: PositiveInt = 256
    """How many texts calibrate it."""
    max_tokens: PositiveInt = 2048
    """Each text is cut to so many tokens."""
    device: DeviceChoice = field(default="auto", metadata=RUNTIME)
    """Where the model is run over the texts: ``cpu``, ``cuda``, or ``auto``, the GPU where there is one with room."""


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
        samples = [t for path in context.paths("calibration") for t in texts(path, config.samples)]
        await asyncio.to_thread(
            quantize,
            model,
            context.output,
            format=config.format,
            calibration=samples[: config.samples],
            max_tokens=config.max_tokens,
            layout=config.layout,
            device=config.device,
            into_existing=True,
        )
        if samples:
            check = await asyncio.to_thread(check_export, context.output, model, samples[:4], device=config.device)
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


@dataclass(frozen=True)
class TokenRowsConfig:
    """Which tokens of the vocabulary get a row, and of which text."""

    tokens: dict[str, str] = field(default_factory=lambda: {CODE_START: "```python", CODE_END: "```"})
    """Token -> the text whose tokens' rows are averaged. Tokens whose rows were trained keep them."""


class TokenRows(Stage[TokenRowsConfig]):
    """The same model with rows of the embedding for tokens that it never saw, such as the tags of tool calls."""

    kind = "checkpoints.token_rows"
    Config = TokenRowsConfig
    ports = {"model": "Hugging Face model"}
    takes = {"model": "model"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.token_rows import write_token_rows

        texts = self.config.tokens
        given = await asyncio.to_thread(
            write_token_rows, context.only("model"), context.output, texts, into_existing=True
        )
        for token, count in given.alike.items():
            context.progress.log(
                f"{token} was never trained ({count} rows are like its own): now that of {texts[token]!r}"
            )
        for token in given.trained:
            context.progress.log(f"{token} keeps its row: it was trained")
        context.metrics.update(untrained=given.alike, trained=list(given.trained))
