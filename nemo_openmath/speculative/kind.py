"""What the training asks of a kind of drafter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from nemo_openmath.speculative.frozen import Batch
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.texts import Text


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of a step."""

    value: float
    targets: int  # guesses that it is the mean of
    outside: int = 0  # guesses left out of it: their tokens are not in the drafter's vocabulary


class DrafterTraining(Protocol):
    """A kind of drafter for one frozen model. ``drafter`` is what :meth:`new` returns: a torch module that has
    ``rows``, ``shape`` and ``save``."""

    base: Any
    """The frozen model, of transformers."""

    def new(self, texts: Sequence[Text], settings: DrafterSettings, read: Iterable[tuple[Batch, Tensor]]) -> Any:
        """Return a drafter as it begins. What is random comes from torch's generator. ``read``: some batches of the
        texts with their states, made when they are asked for."""

    def states(self, ids: Tensor) -> Tensor:
        """Return what the drafter reads of the frozen model for tokens (rows, tokens): (rows, tokens, width), fp32."""

    def add_gradients(self, drafter: Any, batch: Batch, states: Tensor) -> StepLoss:
        """Return the loss of a batch and add its gradients to those of the drafter's parameters."""

    def drafts(self, drafter: Any, ids: Tensor, states: Tensor) -> list[int]:
        """Return how many drafts in a row, made from each token (but the last), equal the text (tokens,)."""
