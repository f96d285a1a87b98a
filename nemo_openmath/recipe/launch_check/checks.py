"""All checks, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.launch_check import limits, models, places, servers, space, training
from nemo_openmath.recipe.launch_check.findings import Check, Findings
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch
from nemo_openmath.recipe.preflight import files_and_settings

CHECKS = (
    Check("models and data", "files, tokenizers and settings of the recipe", models.recipe),
    Check("models and data", "what stages say of their files", models.stages),
    Check("models and data", "weights", models.weights),
    Check("models and data", "first rows of data", models.rows),
    Check("models and data", "datasets by name", places.hub),
    Check("cluster", "images", places.images),
    Check("cluster", "mounts", places.mounts),
    Check("cluster", "packages", places.packages),
    Check("cluster", "the file system of the run", places.shared),
    Check("cluster", "secrets", places.secrets),
    Check("cluster", "lines of shell", places.shell),
    Check("cluster", "partitions and accounts", limits.partitions),
    Check("servers", "room beside pools", limits.pools),
    Check("servers", "addresses of models", servers.reachable),
    Check("servers", "servers and their models", servers.hold),
    Check("servers", "the sandbox service", servers.sandbox),
    Check("training layouts", "layouts", training.layouts),
    Check("training layouts", "memory of trainings", training.memory),
    Check("disk", "free space", space.disk),
    Check("time", "time to save", training.saving),
    Check("time", "time limits", limits.times),
    Check("time", "arrays", limits.arrays),
    Check("time", "cores", limits.cores),
)


def check_launch(launch: PlannedLaunch) -> Findings:
    """Return what all checks find."""
    loop = launch.recipe.loop
    findings = Findings(loop.body if loop is not None else None)
    findings.run(CHECKS, launch)
    return findings


def check_unplanned(recipe: Recipe, names: Sequence[str], output: Path, error: UserError) -> Findings:
    """Return ``error``, for which there is no plan of jobs, and what is wrong with the files and settings of the stages
    ``names``."""
    findings = Findings()
    findings.add("cluster", error)
    for problem in files_and_settings(recipe, names, output, layouts=False, elsewhere=True):
        findings.add("models and data", problem)
    findings.checked.append("files, tokenizers and settings of the recipe")
    findings.notes.append("nothing else was checked: without a plan of jobs it cannot be")
    return findings
