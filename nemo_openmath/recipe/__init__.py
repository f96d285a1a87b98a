"""A recipe file (YAML): stages in order, run, resumed and reported."""

from nemo_openmath.recipe.file import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]
