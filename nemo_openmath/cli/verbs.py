"""The groups of verbs, in the order of ``openmath --help``."""

from nemo_openmath.cli import checkpoints, data, launch, plan, recipe, tools

GROUPS = (recipe.add, launch.add, plan.add, tools.add, data.add, checkpoints.add)
