"""A plan as plain data for programs: bytes, seconds and hours, not rounded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nemo_openmath.training.planning.layouts import Estimate, Plan


def layout_json(choice: Estimate, steps: int | None) -> dict[str, Any]:
    """Return a layout with its memory and time. ``gpu_hours`` is None where nothing says how many steps there are."""
    return {
        **asdict(choice.layout),
        "memory_bytes": choice.memory.total,
        "step_seconds": choice.time.total,
        "mfu": choice.mfu,
        "gpu_hours": None if steps is None else choice.gpu_hours(steps),
    }


def plan_json(plan: Plan, rows: int) -> dict[str, Any]:
    """Return a plan with ``rows`` layouts at most (0: all), the fastest first."""
    steps = plan.work.steps
    return {
        "name": plan.work.name,
        "gpu": plan.gpu.name,
        "gpus": plan.gpus,
        "steps": steps,
        "step_tokens": plan.work.tokens,
        "headroom": plan.headroom,
        "own": None if plan.configured is None else layout_json(plan.configured, steps),
        "offered": layout_json(plan.offered, steps),
        "fits": [layout_json(choice, steps) for choice in (plan.fits[:rows] if rows else plan.fits)],
    }
