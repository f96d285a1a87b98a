"""How solutions are sampled: the settings that stages, the competition and recipes share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Annotated, Literal

from nemo_openmath.core.bounds import (
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)
from nemo_openmath.core.sandbox import Limits
from nemo_openmath.core.stage import ADDED, StageContext
from nemo_openmath.core.tokenizer import Tokenizer


@dataclass(frozen=True)
class RolloutSettings:
    """How one solution is sampled, and what its code may take."""

    temperature: NonNegativeFloat = 0.7
    """Temperature of the draws; 0 means greedy. Paper sections 2.3 and 5.2."""
    top_p: PositiveShare = 0.95
    """Draw from the fewest tokens whose probabilities reach this sum. Paper sections 2.3 and 5.2."""
    top_k: NonNegativeInt = 0
    """Draw from so many of the most probable tokens; 0 means from all."""
    min_p: Share = 0.0
    """Draw from tokens that are at least this many times as probable as the most probable one."""
    max_tokens: PositiveInt = 16384
    """Most tokens behind the prompt: those that the model writes and those of the outputs of its code. The engine's
    context ends a solution as well, never loses it. Paper section 2.3."""
    budgets: Annotated[tuple[PositiveInt, ...], Length(2, 2)] = (1, 8)
    """Smallest and largest number of code executions. Each solution draws its own, which its prompt states. Paper
    section 3.4."""
    code_seconds: PositiveFloat = 10.0
    """Seconds that one execution of code may take."""
    code_memory_mb: PositiveInt = 1024
    """Megabytes of memory that the code of a solution may take."""
    output_chars: NonNegativeInt = 1000
    """Characters of a program's output that the model is shown."""
    repetition: NonNegativeInt = 8
    """Report a solution that ran into its limit as "repetition" instead of "length" where its tail repeats so many
    times; 0 means never. No solution is ended for it: a row of zeros in a program repeats as often."""
    tool_format: Literal["tags", "fences", "tool_calls"] = field(default="tags", metadata=ADDED)
    """How the model calls code. ``tags``: between <tool_call> and </tool_call>, as the released models do. ``fences``:
    in fences of Markdown (```python), as instruct models do that do not know the tags. ``tool_calls``: by the tool
    ``python`` of a chat server (``api: chat``), as gpt-oss and Qwen3 do. Records are in tags all the same. Paper
    section 3.2."""

    @property
    def limits(self) -> Limits:
        """What the code of one solution may take."""
        return Limits(wall_s=self.code_seconds, memory_mb=self.code_memory_mb)

    def __post_init__(self) -> None:
        if len(self.budgets) != 2 or not 0 < self.budgets[0] <= self.budgets[1]:
            raise ValueError("budgets: give the smallest and the largest number of code executions, such as [1, 8]")


@dataclass(frozen=True)
class StoredRolloutSettings(RolloutSettings):
    """How a solution is sampled whose record is kept."""

    keep_ids: Literal["used", "always", "never"] = field(default="used", metadata=ADDED)
    """Whether records keep the token ids that the model generated, about half as many bytes again. ``used``: where a
    stage of the recipe encodes the solutions with the same tokenizer and chat template, so that a student trains on the
    very ids."""

    def keeps_ids(self, context: StageContext, tokenizer: Tokenizer) -> bool:
        """Return whether the records of a stage keep token ids of this tokenizer."""
        if self.keep_ids == "used":
            return context.services.encoded_with(context.name, tokenizer)
        return self.keep_ids == "always"


def draw_budget(settings: RolloutSettings, seed: int) -> int:
    """Draw the number of code executions of one solution, uniform over the range (paper section 3.4)."""
    return random.Random(seed).randint(*settings.budgets)
