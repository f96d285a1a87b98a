"""Names of the merging methods; apart from their code, so that a recipe is read without importing torch."""

from typing import Literal

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare"]
NEEDS_BASE = ("task_arithmetic", "ties", "dare")
