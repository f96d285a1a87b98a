"""What the embedded engine can guess tokens with, by the names that settings have for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nemo_openmath.inference.embedded.compiled import LARGE_BYTES, CompiledDecoder
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.ngrams import NgramProposer, match_length
from nemo_openmath.inference.embedded.proposers import DraftSource, Proposal, Proposer
from nemo_openmath.inference.embedded.redrafter import (
    BEAMS,
    CompiledSearch,
    RedrafterProposer,
    Search,
    TorchSearch,
    load_drafter,
)
from nemo_openmath.inference.embedded.rows import RowTable
from nemo_openmath.inference.embedded.weights import Weights
from nemo_openmath.inference.open import NGRAM, NONE
from nemo_openmath.models.drafters import TENSORS

LONG = 6  # tokens of a match behind which nobody else is asked


class LongestMatchFirst:
    """A :class:`Proposer` of two: n-grams where many tokens match, else a drafter."""

    def __init__(self, ngrams: NgramProposer, drafter: Proposer):
        self._ngrams, self._drafter = ngrams, drafter
        self.expected: Sequence[float] = (*ngrams.expected, *drafter.expected)

    def begin(self, row: int) -> None:
        self._ngrams.begin(row)
        self._drafter.begin(row)

    def move(self, source: int, target: int) -> None:
        self._ngrams.move(source, target)
        self._drafter.move(source, target)

    def propose(self, rows: Sequence[int], most: Sequence[int]) -> list[Proposal | None]:
        proposals = self._ngrams.propose(rows, most)
        asked = [i for i, proposal in enumerate(proposals) if proposal is None or match_length(proposal) < LONG]
        if asked:
            drafted = self._drafter.propose([rows[i] for i in asked], [most[i] for i in asked])
            for i, proposal in zip(asked, drafted, strict=True):
                if proposal is not None:
                    classes = [len(self._ngrams.expected) + kind for kind in proposal.classes]
                    proposals[i] = Proposal(proposal.tokens, proposal.parents, classes)
        return proposals


def weights_bytes(drafter: str | Path | DraftSource | None) -> int:
    """Return the memory that a drafter's weights take beside the model's; 0 where it has none."""
    if drafter is None or isinstance(drafter, DraftSource) or not (file := Path(drafter) / TENSORS).is_file():
        return 0
    return file.stat().st_size


def draft_source(drafter: str | Path | DraftSource | None, decoder: Decoder, weights: Weights) -> DraftSource | None:
    """Return what ``drafter`` names: ``none``, ``ngram``, or the folder of a trained drafter; None where nothing is
    guessed.

    None means ``ngram`` for a model in compiled code that does not fit a processor's cache: only the speed can change
    there, and looking for guesses takes nothing beside a pass. For others it means ``none``. Raises UserError for a
    folder that holds no drafter of this model (:func:`check_drafter` knows most of it before weights are read).
    """
    if isinstance(drafter, DraftSource):
        return drafter
    if drafter is None:
        large = isinstance(decoder, CompiledDecoder) and decoder.weight_bytes() >= LARGE_BYTES
        drafter = NGRAM if large else NONE
    if drafter == NONE:
        return None
    if drafter == NGRAM:
        return DraftSource(NGRAM, NgramProposer)
    folder = Path(drafter)
    trained = load_drafter(folder, weights.embedding)
    length = trained.shape.draft_tokens
    search: Search
    if isinstance(decoder, CompiledDecoder):
        search = CompiledSearch(trained, weights.embedding, length, BEAMS, decoder.kernels)
    else:
        search = TorchSearch(trained, weights.embedding, length, BEAMS)
    return DraftSource(str(folder), partial(_trained, search=search), hidden=trained.shape.hidden)


def _trained(table: RowTable, search: Search) -> Proposer:
    return LongestMatchFirst(NgramProposer(table), RedrafterProposer(table, search))
