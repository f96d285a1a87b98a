"""NeMo-OpenMath: build a math-reasoning model, end to end."""

__version__ = "0.2.0"
