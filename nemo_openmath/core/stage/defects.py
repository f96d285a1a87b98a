"""What the author of a stage did wrong."""

from __future__ import annotations


class StageDefect(AssertionError):
    """Raised where the code of a stage breaks the contract of stages. The message names the stage and the remedy."""
