"""Judged, filtered, summarised solutions (paper sections 2.3, 3 and 4.1)."""

from nemo_openmath.synthesis.solutions import filter, grade, label, rows, summarize

__all__ = ["filter", "grade", "label", "rows", "summarize"]
