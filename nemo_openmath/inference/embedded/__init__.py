"""Generation inside this process: see :class:`EmbeddedEngine`."""

from nemo_openmath.inference.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
