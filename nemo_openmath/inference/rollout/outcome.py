"""What a rollout leaves: one solution, why it ended, and what it cost."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from nemo_openmath.chat import Transcript
from nemo_openmath.core.engine import ContextOverflow, Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records.notes import Timing
from nemo_openmath.core.tokenizer import Message, Tokenizer


@dataclass(slots=True)
class Cost:
    """What a solution took, or several together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens that the model wrote."""
    tool_tokens: int = 0
    """Tokens of the outputs of its code."""
    cached_tokens: int = 0
    """Prompt tokens of all turns that the engine did not have to compute."""
    computed_tokens: int = 0
    """Prompt tokens of all turns that the engine computed."""
    code_calls: int = 0
    code_seconds: float = 0.0
    invented_outputs: int = 0
    """How often the model began an output itself, which was cut away."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One solution: its transcript, why it ended, and what it cost."""

    transcript: Transcript
    finish: Finish
    cost: Cost = field(default_factory=Cost)
    timing: Timing | None = None
    """When it was made, where somebody wants to know."""

    @classmethod
    def untried(cls, messages: tuple[Message, ...], tokenizer: Tokenizer, error: Refused) -> Outcome:
        """Return the outcome of a prompt which is longer than the context, or which the engine refuses."""
        finish = Finish.CONTEXT if isinstance(error, ContextOverflow) else Finish.REFUSED
        return cls(Transcript(messages, tokenizer=tokenizer.fingerprint), finish)


def tail_repeats(ids: Sequence[int], times: int) -> bool:
    """Tell whether the ids end in one stretch that stands there ``times`` times.

    Every period is tried; nearly always a look at the last few ids is enough to exclude it.
    """
    data = array("q", ids).tobytes()
    for period in range(8, len(data) // times + 1, 8):  # bytes
        repeated = period * (times - 1)  # bytes that must equal what stands a period before them
        few = min(repeated, 512)
        if data[-few:] == data[-few - period : -period] and data[-repeated:] == data[-repeated - period : -period]:
            return True
    return False
