"""What one solution begins with."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.core.engine import Completion, Engine, Request
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.inference.rollout.settings import RolloutSettings
from nemo_openmath.inference.rollout.watch import Watch


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
    watch: Watch | None = None

    async def complete(self, request: Request) -> Completion:
        """Ask the engine, under the rollout's watch where it has one."""
        return await (
            self.engine.complete(request) if self.watch is None else self.watch.complete(self.engine, request)
        )
