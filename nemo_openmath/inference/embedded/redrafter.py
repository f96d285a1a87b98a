"""Guesses by a trained drafter (models/drafters.py), from the model's hidden state and its newest token.

Beam search makes the tree: of each step the likeliest continuations of the last step's beams. Guesses that a later
step gave up stay in the tree; how many of all are verified is the pace's to say, by their chances.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_openmath.inference.embedded.guesses import CGuessing, Trees, functions
from nemo_openmath.inference.embedded.kernels import CDrafter, Kernels
from nemo_openmath.inference.embedded.panels import Panels
from nemo_openmath.inference.embedded.rows import RowTable
from nemo_openmath.models.drafters import ReDrafter, ResidualBlock

log = logging.getLogger(__name__)
BEAMS = 3  # of the search; draft.c allows 8
SURE = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # borders between classes of guesses, by the drafter's probability


class Search(Protocol):
    """Beam search of ``length`` steps for several rows at once."""

    length: int
    width: int

    def __call__(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return of each row, step and beam [rows, length, width], the likeliest beam first: the guess, the beam of the
        step before that it continues, and the log-probability of both. ``states`` float32 [rows, hidden]: the model's
        where each of ``tokens`` was drawn."""
        ...


class TorchSearch:
    """The search in torch."""

    def __init__(self, drafter: ReDrafter, embedding: Tensor, length: int, width: int):
        self._drafter, self._embedding = drafter.to(embedding.device).float(), embedding
        self.length, self.width = length, min(width, drafter.shape.head_rows)

    def __call__(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        drafter, rows = self._drafter, len(tokens)
        guesses: list[Tensor] = []
        beams: list[Tensor] = []
        chances: list[Tensor] = []
        hidden = torch.from_numpy(states).to(self._embedding.device)[:, None]
        reads = torch.from_numpy(tokens.astype(np.int64)).to(hidden.device)[:, None]
        scores, state = torch.zeros_like(reads, dtype=torch.float32), torch.zeros_like(hidden)
        for _ in range(self.length):
            state = drafter.advance(state, self._embedding[reads].float())
            each = drafter.logits(hidden.expand_as(state), state).log_softmax(-1)
            scores, best = (scores[..., None] + each).view(rows, -1).topk(self.width)
            parents, reads = best // each.shape[-1], drafter.tokens(best % each.shape[-1])
            state = state.gather(1, parents[..., None].expand(-1, -1, state.shape[-1]))
            guesses.append(reads)
            beams.append(parents)
            chances.append(scores)
        stacked = [torch.stack(column, 1).numpy(force=True) for column in (guesses, beams, chances)]
        return stacked[0], stacked[1], stacked[2]


class CompiledSearch:
    """The search in compiled code (draft.c), for a drafter whose matrices can be packed."""

    def __init__(self, drafter: ReDrafter, embedding: Tensor, length: int, width: int, kernels: Kernels):
        self._kernels, shape = kernels, drafter.shape
        self.length, self.width = length, min(width, shape.head_rows)
        self._keep: list[Tensor] = []  # what the structure points to
        blocks = [block.linear for block in drafter.lm_head if isinstance(block, ResidualBlock)]
        recurrence = [drafter.rnn_w.weight, drafter.rnn_u.weight]
        order = [*recurrence, *(block.weight for block in blocks), drafter.output_weight]
        self._panels = Panels(kernels, [matrix.shape for matrix in order])
        w, u = (self._panels.pack(matrix) for matrix in recurrence)
        matrices, biases = [self._panels.pack(b.weight) for b in blocks], [self._hold(b.bias.float()) for b in blocks]
        addresses = [(ctypes.c_void_p * len(blocks))(*column) for column in (matrices, biases)]
        longest = max(2 * shape.hidden, -(-shape.head_rows // kernels.panel) * kernels.panel)
        self._addresses = addresses
        self._drafter = CDrafter(
            hidden=shape.hidden,
            layers=len(blocks),
            head_rows=shape.head_rows,
            linear=shape.recurrence == "linear",
            w=w,
            u=u,
            u_bias=self._hold(drafter.rnn_u.bias.float()),
            blocks=ctypes.addressof(addresses[0]),
            biases=ctypes.addressof(addresses[1]),
            head=self._panels.pack(drafter.output_weight),
            ids=None if drafter.draft_ids is None else self._hold(drafter.draft_ids),
            embedding=self._hold(embedding),
            zeros=self._hold(torch.zeros(longest)),
            ones=self._hold(torch.ones(kernels.most_wide)),
        )
        size = kernels.draft_size(ctypes.addressof(self._drafter))
        self._room = [torch.empty(size) for _ in range(kernels.threads)]

    def _hold(self, tensor: Tensor) -> int:
        self._keep.append(tensor.detach().contiguous())
        return self._keep[-1].data_ptr()

    def __call__(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = (len(tokens), self.length, self.width)
        guesses, parents, scores = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32)
        states, tokens = np.ascontiguousarray(states), tokens.astype(np.int64)
        drafter, into = ctypes.addressof(self._drafter), [a.ctypes.data for a in (guesses, parents, scores)]
        given = (drafter, states.ctypes.data, tokens.ctypes.data)

        def part(thread: int, first: int, last: int) -> None:
            room = self._room[thread].data_ptr()
            self._kernels.draft(*given, first, last, self.length, self.width, room, *into)

        self._kernels.share(part, len(tokens))
        return guesses, parents, scores

    def compiled(self, rows: int) -> CGuessing:
        """Return the search for turns.c, with room for ``rows`` rows."""
        size = rows * self.length * self.width
        guesses, beams, scores = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
        hidden = np.empty(rows * self._drafter.hidden, np.float32)
        made = CGuessing(
            drafter=ctypes.addressof(self._drafter), length=self.length, width=self.width, room=self._room[0].data_ptr()
        )
        for name, array in (("hidden", hidden), ("guesses", guesses), ("beams", beams), ("scores", scores)):
            setattr(made, name, array.ctypes.data)
        made.keep = hidden, guesses, beams, scores
        return made


class Classes(ctypes.Structure):
    """``Classes`` of guess.c: the first class of guesses that the drafter alone makes, of those that n-grams make as
    well, and of n-grams' beside the drafter's. ``share``: of each class, how often a guess is right."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("drafted", "agreed", "against", "borders")),
        *((name, ctypes.c_void_p) for name in ("sure", "share")),
    ]

    def __init__(self, drafted: int, agreed: int, against: int, share: np.ndarray):
        self.keep = np.array(SURE, np.float32), share
        super().__init__(drafted, agreed, against, len(SURE), self.keep[0].ctypes.data, share.ctypes.data)


class RedrafterProposer:
    """The guesses of a drafter. The class of one is its depth and how sure the drafter is of it."""

    def __init__(self, table: RowTable, search: Search):
        self._c, self._table, self._search = functions(), table, search
        middles = [(low + high) / 2 for low, high in zip((0.0, *SURE), (*SURE, 1.0), strict=True)]
        self.expected = np.array(middles * search.length)

    def join(self, rows: np.ndarray, most: np.ndarray, asked: np.ndarray, classes: Classes, into: Trees) -> None:
        """Join the drafter's guesses for some of a turn's ``rows`` with those in their trees. ``asked``: which of the
        rows, by their place in the turn."""
        asked = asked[most[asked] > 0]
        if not len(asked):
            return
        some = rows[asked]
        guesses, beams, scores = self._search(
            self._table.states[some], self._table.ids[some, self._table.length[some] - 1]
        )
        step = guesses[0].size
        for i, at in enumerate(asked.tolist()):
            self._c.join(
                guesses.ctypes.data + 8 * step * i,
                beams.ctypes.data + 8 * step * i,
                scores.ctypes.data + 4 * step * i,
                self._search.length,
                self._search.width,
                int(most[at]),
                ctypes.addressof(classes),
                into.address,
                at,
            )

    def compiled(self, rows: int) -> CGuessing | None:
        """Return what makes the same guesses in turns.c, for at most ``rows`` rows; None where torch searches."""
        return self._search.compiled(rows) if isinstance(self._search, CompiledSearch) else None


def load_drafter(folder: Path, embedding: Tensor) -> ReDrafter:
    """Read the drafter of a model with this ``embedding`` [vocab, hidden]. Raises UserError for another model's."""
    drafter = ReDrafter.load(folder)
    vocab, hidden = embedding.shape
    drafter.shape.refuse_other_model(vocab, hidden, folder)
    if embedding.dtype in (torch.float32, torch.bfloat16) and not drafter.is_for(embedding):
        log.warning("%s was trained for another model: results are the same, but few guesses may be right", folder)
    return drafter
