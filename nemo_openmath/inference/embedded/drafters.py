"""What the embedded engine can guess tokens with, by the names that settings have for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nemo_openmath.inference.embedded.compiled import LARGE_BYTES, CompiledDecoder
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.ngrams import TOKEN_BYTES, NgramProposer, match_length
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
from nemo_openmath.models.drafter_texts import TEXTS, load_texts
from nemo_openmath.models.drafters import TENSORS

LONG = 6  # tokens of a match behind which nobody else is asked


class Both:
    """A :class:`Proposer` of two. Level 1 is n-grams alone. Level 2 is n-grams alone where many tokens match, else one
    tree of a drafter's guesses and theirs. A guess that the other one makes, too, is right more often: so there are
    classes for that."""

    levels = 2

    def __init__(self, ngrams: NgramProposer, drafter: Proposer):
        self._ngrams, self._drafter = ngrams, drafter
        alone, drafted = tuple(ngrams.expected), tuple(drafter.expected)
        agreed = tuple(max(share, 0.8) for share in drafted)
        against = tuple(share / 2 for share in alone)
        self.expected: Sequence[float] = (*alone, *drafted, *agreed, *against)
        self._first = _First(len(alone), len(alone) + len(drafted), len(alone) + 2 * len(drafted))

    def begin(self, row: int) -> None:
        self._ngrams.begin(row)
        self._drafter.begin(row)

    def move(self, source: int, target: int) -> None:
        self._ngrams.move(source, target)
        self._drafter.move(source, target)

    def propose(self, rows: Sequence[int], most: Sequence[int], level: int) -> list[Proposal | None]:
        proposals = self._ngrams.propose(rows, most)
        if level == 1:
            return proposals
        asked = [i for i, proposal in enumerate(proposals) if proposal is None or match_length(proposal) < LONG]
        if asked:
            drafted = self._drafter.propose([rows[i] for i in asked], [most[i] for i in asked], 1)
            for i, proposal in zip(asked, drafted, strict=True):
                if proposal is not None:
                    proposals[i] = _joined(proposal, proposals[i], self._first)
        return proposals


@dataclass(frozen=True, slots=True)
class _First:
    """The first classes of guesses: a drafter's alone, those that n-grams make as well, n-grams' alone beside it."""

    drafted: int
    agreed: int
    against: int


def _joined(drafted: Proposal, chain: Proposal | None, first: _First) -> Proposal:
    """One tree of both: the drafter's, and the n-grams' chain as far as that is another one."""
    tokens, parents = list(drafted.tokens), list(drafted.parents)
    classes = [first.drafted + kind for kind in drafted.classes]
    if chain is not None:
        place = {(parent, token): i for i, (parent, token) in enumerate(zip(parents, tokens, strict=True))}
        at = -1
        for token, kind in zip(chain.tokens, chain.classes, strict=True):
            if (same := place.get((at, token))) is not None:
                classes[same] = first.agreed + drafted.classes[same]
                at = same
                continue
            tokens.append(token)
            parents.append(at)
            classes.append(first.against + kind)
            at = len(tokens) - 1
    return Proposal(tokens, parents, classes)


def memory_of(drafter: str | Path | DraftSource | None) -> int:
    """Return the memory that a drafter takes beside the model: its weights, and n-grams of its texts; 0 where it has
    none."""
    if drafter is None or isinstance(drafter, DraftSource):
        return 0
    sizes = [file.stat().st_size if (file := Path(drafter) / name).is_file() else 0 for name in (TENSORS, TEXTS)]
    return sizes[0] + sizes[1] // 4 * TOKEN_BYTES


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
    texts = load_texts(folder, trained.shape.vocab)
    return DraftSource(str(folder), partial(_trained, search=search, texts=texts), hidden=trained.shape.hidden)


def _trained(table: RowTable, search: Search, texts: Sequence[np.ndarray]) -> Proposer:
    return Both(NgramProposer(table, texts), RedrafterProposer(table, search))
