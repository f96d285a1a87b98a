"""The sizes of drafters: settings are checked by them before torch is imported, which takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_openmath.core.errors import UserError

Recurrence = Literal["silu", "linear"]
DraftForm = Literal["redrafter", "eagle3"]
_LEAST_LAYERS = 7  # of a model that EAGLE-3 serves: below, the three layers are not three


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """The sizes of a drafter, as its config.json says them."""

    hidden: int  # width of the served model
    vocab: int  # tokens of the served model
    layers: int = 2  # residual blocks of the head
    draft_tokens: int = 3  # guesses that it was trained for
    draft_vocab: int = 0  # tokens that may be guessed; 0: all
    recurrence: Recurrence = "silu"  # linear: without it, and b is 0

    @property
    def head_rows(self) -> int:
        """Rows of the head's last matrix."""
        return self.draft_vocab or self.vocab


@dataclass(frozen=True, slots=True)
class Eagle3Shape:
    """The sizes of an EAGLE-3 head, as its config.json says them."""

    hidden: int  # width of the served model
    vocab: int  # tokens of the served model
    target_layers: int  # layers of the served model
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_positions: int = 32768
    draft_tokens: int = 3  # steps that it was unrolled for
    draft_vocab: int = 0  # tokens that may be guessed; 0: all

    @property
    def head_rows(self) -> int:
        """Rows of the head's matrix."""
        return self.draft_vocab or self.vocab

    @property
    def read_layers(self) -> tuple[int, int, int]:
        """The layers of the served model whose inputs are read, the first being 0: the choice of vLLM, SGLang and
        TensorRT-LLM where nothing else is said."""
        return 2, self.target_layers // 2, self.target_layers - 3


def refuse_few_layers(layers: int, folder: Path | None = None) -> None:
    """Raise UserError where a model has too few layers for three different ones to be read."""
    if layers < _LEAST_LAYERS:
        problem = f"has {layers} layers; EAGLE-3 reads three of at least {_LEAST_LAYERS}"
        raise UserError(problem, file=folder, remedy="use form: redrafter")
