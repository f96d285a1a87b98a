"""The forward pass in compiled code (forward.c), in float32 on the CPU.

Prompts and decoding are one function, split over threads by rows. A token has the same bits whatever else is computed
with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_openmath.inference.embedded.cache import Cache, block_tokens
from nemo_openmath.inference.embedded.decoder import DraftTree, PrefillChunk
from nemo_openmath.inference.embedded.kernels import CBatch, CLayer, CModel, Kernels, load_kernels
from nemo_openmath.inference.embedded.panels import Panels
from nemo_openmath.inference.embedded.sampling import RowSampling
from nemo_openmath.inference.embedded.weights import Layer, Weights

# Threads divide the rows. With fewer rows than this for each of them, reading the matrices of a model that does not
# fit the cache takes longer than computing: they divide the matrices instead, for which they must meet five times a
# layer, too often for a small model.
FEW_ROWS = 16
LARGE_BYTES = 32 << 20
KEPT = 128  # tokens of a pass whose buffers are kept for the next one of the size


@dataclass(frozen=True, slots=True)
class Branches:
    """Where what a batch's rows see lies, if not in order: ``Batch`` of forward.c says what these are."""

    stored: np.ndarray
    body: np.ndarray
    tail: np.ndarray
    tails: np.ndarray

    @classmethod
    def of(cls, trees: Sequence[DraftTree], lay_out: Callable[..., int]) -> Branches:
        """Lay out the nodes of ``trees``. The first branch of each lies in order, and sees no tail."""
        nodes, starts = np.array([len(tree) for tree in trees]), np.array([tree.start for tree in trees])
        parents = np.concatenate(
            [tree.parents if tree.parents is not None else np.arange(-1, len(tree) - 1) for tree in trees]
        )
        stored, body, tail = np.empty((3, len(parents)), np.int64)
        tails = np.empty(sum(int(tree.depths().sum()) for tree in trees), np.int64)
        arrays = (nodes, starts, np.ascontiguousarray(parents, np.int64), stored, body, tail, tails)
        lay_out(len(trees), *(a.ctypes.data for a in arrays))
        return cls(stored, body, tail, tails)


class Pass:
    """One pass: ``Batch`` of forward.c, and the memory it points to, which is filled anew for each pass.

    ``columns``: int64 [6, tokens], of each token its id, slot and position, where it is stored, body and tail.
    ``wanted``: int64 [logits].
    """

    def __init__(self, n: int, m: int, x: Tensor, qkv: Tensor, logits: Tensor):
        self.columns, self.wanted, self.logits = np.empty((6, n), np.int64), np.empty(m, np.int64), logits
        if n == m:
            self.wanted[:] = np.arange(n)
        first, step = self.columns.ctypes.data, 8 * n
        self.body, self.tail = first + 4 * step, first + 5 * step
        self.structure = CBatch(
            tokens=first,
            slots=first + step,
            positions=first + 2 * step,
            stored=first + 3 * step,
            wanted=self.wanted.ctypes.data,
            logit_rows=m,
            x=x.data_ptr(),
            qkv=qkv.data_ptr(),
            logits=logits.data_ptr(),
        )
        self.address = ctypes.addressof(self.structure)


class CompiledDecoder:
    """A :class:`~nemo_openmath.inference.embedded.decoder.Decoder`. The cache (memory comes with use: cache.py;
    R slots, H KV heads, D head_dim, C capacity in tokens, S = 32)::

        keys    [layer, R * H, C / S, D * S]    S positions side by side, for each of D dimensions
        values  [layer, R * H, C, D]

    Rows are names of slots: moving a row renames it. Use :func:`compile_decoder`.
    """

    exact = on_cpu = True

    def __init__(self, weights: Weights, slots: int, kernels: Kernels, tight: bool = False):
        w, self.kernels = weights, kernels
        self.states: Tensor | None = None
        self._keeps_states, self._norm = False, w.norm.float().contiguous()
        self.slots = self.rows = slots
        self.vocab = w.head.shape[0]
        self.max_context = w.max_context
        kv, d, layers = w.kv_heads, w.head_dim, len(w.layers)
        self.block = block_tokens(kernels.span, 4 * d)
        self.capacity = -(-w.max_context // self.block) * self.block
        self._kv_heads, self._hidden = kv, w.embedding.shape[1]
        self._width = kv * (w.group + 2) * d
        inner = w.layers[0].down.shape[1]
        self._vocab_padded = -(-self.vocab // kernels.panel) * kernels.panel
        cache = self._cache = Cache(layers, slots, kv, self.capacity, d, torch.float32, block=self.block, tight=tight)
        self.keys = cache.keys.view(layers, slots * kv, self.capacity // kernels.span, d * kernels.span)
        self.values = cache.values.view(layers, slots * kv, self.capacity, d)
        self._slot = np.arange(slots)  # of each row
        self._keep: list[Tensor] = []  # what the structures point to, besides the matrices
        matrices = [m for layer in w.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self._panels = Panels(kernels, [matrix.shape for matrix in [*matrices, w.head]])
        zeros = self._hold(torch.zeros(2 * max(self._hidden, self._width, inner, self._vocab_padded)))
        self._zeros = zeros
        c_layers = (CLayer * layers)(*(self._layer(layer, i) for i, layer in enumerate(w.layers)))
        self._c_layers = c_layers
        self._model = CModel(
            hidden=self._hidden,
            kv_heads=kv,
            intermediate=inner,
            vocab=self.vocab,
            layers=layers,
            capacity=self.capacity,
            embedding=self._hold(w.embedding),
            head=self._panels.pack(w.head * w.norm),
            rotation=self._hold(torch.view_as_real(w.rotation)),
            zeros=zeros,
            layer=ctypes.addressof(c_layers),
            eps=w.eps,
        )
        size = kernels.scratch_size(kv, inner, self.capacity)
        self._scratch = [torch.empty(size) for _ in range(kernels.threads)]
        self._room = [torch.empty(kernels.room_size(self.vocab)) for _ in range(kernels.threads)]
        self._model_address = ctypes.addressof(self._model)
        one_thread = self._scratch[0].data_ptr(), self._room[0].data_ptr()
        self._own = self._norm.data_ptr(), self._slot.ctypes.data, *one_thread  # what turns.c takes of these
        self._memory = torch.empty(0)  # of a pass
        self._batches: dict[tuple[int, int], Pass] = {}  # of few tokens, by their number and that of the logits
        self._shared = torch.empty(size)  # of threads that divide the matrices among them
        self._meeting = np.zeros(2, np.int64)
        wide = kernels.threads > 1 and self.weight_bytes() >= LARGE_BYTES
        self._few = min(FEW_ROWS * kernels.threads, kernels.most_wide) if wide else 0

    def weight_bytes(self) -> int:
        """Return the memory of the weights as they are packed."""
        return self._panels.nbytes + sum(tensor.nbytes for tensor in self._keep)

    def _layer(self, layer: Layer, i: int) -> CLayer:
        return CLayer(
            qkv=self._panels.pack(layer.qkv),
            qkv_bias=self._hold(layer.qkv_bias) or self._zeros,
            qk_norm=self._hold(layer.qk_norm),
            o=self._panels.pack(layer.o),
            o_bias=self._hold(layer.o_bias) or self._zeros,
            gate_up=self._panels.pack(layer.gate_up, pair=True),
            down=self._panels.pack(layer.down),
            keys=self.keys[i].data_ptr(),
            values=self.values[i].data_ptr(),
        )

    def _hold(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._keep.append(tensor.contiguous())
        return self._keep[-1].data_ptr()

    # -- computing -------------------------------------------------------------------------------------------------

    def decode(self, rows: np.ndarray, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        slots = self._slot[rows]
        self._cache.wrote(slots, positions + 1)
        return self._forward(tokens, slots, positions, np.arange(len(rows)), apart=True)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        tokens = np.concatenate([s.ids for s in chunks])
        lengths = np.array([len(s.ids) for s in chunks])
        ends = np.cumsum(lengths)
        for s in chunks:
            self._cache.wrote(self._slot[s.row], s.start + len(s.ids))
        slots = np.repeat(self._slot[[s.row for s in chunks]], lengths)
        positions = np.arange(len(tokens)) + np.repeat(np.array([s.start for s in chunks]) - ends + lengths, lengths)
        return self._forward(tokens, slots, positions, ends - 1, apart=len(tokens) == len(chunks))

    def verify(self, trees: Sequence[DraftTree]) -> Tensor:
        if len(trees) == 1:
            (tree,) = trees
            slot, tokens = self._slot[tree.row], tree.tokens
            slots, positions = slot, tree.start + tree.depths()
            self._cache.wrote(slot, tree.start + len(tree))
        else:
            lengths = np.array([len(tree) for tree in trees])
            starts = np.array([tree.start for tree in trees])
            own_slots = self._slot[[tree.row for tree in trees]]
            self._cache.wrote(own_slots, starts + lengths)
            tokens, slots = np.concatenate([tree.tokens for tree in trees]), np.repeat(own_slots, lengths)
            positions = np.concatenate([tree.depths() for tree in trees]) + np.repeat(starts, lengths)
        return self._forward(
            tokens,
            slots,
            positions,
            np.arange(len(positions)),
            apart=len(positions) == len(trees),
            branches=Branches.of(trees, self.kernels.lay_out)
            if any(tree.parents is not None for tree in trees)
            else None,
        )

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        if list(path) == list(range(len(path))):
            return
        nodes = np.array(path, np.int64)
        self.kernels.keep(self._model_address, int(self._slot[row]), start, nodes.ctypes.data, len(nodes))

    def keep_states(self) -> None:
        self._keeps_states = True

    def _forward(
        self,
        tokens: np.ndarray,
        slots: np.ndarray,
        positions: np.ndarray,
        wanted: np.ndarray,
        *,
        apart: bool,
        branches: Branches | None = None,
    ) -> Tensor:
        """Logits [wanted, vocab]. ``apart``: no slot occurs twice, so threads need not wait for each other."""
        n, m = len(tokens), len(wanted)
        batch = self._batches.get((n, m)) or self._batch(n, m)
        columns, c = batch.columns, batch.structure
        columns[0], columns[1], columns[2] = tokens, slots, positions
        if n != m:  # else all are
            batch.wanted[:] = wanted
        if branches is None:
            columns[3], c.body = positions, None
        else:
            columns[3], columns[4], columns[5] = branches.stored, branches.body, branches.tail
            c.body, c.tail, c.tails = batch.body, batch.tail, branches.tails.ctypes.data
        states = torch.empty(m, self._hidden) if self._keeps_states else None
        c.states = None if states is None else states.data_ptr()
        together = not apart and n >= self.kernels.threads
        c.barrier = self.kernels.barrier if together else None
        model, whole = self._model_address, batch.address

        if n < self._few:
            shared, meeting, threads = self._shared.data_ptr(), self._meeting.ctypes.data, self.kernels.threads

            def wide(thread: int) -> None:
                own = self._scratch[thread].data_ptr()
                self.kernels.forward_wide(model, whole, meeting, shared, own, n, thread, threads)

            self.kernels.together(wide)
        else:

            def part(thread: int, first: int, last: int) -> None:
                self.kernels.forward(model, whole, self._scratch[thread].data_ptr(), first, last)

            if apart or together:
                self.kernels.share(part, n)
            else:  # fewer tokens than threads
                part(0, 0, n)
        if states is not None:
            self.states = states.mul_(self._norm)
        return batch.logits

    def _batch(self, n: int, m: int) -> Pass:
        """Make room for a pass over n tokens with m logits; of few tokens it is kept."""
        sizes = (n * self._hidden, n * self._width, m * self._vocab_padded)
        if (size := sum(sizes)) > self._memory.numel():
            self._memory = torch.empty(size)
            self._batches.clear()
        x, qkv, logits = self._memory[:size].split(sizes)
        batch = Pass(n, m, x, qkv, logits.view(m, self._vocab_padded)[:, : self.vocab])
        if n <= KEPT:
            self._batches[n, m] = batch
        return batch

    def turns(self, rows: np.ndarray, tokens: int, tails: int, states: int | None, arguments: Sequence[object]) -> int:
        """Call ``run`` of turns.c, which says what the ``arguments`` are, with room for ``tokens`` tokens in a pass.
        ``tails``, ``states``: addresses of what :class:`Batch` of forward.c has by these names."""
        batch = self._batches.get((tokens, tokens)) or self._batch(tokens, tokens)
        c = batch.structure
        c.barrier, c.states, c.body, c.tail, c.tails = None, states, batch.body, batch.tail, tails
        return self.kernels.run(self._model_address, batch.address, *self._own, *arguments)

    def wrote(self, rows: np.ndarray, ends: np.ndarray) -> None:
        """Note that positions below ``ends`` of ``rows`` may be written now."""
        self._cache.wrote(self._slot[rows], np.minimum(ends, self.capacity))

    def sample(
        self, logits: Tensor, rows: RowSampling, u: np.ndarray, with_logprobs: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        n = len(u)
        tokens = np.empty(n, np.int64)
        logprobs = np.empty(n, np.float32) if with_logprobs else None
        u = np.ascontiguousarray(u)
        addresses = [a.ctypes.data for a in (rows.temperature, rows.top_p, rows.top_k, rows.min_p, u)]
        into = None if logprobs is None else logprobs.ctypes.data

        def part(thread: int, first: int, last: int) -> None:
            room = self._room[thread].data_ptr()
            what = (logits.data_ptr(), logits.stride(0), self.vocab)
            self.kernels.sample(*what, *addresses, first, last, room, tokens.ctypes.data, into)

        self.kernels.share(part, n)
        return tokens, logprobs

    # -- rows ------------------------------------------------------------------------------------------------------

    def move_row(self, source: int, target: int, length: int) -> None:
        self._slot[[source, target]] = self._slot[[target, source]]

    def copy_row(self, source: int, target: int, length: int) -> None:
        keys, values = self._row(source, length)
        self.load_row(target, keys, values, length)

    def save_row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        keys, values = self._row(row, length)
        return keys.clone(memory_format=torch.contiguous_format), values.clone(memory_format=torch.contiguous_format)

    def load_row(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        self._cache.wrote(self._slot[row], length)
        to_keys, to_values = self._row(row, length)
        to_keys.copy_(keys[:, :, : to_keys.shape[2]])
        to_values.copy_(values[:, :, :length])

    def memory_tokens(self) -> np.ndarray:
        return self._cache.memory_tokens[self._slot]

    def release(self, row: int, length: int) -> None:
        self._cache.release(int(self._slot[row]), length)

    def _row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        begin = int(self._slot[row]) * self._kv_heads
        rows = slice(begin, begin + self._kv_heads)
        return self.keys[:, rows, : -(-length // self.kernels.span)], self.values[:, rows, :length]


def compile_decoder(weights: Weights, slots: int, threads: int, tight: bool = False) -> CompiledDecoder | None:
    """Return the compiled decoder of ``weights``; None where their shapes, type or device, or a missing compiler forbid
    it."""
    w = weights
    if w.embedding.device.type != "cpu" or w.embedding.dtype != torch.float32 or w.head_dim % 16:
        return None
    kernels = load_kernels(w.head_dim, w.group, threads)
    if kernels is None:
        return None
    hidden, inner = w.embedding.shape[1], w.layers[0].down.shape[1]
    width = w.kv_heads * (w.group + 2) * w.head_dim
    if hidden % kernels.panel or width % kernels.panel or inner % kernels.lanes:
        return None
    return CompiledDecoder(w, slots, kernels, tight)
