"""What a recipe costs, as JSON for programs: hours, bytes and seconds, not rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from nemo_openmath.recipe.costs.saving import SavingCosts
from nemo_openmath.recipe.costs.trainings import TrainingPlan
from nemo_openmath.recipe.costs.whole import RecipeCosts
from nemo_openmath.training.planning.as_json import layout_json


def trainings_json(plans: Sequence[TrainingPlan], saving: Sequence[SavingCosts]) -> str:
    """Return the trainings of a recipe: layouts, memory, hours, and how often to save."""
    return _text({"trainings": _trainings(plans, saving)})


def costs_json(costs: RecipeCosts, price: float | None) -> str:
    """Return what a whole recipe costs on a cluster."""
    total = costs.gpu_hours + costs.elsewhere_hours
    return _text(
        {
            "name": costs.name,
            "unpriced": {stage.stage: stage.unpriced for stage in costs.stages if stage.unpriced},
            "without_second_model": {stage.stage: stage.beside for stage in costs.stages if stage.beside},
            "gpu_hours": costs.gpu_hours,
            "elsewhere_gpu_hours": costs.elsewhere_hours,
            "price": None if price is None else price * total,
            "node_hours": sum(stage.node_hours for stage in costs.stages),
            "core_hours": sum(stage.core_hours for stage in costs.stages),
            "seconds": costs.seconds,
            "path": costs.path,
            "disk_bytes": sum(stage.disk.lasting for stage in costs.stages),
            "most_disk_bytes": sum(stage.disk.peak for stage in costs.stages),
            "stages": [asdict(stage) for stage in costs.stages],
            "trainings": _trainings(costs.trainings, costs.saving),
        }
    )


def _trainings(plans: Sequence[TrainingPlan], saving: Sequence[SavingCosts]) -> list[dict[str, Any]]:
    out = []
    for plan, cost in zip(plans, saving, strict=True):
        own, steps = plan.plan.configured, plan.plan.work.steps
        out.append(
            {
                "stage": plan.stage,
                "steps": steps,
                "own": None if own is None else layout_json(own, steps),
                "offered": layout_json(plan.plan.offered, steps),
                "settings": [] if plan.advice is None else plan.advice.settings,
                "checkpoint": saving_json(cost),
            }
        )
    return out


def saving_json(cost: SavingCosts) -> dict[str, Any]:
    """Return how often a training saves, how often it should, and what is lost either way."""
    return {
        "bytes": cost.size,
        "every": cost.every,
        "lost": cost.own_lost,
        "young": cost.young,
        "best": cost.best,
        "best_lost": cost.lost(cost.best),
        "bytes_per_hour": cost.bytes_per_hour,
        "stalled": cost.stalled,
        "busy": cost.busy,
    }


def _text(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
