"""Computing the model in torch alone: for GPUs, other types than float32, and machines without a C compiler.

It does ragged prefill and batched single-token decoding over one static cache of keys and values.

Layout (R slots, H KV heads, D head_dim, C capacity in tokens; on a CPU memory comes with use, see cache.py)::

    keys, values  [layer][R * H, C, D]
    mask          [R, C]                  0 where a slot may look, -inf elsewhere, in float32

Rows are slots. A step computes rows 0..n-1, n rounded up to ``quantum``: on a CPU the smallest number of rows at which
this machine's matrix product gives every row the same bits whatever the number of rows. So a request draws the same
tokens alone and in any batch. A GPU's products have no such number, and nothing is rounded up there. Rows that are not
decoding compute on a scratch column and are ignored.

Scores of attention are float32 in every type, as in transformers: a bfloat16 has 8 bits, too few to tell likely tokens
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from nemo_openmath.inference.embedded.cache import Cache, block_tokens
from nemo_openmath.inference.embedded.decoder import DraftTree, PrefillChunk
from nemo_openmath.inference.embedded.sampling import RowSampling, logprobs, sample, sample_on_device
from nemo_openmath.inference.embedded.weights import Weights

BLOCK = 64  # attention lengths are rounded up to this: few distinct shapes, aligned rows


@dataclass(frozen=True, slots=True)
class _Step:
    """Views into the step's buffers for a number of rows and an attention length."""

    tokens: Tensor
    positions: Tensor
    positions_kv: Tensor
    x: Tensor
    rotation: Tensor
    rotated: Tensor  # complex view of q and k in `qkv`, or real view for other types
    qkv: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    qk: Tensor
    scores: Tensor  # float32
    scores_rows: Tensor
    shares: Tensor  # softmax of the scores, in the type of the values; in float32 the same memory
    mask: Tensor
    heads_out: Tensor
    attended: Tensor
    gate_up: Tensor
    gate: Tensor
    up: Tensor
    logits: Tensor
    rows_kv: Tensor
    cache: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # of each layer: keys to write, values to write, keys, values


class TorchDecoder:
    """A :class:`Decoder` in torch."""

    exact = False  # a step and a prompt are other products: equal up to rounding

    def __init__(self, weights: Weights, slots: int, tight: bool = False):
        w = self.weights = weights
        self.dtype, self.device = w.embedding.dtype, w.embedding.device
        self.slots, self.vocab, self.max_context = slots, w.head.shape[0], w.max_context
        self.on_cpu = self.device.type == "cpu"
        self.states: Tensor | None = None
        self._keeps_states = False
        self.block = block_tokens(BLOCK, w.head_dim * self.dtype.itemsize)
        self.capacity = -(-(w.max_context + 1) // self.block) * self.block  # the last column is scratch
        self.scratch = self.capacity - 1
        self.quantum = self._row_quantum()
        rows = self.rows = self.round_rows(slots)
        kv, d, layers = w.kv_heads, w.head_dim, len(w.layers)
        zeros, empty = self._zeros, self._empty
        self._cache: Cache | None = None
        if self.device.type == "cpu":
            cache = self._cache = Cache(layers, rows, kv, self.capacity, d, self.dtype, block=self.block, tight=tight)
            self.keys = cache.keys.view(layers, rows * kv, self.capacity, d)
            self.values = cache.values.view(layers, rows * kv, self.capacity, d)
        else:
            self.keys = zeros(layers, rows * kv, self.capacity, d)
            self.values = zeros(layers, rows * kv, self.capacity, d)
        self.mask = torch.full((rows, self.capacity), float("-inf"), device=self.device)
        self.mask[:, 0] = 0  # a row of nothing but -inf would write NaN into its scratch column
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.positions = torch.full((rows,), self.scratch, dtype=torch.int64, device=self.device)
        self._positions_kv = torch.zeros(rows * kv, dtype=torch.int64, device=self.device)
        self._rows_kv = torch.arange(rows * kv, device=self.device)
        self._row_index = torch.arange(rows, device=self.device)
        self._zero = torch.zeros((), device=self.device)
        self._x = empty(rows, w.embedding.shape[1])
        self._rotation = torch.empty(rows, d // 2, dtype=w.rotation.dtype, device=self.device)
        self._qkv = empty(rows, kv * (w.group + 2) * d)
        self._scores = torch.empty(rows * w.heads * self.capacity, device=self.device)
        self._shares = self._scores if self.dtype == torch.float32 else empty(len(self._scores))
        self._heads_out = zeros(rows * kv, w.group, d)  # rows that are not live keep finite values
        self._gate_up = empty(rows, w.layers[0].gate_up.shape[0])
        self._logits = empty(rows, w.head.shape[0])
        self._expected = np.full(rows, -1)  # positions that the mask of each row shows
        self._steps: dict[tuple[int, int], _Step] = {}
        self.rotation = torch.cat([w.rotation, w.rotation[-1:].expand(self.capacity - len(w.rotation), -1)])

    def round_rows(self, n: int) -> int:
        return -(-n // self.quantum) * self.quantum

    # -- one token for each row ------------------------------------------------------------------------------------

    def decode(self, rows: np.ndarray, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        for i in np.flatnonzero(self._expected[rows] != positions).tolist():
            self.mask[rows[i], : positions[i]] = 0
            self.mask[rows[i], positions[i] :] = float("-inf")
        self._expected[rows] = positions + 1
        self._wrote(rows, positions + 1)
        where, at, ids = torch.from_numpy(np.stack([rows, positions, tokens]).astype(np.int64)).to(self.device)
        self.positions.fill_(self.scratch)
        self.positions[where] = at
        self.tokens[where] = ids
        n = int(rows[-1]) + 1
        logits = self._step(self.round_rows(n), int(positions.max()) + 1)
        if self.states is not None:
            self.states = self.states[where]
        return logits[:n] if n == len(rows) else logits[where]

    def _step(self, rows: int, longest: int) -> Tensor:
        """Compute rows 0 .. rows - 1 from ``tokens`` at ``positions``, all below ``longest`` or parked at scratch."""
        w = self.weights
        length = -(-longest // BLOCK) * BLOCK
        s = self._steps.get((rows, length)) or self._make_step(rows, length)
        torch.index_select(w.embedding, 0, s.tokens, out=s.x)
        torch.index_select(self.rotation, 0, s.positions, out=s.rotation)
        rotation = s.rotation.unsqueeze(1).unsqueeze(1)
        s.positions_kv.view(rows, -1).copy_(s.positions.unsqueeze(1))
        self.mask.index_put_((self._row_index[:rows], s.positions), self._zero)
        hidden, eps = w.embedding.shape[1:], w.eps
        write = (s.rows_kv, s.positions_kv)
        for layer, (write_keys, write_values, keys, values) in zip(w.layers, s.cache, strict=True):
            h = F.rms_norm(s.x, hidden, layer.attention_norm, eps)
            _linear(h, layer.qkv, layer.qkv_bias, s.qkv)
            if layer.qk_norm is not None:
                s.qk.copy_(F.rms_norm(s.qk, (w.head_dim,), None, eps).mul_(layer.qk_norm))
            _rotate(s.rotated, rotation)
            write_keys.index_put_(write, s.k)
            write_values.index_put_(write, s.v)
            _scores(s.q, keys, out=s.scores)
            torch.add(s.mask, s.scores_rows, alpha=w.scale, out=s.scores_rows)
            torch.softmax(s.scores, -1, out=s.scores)
            if s.shares.dtype != s.scores.dtype:
                s.shares.copy_(s.scores)
            torch.bmm(s.shares, values, out=s.heads_out)
            _add_linear(s.x, s.attended, layer.o, layer.o_bias)
            torch.mm(F.rms_norm(s.x, hidden, layer.mlp_norm, eps), layer.gate_up.t(), out=s.gate_up)
            F.silu(s.gate, inplace=True).mul_(s.up)
            _add_linear(s.x, s.gate, layer.down, None)
        torch.mm(self._final(s.x), w.head.t(), out=s.logits)
        return s.logits

    def _final(self, x: Tensor) -> Tensor:
        """The states before the head [rows, hidden], which are kept where they are asked for."""
        normed = F.rms_norm(x, x.shape[1:], self.weights.norm, self.weights.eps)
        if self._keeps_states:
            self.states = normed.float()
        return normed

    def keep_states(self) -> None:
        self._keeps_states = True

    def _make_step(self, rows: int, length: int) -> _Step:
        w = self.weights
        kv, group, d = w.kv_heads, w.group, w.head_dim
        qkv = self._qkv[:rows]
        heads = qkv.view(rows * kv, group + 2, d)
        by_row = qkv.view(rows, kv, group + 2, d)
        scores, shares = (
            buffer[: rows * w.heads * length].view(rows * kv, group, length) for buffer in (self._scores, self._shares)
        )
        gate_up = self._gate_up[:rows]
        half = gate_up.shape[1] // 2
        heads_out = self._heads_out[: rows * kv]
        step = _Step(
            tokens=self.tokens[:rows],
            positions=self.positions[:rows],
            positions_kv=self._positions_kv[: rows * kv],
            x=self._x[:rows],
            rotation=self._rotation[:rows],
            rotated=_as_pairs(by_row[:, :, : group + 1]),
            qkv=qkv,
            q=heads[:, :group],
            k=heads[:, group],
            v=heads[:, group + 1],
            qk=heads[:, : group + 1],
            scores=scores,
            scores_rows=scores.view(rows, w.heads, length),
            shares=shares,
            mask=self.mask[:rows, None, :length],
            heads_out=heads_out,
            attended=heads_out.view(rows, -1),
            gate_up=gate_up,
            gate=gate_up[:, :half],
            up=gate_up[:, half:],
            logits=self._logits[:rows],
            rows_kv=self._rows_kv[: rows * kv],
            cache=[
                (k, v, k[: rows * kv, :length].transpose(1, 2), v[: rows * kv, :length])
                for k, v in zip(self.keys, self.values, strict=True)
            ],
        )
        self._steps[rows, length] = step
        return step

    # -- many tokens of some rows ----------------------------------------------------------------------------------

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        at = np.concatenate([np.arange(s.start, s.start + len(s.ids)) for s in chunks])
        last = np.cumsum([len(s.ids) for s in chunks]) - 1
        return self._ragged(chunks, at, [self._causal(s) for s in chunks], last.tolist())

    def verify(self, trees: Sequence[DraftTree]) -> Tensor:
        at = np.concatenate([tree.start + tree.depths() for tree in trees])
        chunks = [PrefillChunk(tree.row, tree.start, tree.tokens) for tree in trees]
        masks = [
            self._causal(chunk) if tree.parents is None else self._ancestors(tree)
            for chunk, tree in zip(chunks, trees, strict=True)
        ]
        return self._ragged(chunks, at, masks, list(range(len(at))))

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        if list(path) == list(range(len(path))):
            return
        keys, values = self._row(row, self.capacity)
        for depth, node in enumerate(path):
            if depth != node:
                keys[:, :, start + depth] = keys[:, :, start + node]
                values[:, :, start + depth] = values[:, :, start + node]

    def _ragged(
        self, chunks: Sequence[PrefillChunk], at: np.ndarray, masks: Sequence[Tensor | None], wanted: list[int]
    ) -> Tensor:
        """Compute all chunks, whose tokens have the positions ``at``; return the logits [wanted, vocab] of some."""
        w = self.weights
        kv, group, d = w.kv_heads, w.group, w.head_dim
        ids = np.concatenate([s.ids for s in chunks])
        n = len(ids)
        padding = (0, self.round_rows(n) - n)
        tokens = torch.from_numpy(np.pad(ids, padding).astype(np.int64)).to(self.device)
        positions = torch.from_numpy(np.pad(at, padding)).to(self.device)
        bounds = np.cumsum([0, *(len(s.ids) for s in chunks)]).tolist()
        for s in chunks:
            self._wrote(s.row, s.start + len(s.ids))
        hidden, eps = w.embedding.shape[1:], w.eps
        x = w.embedding[tokens]
        rotation = w.rotation[positions].unsqueeze(1).unsqueeze(1)
        attended = self._zeros(len(tokens), w.heads, d)
        for layer, keys, values in zip(w.layers, self.keys, self.values, strict=True):
            qkv = F.linear(F.rms_norm(x, hidden, layer.attention_norm, eps), layer.qkv, layer.qkv_bias)
            heads = qkv.view(-1, kv, group + 2, d)
            if layer.qk_norm is not None:
                qk = heads[:, :, : group + 1]
                qk.copy_(F.rms_norm(qk, (d,), None, eps).mul_(layer.qk_norm))
            _rotate(_as_pairs(heads[:, :, : group + 1]), rotation)
            for chunk, mask, begin, end in zip(chunks, masks, bounds[:-1], bounds[1:], strict=True):
                mine, stop = heads[begin:end], chunk.start + end - begin
                rows = slice(chunk.row * kv, (chunk.row + 1) * kv)
                keys[rows, chunk.start : stop] = mine[:, :, group].transpose(0, 1)
                values[rows, chunk.start : stop] = mine[:, :, group + 1].transpose(0, 1)
                attended[begin:end] = F.scaled_dot_product_attention(
                    mine[:, :, :group].reshape(end - begin, w.heads, d).transpose(0, 1).unsqueeze(0),
                    keys[rows, :stop].unsqueeze(0),
                    values[rows, :stop].unsqueeze(0),
                    attn_mask=mask,
                    is_causal=mask is None and end - begin > 1,
                    scale=w.scale,
                    enable_gqa=True,
                )[0].transpose(0, 1)
            _add_linear(x, attended.view(len(tokens), -1), layer.o, layer.o_bias)
            gate, up = F.linear(F.rms_norm(x, hidden, layer.mlp_norm, eps), layer.gate_up).chunk(2, -1)
            _add_linear(x, F.silu(gate).mul_(up), layer.down, None)
        padded = wanted + [0] * (self.round_rows(len(wanted)) - len(wanted))
        logits = F.linear(self._final(x[padded]), w.head)[: len(wanted)]
        if self.states is not None:
            self.states = self.states[: len(wanted)]
        return logits

    def _ancestors(self, tree: DraftTree) -> Tensor:
        """True where a node may look: at what is before the tree, at its ancestors and at itself."""
        n = len(tree)
        sees = np.concatenate([np.ones((n, tree.start), bool), np.eye(n, dtype=bool)], 1)
        assert tree.parents is not None
        for node in range(1, n):
            sees[node, tree.start :] |= sees[tree.parents[node], tree.start :]
        return torch.from_numpy(sees).to(self.device)

    def _causal(self, s: PrefillChunk) -> Tensor | None:
        """True where a token of the chunk may look; None where plain causal attention is meant.

        On a GPU that is a name of the mask, by which flash attention computes it: with a mask of numbers and grouped
        queries there is only the kernel that stores all scores, 28 heads x 2048 x 131072 of them.
        """
        n = len(s.ids)
        if s.start == 0 or n == 1:
            return None
        if self.device.type != "cpu":
            return causal_lower_right(n, s.start + n)
        return torch.ones(n, s.start + n, dtype=torch.bool, device=self.device).tril(s.start)

    def sample(
        self, logits: Tensor, rows: RowSampling, u: np.ndarray, with_logprobs: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = sample(logits, rows, u) if logits.device.type == "cpu" else sample_on_device(logits, rows, u)
        return tokens, logprobs(logits, tokens) if with_logprobs else None

    # -- rows ------------------------------------------------------------------------------------------------------

    def copy_row(self, source: int, target: int, length: int) -> None:
        keys, values = self._row(source, length)
        self.load_row(target, keys, values, length)

    def move_row(self, source: int, target: int, length: int) -> None:
        self.copy_row(source, target, max(1, length))

    def save_row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        keys, values = self._row(row, length)
        return keys.clone(memory_format=torch.contiguous_format), values.clone(memory_format=torch.contiguous_format)

    def load_row(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        self._wrote(row, length)
        to_keys, to_values = self._row(row, length)
        to_keys.copy_(keys[:, :, :length])
        to_values.copy_(values[:, :, :length])

    def memory_tokens(self) -> np.ndarray:
        return np.zeros(self.rows, np.int64) if self._cache is None else self._cache.memory_tokens

    def release(self, row: int, length: int) -> None:
        if self._cache is not None:
            self._cache.release(row, length)

    def _wrote(self, rows: np.ndarray | int, ends: np.ndarray | int) -> None:
        if self._cache is not None:
            self._cache.wrote(rows, ends)

    def _row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        rows = slice(row * self.weights.kv_heads, (row + 1) * self.weights.kv_heads)
        return self.keys[:, rows, :length], self.values[:, rows, :length]

    # -- set-up ----------------------------------------------------------------------------------------------------

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _row_quantum(self) -> int:
        """The smallest power of two at whose multiples a matrix product's rows do not depend on their number; 1 on a
        GPU, whose products choose another kernel for nearly every number: one request would cost what all slots do."""
        if self.device.type != "cpu":
            return 1
        w, layer = self.weights, self.weights.layers[0]
        most = max(64, self.slots)
        generator = torch.Generator().manual_seed(0)
        for quantum in (1, 2, 4, 8, 16, 32):
            if all(
                _rows_are_independent(matrix, quantum, most, generator)
                for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down, w.head)
            ):
                return quantum
        return max(1, self.slots)


def _rows_are_independent(matrix: Tensor, quantum: int, most: int, generator: torch.Generator) -> bool:
    x = torch.randn(most, matrix.shape[1], generator=generator).to(matrix)
    whole = F.linear(x, matrix)
    sizes = {quantum, 2 * quantum, 3 * quantum, most // quantum * quantum}
    return all(torch.equal(F.linear(x[:n], matrix), whole[:n]) for n in sizes if n <= most) and torch.equal(
        F.linear(x[quantum : 2 * quantum], matrix), whole[quantum : 2 * quantum]
    )


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, matrix.t(), out=out)
    else:
        torch.addmm(bias, x, matrix.t(), out=out)


def _scores(q: Tensor, keys: Tensor, out: Tensor) -> None:
    """out = q @ keys in float32, whatever the type of q and keys."""
    if q.dtype == torch.float32:
        torch.bmm(q, keys, out=out)
    elif q.is_cuda:
        torch.ops.aten.bmm.dtype_out(q, keys, torch.float32, out=out)
    else:  # torch has no such product on a CPU
        torch.bmm(q.float(), keys.float(), out=out)


def _add_linear(x: Tensor, h: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
    """x += h @ matrix.T (+ bias), in place: the residual addition costs nothing."""
    x.addmm_(h, matrix.t())
    if bias is not None:
        x.add_(bias)


def _as_pairs(x: Tensor) -> Tensor:
    """[.., head_dim] -> [.., head_dim / 2], complex in fp32; other types stay real pairs [.., head_dim / 2, 2]."""
    pairs = x.unflatten(-1, (-1, 2))
    return torch.view_as_complex(pairs) if x.dtype == torch.float32 else pairs


def _rotate(pairs: Tensor, rotation: Tensor) -> None:
    """Rotary embedding, in place; ``rotation``: complex [rows, 1, 1, head_dim / 2]."""
    if pairs.is_complex():
        pairs.mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(rotation)))
