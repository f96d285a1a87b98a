"""The groups of verbs, in the order of ``openmath --help``."""

from nemo_openmath.cli import recipe

GROUPS = (recipe.add,)
