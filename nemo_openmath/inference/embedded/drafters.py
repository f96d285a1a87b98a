"""What the embedded engine can guess tokens with, by the names that settings have for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from nemo_openmath.inference.embedded.compiled import LARGE_BYTES, CompiledDecoder
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.guesses import CGuessing, Trees, functions
from nemo_openmath.inference.embedded.ngrams import TOKEN_BYTES, NgramProposer
from nemo_openmath.inference.embedded.proposers import DraftSource, Proposer
from nemo_openmath.inference.embedded.redrafter import (
    BEAMS,
    Classes,
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

DOUBTS = (0.9, 0.7, 0.5, 0.3)  # what is left of a drafter's where n-grams agree, by how sure those are


class Both:
    """A :class:`Proposer` of two. Level 1 is n-grams alone. Level 2 is n-grams alone where a long match is found, else
    one tree of a drafter's guesses and theirs. A guess that the other one makes, too, is right more often: so there are
    classes for that."""

    levels = 2

    def __init__(self, ngrams: NgramProposer, drafter: RedrafterProposer):
        self._ngrams, self._drafter = ngrams, drafter
        alone, drafted = ngrams.expected, drafter.expected
        agreed = 1 - np.outer(1 - drafted, DOUBTS).ravel()
        self.expected = np.concatenate([alone, drafted, agreed, alone / 2])
        ngrams.learn_in(self.expected)
        first = len(alone), len(alone) + len(drafted), len(alone) + len(drafted) + len(agreed)
        self._classes = Classes(*first, self.expected)

    def begin(self, row: int) -> None:
        self._ngrams.begin(row)

    def move(self, source: int, target: int) -> None:
        self._ngrams.move(source, target)

    def propose(self, rows: np.ndarray, most: np.ndarray, level: int, into: Trees) -> None:
        self._ngrams.propose(rows, most, 1, into)
        if level == 1:
            return
        n = len(rows)
        unsure = (into.count[:n] == 0) | (into.kinds[:n, 0] < self._ngrams.sure)
        self._drafter.join(rows, most, np.flatnonzero(unsure), self._classes, into)

    def compiled(self, rows: int) -> CGuessing | None:
        made, drafted = self._ngrams.compiled(rows), self._drafter.compiled(rows)
        if made is None or drafted is None:
            return None
        drafted.log, drafted.classes, drafted.sure = made.log, ctypes.addressof(self._classes), self._ngrams.sure
        return drafted


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
    folder that holds no drafter of this model (:func:`check_drafter` knows most of it before weights are read), and
    where there is no C compiler.
    """
    if isinstance(drafter, DraftSource):
        return drafter
    if drafter is None:
        large = isinstance(decoder, CompiledDecoder) and decoder.weight_bytes() >= LARGE_BYTES
        drafter = NGRAM if large else NONE
    if drafter == NONE:
        return None
    if drafter == NGRAM:
        functions()  # where there is no compiler it is refused here
        return DraftSource(NGRAM, lambda table, room: NgramProposer(table, decoder.vocab, room))
    folder = Path(drafter)
    trained = load_drafter(folder, weights.embedding)
    length = trained.shape.draft_tokens
    search: Search
    if isinstance(decoder, CompiledDecoder):
        search = CompiledSearch(trained, weights.embedding, length, BEAMS, decoder.kernels)
    else:
        search = TorchSearch(trained, weights.embedding, length, BEAMS)
    texts = load_texts(folder, trained.shape.vocab)
    functions()

    def make(table: RowTable, room: int) -> Proposer:
        return Both(NgramProposer(table, decoder.vocab, room, texts), RedrafterProposer(table, search))

    return DraftSource(str(folder), make, hidden=trained.shape.hidden)
