"""What a drafter is trained and measured on, read for a stage, or why there is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation
from nemo_openmath.speculative.texts import CUT_OFF, EMPTY, Text, Texts, drafts_taught, read_texts


@dataclass(frozen=True, slots=True)
class TextReader:
    """Reads generations as the settings of ``drafter.train`` say."""

    tokenizer: ChatTokenizer
    max_tokens: int
    draft_tokens: int
    seed: int

    def read(self, generations: Iterable[Generation], share: float, folder: Path, *, few: bool = False) -> Texts:
        """Return the generations of ``folder`` as texts, of which a ``share`` is held out. With ``few``, the reading
        ends where there is one that every draft can learn from.

        Raises UserError where none is left: what was left out, by which setting, and what would leave some.
        """
        until = self._teaches_all if few else None
        texts = read_texts(
            generations, self.tokenizer, max_tokens=self.max_tokens, held_out=share, seed=self.seed, until=until
        )  # fmt: skip
        if texts.training:
            return texts
        counts, remedies = texts.counts, ["more generations of the model"]
        left_out = [f"{counts[EMPTY]} have nothing that the model wrote"] if counts[EMPTY] else []
        if counts[CUT_OFF]:
            left_out.append(f"max_tokens {self.max_tokens} cuts {counts[CUT_OFF]} before what the model wrote")
            remedies.insert(0, "a larger max_tokens")
        if texts.held_out:
            left_out.append(f"held_out {share} keeps {len(texts.held_out)} from the training")
            remedies.insert(0, "a smaller held_out")
        of = f"of {counts['generations']} generations, {', '.join(left_out)}" if left_out else "no generation"
        remedy = f"give {' or '.join(remedies)}"
        raise UserError(f"nothing to train or measure on: {of}", file=folder, remedy=remedy)

    def _teaches_all(self, text: Text) -> bool:
        return drafts_taught([text]) >= self.draft_tokens

    def refuse_untaught(self, texts: Sequence[Text], folder: Path, draft_ids: NDArray[np.int64] | None = None) -> None:
        """Raise UserError where a draft has nothing to learn in the ``texts`` of ``folder``. ``draft_ids``: the tokens
        that can be guessed; None: all."""
        taught = drafts_taught(texts, draft_ids)
        if taught >= self.draft_tokens:
            return
        among = "" if draft_ids is None else f", of the {len(draft_ids)} of draft_vocab,"
        raise UserError(
            f"draft {taught + 1} of draft_tokens {self.draft_tokens} has nothing to learn: no generation, cut to "
            f"max_tokens {self.max_tokens}, has a token of the model{among} at place {taught + 3} or behind it",
            file=folder,
            remedy="give longer generations, a larger max_tokens or draft_vocab, or fewer draft_tokens",
        )
