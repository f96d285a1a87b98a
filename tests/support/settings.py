"""The classes that a user's YAML files are read into."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from nemo_openmath.cli.registry import register_all
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.launch.cluster import Cluster
from nemo_openmath.recipe.file import RecipeSettings
from nemo_openmath.recipe.generate import GenerateJob
from nemo_openmath.training.config import TrainingJob


def settings_classes() -> list[type]:
    """Every dataclass that a file of a user's is read into, with those nested in it."""
    register_all()
    found: list[type] = []

    def walk(hint: Any) -> None:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if hint in found:
                return
            found.append(hint)
            for inner in typing.get_type_hints(hint, include_extras=True).values():
                walk(inner)
        for inner in typing.get_args(hint):
            walk(inner)

    for kind in [*(cls.Config for cls in stage_kinds().values()), RecipeSettings, GenerateJob, TrainingJob, Cluster]:
        walk(kind)
    return found
