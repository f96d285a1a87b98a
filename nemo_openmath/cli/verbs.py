"""The groups of verbs, in the order of ``openmath --help``."""

from nemo_openmath.cli import checkpoints, recipe, tools

GROUPS = (recipe.add, tools.add, checkpoints.add)
