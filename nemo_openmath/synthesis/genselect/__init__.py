"""A model picks the best of several solutions (paper section 4)."""

from nemo_openmath.synthesis.genselect import groups, select

__all__ = ["groups", "select"]
