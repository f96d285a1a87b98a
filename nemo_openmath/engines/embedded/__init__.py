"""Generation inside this process: see :class:`EmbeddedEngine`."""

from nemo_openmath.engines.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
