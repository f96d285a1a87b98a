"""What one solution begins with."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.core.engine import Engine
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.inference.rollout.settings import RolloutSettings


@dataclass(frozen=True, slots=True)
class Start:
    """What one solution begins with: who is asked what, and how."""

    engine: Engine
    tokenizer: Tokenizer
    messages: tuple[Message, ...]
    settings: RolloutSettings
    seed: int
    key: str
    """Name of the conversation, for prefix caches."""
    budget: int
    """Executions of code that the solution may call; 0 in CoT mode."""
