"""Averaging and merging as stages of a recipe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nemo_openmath.checkpoints.methods import Method
from nemo_openmath.pipeline import Stage, StageContext, register


@dataclass(frozen=True)
class AverageConfig:
    """``count`` equally spaced checkpoints of every training (the recipe takes 4), or those of ``steps``."""

    count: int | None = None
    steps: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.steps is None):
            raise ValueError("give either count or steps")


@register
class Average(Stage[AverageConfig]):
    """The mean of several checkpoints of a training, as a Hugging Face model."""

    kind = "checkpoints.average"
    Config = AverageConfig
    ports = {"training": "folders of a training, holding checkpoints/step-*"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.combine import average, select_steps  # torch takes seconds to import

        config = self.config
        sources = [p for root in context.inputs["training"] for p in select_steps(root, config.steps, config.count)]
        context.progress.say(f"averaging {', '.join(path.name for path in sources)}")
        await asyncio.to_thread(
            average, sources, context.output, weights=config.weights, format="hf", into_existing=True
        )
        context.facts.update(averaged=[path.name for path in sources])


@dataclass(frozen=True)
class MergeConfig:
    """``weights`` follow the order of the models; the base of ``task_arithmetic``, ``ties`` and ``dare`` is a port."""

    method: Method = "linear"
    weights: tuple[float, ...] | None = None
    density: float = 0.5


@register
class Merge(Stage[MergeConfig]):
    """Models merged into one Hugging Face model (the recipe: 0.3 CoT + 0.7 TIR, section 6)."""

    kind = "checkpoints.merge"
    Config = MergeConfig
    ports = {"models": "models to merge, in the order of the weights", "base?": "the model all were trained from"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        from nemo_openmath.checkpoints.combine import merge

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
