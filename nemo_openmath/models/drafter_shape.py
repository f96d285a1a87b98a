"""The sizes of drafters: settings are checked by them before torch is imported, which takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.lineage import Lineage
from nemo_openmath.models.hf_config import describe

Recurrence = Literal["silu", "linear"]
DraftForm = Literal["redrafter", "eagle3"]
ARCHITECTURE = "ReDrafter"
EAGLE3_ARCHITECTURE = "LlamaForCausalLMEagle3"
TRAINED = "trained_draft_tokens"  # in a config.json, beside draft_tokens
DRAFT_TOKENS = 3  # of a step, where nothing else is said
_LEAST_LAYERS = 7  # of a model that EAGLE-3 serves: below, the three layers are not three


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """The sizes of a drafter, as its config.json says them."""

    hidden: int  # width of the served model
    vocab: int  # tokens of the served model
    layers: int = 2  # residual blocks of the head
    draft_tokens: int = DRAFT_TOKENS  # guesses of a step, at most as many as it was trained for
    draft_vocab: int = 0  # tokens that may be guessed; 0: all
    recurrence: Recurrence = "silu"  # linear: without it, and b is 0
    model: str = ""  # digest of the served model's embeddings; empty: not known

    @property
    def head_rows(self) -> int:
        """Rows of the head's last matrix."""
        return self.draft_vocab or self.vocab

    @classmethod
    def read(cls, folder: Path) -> DrafterShape:
        """Return what ``config.json`` of a ReDrafter's folder says. Raises UserError where it is none's, or asks for
        more guesses than the drafter was trained for (:func:`refuse_untrained_drafts`)."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
            if (architectures := config.pop("architectures")) == [EAGLE3_ARCHITECTURE]:
                remedy = "serve it with vLLM, SGLang or TensorRT-LLM, or train one with form: redrafter"
                raise UserError("an EAGLE-3 head, no ReDrafter", file=path, remedy=remedy)
            if architectures != [ARCHITECTURE]:
                raise KeyError("architectures")
            refuse_untrained_drafts(config, folder)
            config.pop(TRAINED, None)
            shape = cls(**config)
            if not 0 <= shape.draft_vocab < shape.vocab or shape.recurrence not in get_args(Recurrence):
                raise ValueError("draft_vocab or recurrence")
            if shape.layers < 0 or not isinstance(shape.model, str):
                raise ValueError("layers or model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "not a drafter's config.json", file=path, remedy="give the output of a stage drafter.train"
            ) from error
        return shape

    def refuse_other_model(self, vocab: int, hidden: int, folder: Path) -> None:
        """Raise UserError where the drafter in ``folder`` is of another model than one of these sizes."""
        if (self.vocab, self.hidden) != (vocab, hidden):
            raise UserError(
                f"a drafter of a model with {self.vocab} tokens and width {self.hidden}; this model has {vocab} and "
                f"{hidden}",
                file=folder / "config.json",
                remedy="give a drafter that was trained on this model (drafter.train), or ngram",
            )


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
    draft_tokens: int = DRAFT_TOKENS  # guesses of a step, at most as many as it was unrolled for
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


def refuse_untrained_drafts(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError where the ``config.json`` of the drafter in ``folder`` asks for more guesses than the drafter was
    trained for: nothing has taught it those behind. Fewer may be asked for.

    ``trained_draft_tokens`` says how many these are; in a folder that an earlier version wrote, ``lineage.json``. Where
    neither does, ``draft_tokens`` is taken at its word. Raises ValueError for what is no number of guesses.
    """
    asked = config.get("draft_tokens", DRAFT_TOKENS)
    if (trained := config.get(TRAINED)) is None:
        lineage = Lineage.read(folder)
        trained = asked if lineage is None else lineage.config.get("draft_tokens", asked)
    if not all(type(number) is int and number >= 1 for number in (asked, trained)):
        raise ValueError(f"draft_tokens or {TRAINED}")
    if asked > trained:
        raise UserError(
            f"draft_tokens {asked}, and the drafter was trained for {trained}",
            file=folder / "config.json",
            remedy=f"write {trained} at most, or train one by drafter.train with draft_tokens: {asked}",
        )


def refuse_few_layers(layers: int, folder: Path | None = None) -> None:
    """Raise UserError where a model has too few layers for three different ones to be read."""
    if layers < _LEAST_LAYERS:
        problem = f"has {layers} layers; EAGLE-3 reads three of at least {_LEAST_LAYERS}"
        raise UserError(problem, file=folder, remedy="use form: redrafter")


def refuse_drafter(folder: Path, model: Path | None = None) -> None:
    """Raise UserError where the config.json files of ``folder`` and ``model`` say that the one cannot draft for the
    other. Without a model it is only asked whether the folder is a drafter's."""
    shape = DrafterShape.read(folder)
    if model is not None:
        described = describe(model, quantized=True)
        shape.refuse_other_model(described.vocab_size, described.hidden_size, folder)
