"""What a stage borrows from its surroundings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from nemo_openmath.core.engine import Engine
from nemo_openmath.core.grader import Grader, Majority
from nemo_openmath.core.sandbox import Sandbox
from nemo_openmath.core.tokenizer import Tokenizer


class Services(ABC):
    """Lends engines, the sandbox and the grader. Each is opened when it is first asked for, shared by all stages, and
    closed at the end of the run."""

    @abstractmethod
    async def engine(self, name: str) -> tuple[Engine, Tokenizer]:
        """Return an engine and the tokenizer of its model.

        ``name``: ``teacher``, the name of a stage that made a model, or the folder of a Hugging Face model."""

    @abstractmethod
    async def sandbox(self) -> Sandbox:
        """Return the sandbox that runs a model's Python."""

    @abstractmethod
    async def grading(self) -> Grader:
        """Return the grader, whose comparisons have hard limits."""

    @abstractmethod
    def encoded_with(self, stage: str, tokenizer: Tokenizer) -> bool:
        """Return whether token ids of this tokenizer in what ``stage`` makes are used: a stage that reads it, directly
        or through others, encodes it with this tokenizer."""

    @abstractmethod
    def vote(self, answers: Sequence[str]) -> Majority:
        """Count answers by meaning, at once and in this process."""
