"""The forward pass: ragged prefill and batched single-token decoding over one static KV cache.

Layout (allocated once; R slots, H KV heads, D head_dim, C capacity in tokens)::

    keys, values  [layer][R * H, C, D]
    mask          [R, C]                  0 where a slot may look, -inf elsewhere (without compiled kernels)

Rows are slots. A step computes rows 0..n-1, n rounded up to ``quantum``: the smallest number of rows at which this
machine's matrix product gives every row the same bits whatever the number of rows; so a request draws the same tokens
alone and in any batch. Rows that are not decoding compute on a scratch column and are ignored.

In float32 on the CPU, attention, rotation, norms and gate run in compiled kernels (kernels.py) that read exactly the
positions each row has; elsewhere, and without a compiler, the same step runs in torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_openmath.engines.embedded.kernels import Kernels, load_kernels
from nemo_openmath.engines.embedded.weights import Weights

BLOCK = 64  # attention lengths are rounded up to this: few distinct shapes, aligned rows


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``ids`` of slot ``row``, to be computed at positions start, start + 1, .."""

    row: int
    start: int
    ids: np.ndarray


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
    scores: Tensor
    scores_rows: Tensor
    mask: Tensor
    heads_out: Tensor
    attended: Tensor
    gate_up: Tensor
    gate: Tensor
    up: Tensor
    logits: Tensor
    rows_kv: Tensor
    live: Tensor
    h: Tensor
    gated: Tensor
    cache: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # of each layer: keys to write, values to write, keys, values


class Decoder:
    """Computes; knows nothing of requests. Not safe for use from more than one thread."""

    def __init__(self, weights: Weights, slots: int, threads: int = 1, compiled: bool = True):
        w = self.weights = weights
        self.slots = slots
        self.dtype, self.device = w.embedding.dtype, w.embedding.device
        self.capacity = -(-(w.max_context + 1) // BLOCK) * BLOCK  # the last column is scratch
        self.scratch = self.capacity - 1
        self.quantum = self._row_quantum()
        rows = self.rows = self.round_rows(slots)
        kv, d, layers = w.kv_heads, w.head_dim, len(w.layers)
        zeros, empty = self._zeros, self._empty
        self.keys = zeros(layers, rows * kv, self.capacity, d)
        self.values = zeros(layers, rows * kv, self.capacity, d)
        self.mask = torch.full((rows, self.capacity), float("-inf"), dtype=self.dtype, device=self.device)
        self.mask[:, 0] = 0  # a row of nothing but -inf would write NaN into its scratch column
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.positions = torch.full((rows,), self.scratch, dtype=torch.int64, device=self.device)
        self._positions_kv = torch.zeros(rows * kv, dtype=torch.int64, device=self.device)
        self._rows_kv = torch.arange(rows * kv, device=self.device)
        self._row_index = torch.arange(rows, device=self.device)
        self._zero = zeros(1)[0]
        self._x = empty(rows, w.embedding.shape[1])
        self._rotation = torch.empty(rows, d // 2, dtype=w.rotation.dtype, device=self.device)
        self._qkv = empty(rows, kv * (w.group + 2) * d)
        self._scores = empty(rows * w.heads * self.capacity)
        self._heads_out = zeros(rows * kv, w.group, d)  # rows that are not live keep finite values
        self._gate_up = empty(rows, w.layers[0].gate_up.shape[0])
        self._logits = empty(rows, w.head.shape[0])
        self.live = torch.zeros(rows, dtype=torch.uint8, device=self.device)
        self.kernels: Kernels | None = None
        if compiled and self.device.type == "cpu" and self.dtype == torch.float32:
            self.kernels = load_kernels(d, w.group, w.layers[0].down.shape[1], threads)
        self._scratch_scores = empty(threads, w.group, self.capacity + 16)
        self._h = empty(rows, w.embedding.shape[1])
        self._gated = empty(rows, w.layers[0].down.shape[1])
        self._steps: dict[tuple[int, int], _Step] = {}
        # on the CPU the step's inputs are written through numpy, without a call into torch
        self.rotation = torch.cat([w.rotation, w.rotation[-1:].expand(self.capacity - len(w.rotation), -1)])

    def round_rows(self, n: int) -> int:
        return -(-n // self.quantum) * self.quantum

    # -- one token for each row ------------------------------------------------------------------------------------

    def decode(self, n: int, longest: int) -> Tensor:
        """Compute one token for rows 0..n-1 from ``tokens`` at ``positions``; return logits [n', vocab], n' >= n.

        ``longest``: the greatest position + 1 of a decoding row. The result is valid until the next call.
        """
        w = self.weights
        rows = self.round_rows(n)
        length = -(-longest // BLOCK) * BLOCK
        s = self._steps.get((rows, length)) or self._make_step(rows, length)
        torch.index_select(w.embedding, 0, s.tokens, out=s.x)
        torch.index_select(self.rotation, 0, s.positions, out=s.rotation)
        if self.kernels is not None:
            return self._decode_compiled(self.kernels, s)
        rotation = s.rotation.unsqueeze(1).unsqueeze(1)
        s.positions_kv.view(rows, -1).copy_(s.positions.unsqueeze(1))
        self.mask.index_put_((self._row_index[:rows], s.positions), self._zero)
        hidden, eps = w.embedding.shape[1:], w.eps
        write = (s.rows_kv, s.positions_kv)
        for layer, (write_keys, write_values, keys, values) in zip(w.layers, s.cache, strict=True):
            h = F.rms_norm(s.x, hidden, None, eps)
            _linear(h, layer.qkv, layer.qkv_bias, s.qkv)
            if layer.qk_norm is not None:
                s.qk.copy_(F.rms_norm(s.qk, (w.head_dim,), None, eps).mul_(layer.qk_norm))
            _rotate(s.rotated, rotation)
            write_keys.index_put_(write, s.k)
            write_values.index_put_(write, s.v)
            torch.bmm(s.q, keys, out=s.scores)
            s.scores_rows.add_(s.mask)
            torch.softmax(s.scores, -1, out=s.scores)
            torch.bmm(s.scores, values, out=s.heads_out)
            _add_linear(s.x, s.attended, layer.o, layer.o_bias)
            torch.mm(F.rms_norm(s.x, hidden, None, eps), layer.gate_up.t(), out=s.gate_up)
            F.silu(s.gate, inplace=True).mul_(s.up)
            _add_linear(s.x, s.gate, layer.down, None)
        torch.mm(F.rms_norm(s.x, hidden, w.norm, eps), w.head.t(), out=s.logits)
        return s.logits

    def _decode_compiled(self, kernels: Kernels, s: _Step) -> Tensor:
        w, eps = self.weights, self.weights.eps
        for layer, (write_keys, write_values, _, _) in zip(w.layers, s.cache, strict=True):
            kernels.rms_norm(s.x, s.h, eps)
            _linear(s.h, layer.qkv, layer.qkv_bias, s.qkv)
            kernels.attend(
                *(s.qkv, layer.qk_norm, s.rotation, write_keys, write_values, s.positions, s.live),
                *(self._scratch_scores, s.heads_out, w.kv_heads, eps),
            )
            _add_linear(s.x, s.attended, layer.o, layer.o_bias)
            kernels.rms_norm(s.x, s.h, eps)
            torch.mm(s.h, layer.gate_up.t(), out=s.gate_up)
            kernels.gated(s.gate_up, s.gated)
            _add_linear(s.x, s.gated, layer.down, None)
        kernels.rms_norm(s.x, s.h, eps)
        torch.mm(s.h.mul_(w.norm), w.head.t(), out=s.logits)
        return s.logits

    def _make_step(self, rows: int, length: int) -> _Step:
        w = self.weights
        kv, group, d = w.kv_heads, w.group, w.head_dim
        qkv = self._qkv[:rows]
        heads = qkv.view(rows * kv, group + 2, d)
        by_row = qkv.view(rows, kv, group + 2, d)
        scores = self._scores[: rows * w.heads * length].view(rows * kv, group, length)
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
            mask=self.mask[:rows, None, :length],
            heads_out=heads_out,
            attended=heads_out.view(rows, -1),
            gate_up=gate_up,
            gate=gate_up[:, :half],
            up=gate_up[:, half:],
            logits=self._logits[:rows],
            rows_kv=self._rows_kv[: rows * kv],
            live=self.live[:rows],
            h=self._h[:rows],
            gated=self._gated[:rows],
            cache=[
                (k, v, k[: rows * kv, :length].transpose(1, 2), v[: rows * kv, :length])
                for k, v in zip(self.keys, self.values, strict=True)
            ],
        )
        self._steps[rows, length] = step
        return step

    # -- many tokens of some rows ----------------------------------------------------------------------------------

    def prefill(self, segments: Sequence[Segment]) -> Tensor:
        """Compute the tokens of all segments at once, without padding; return the logits [segments, vocab] of each
        segment's last token. The cache of a segment's row must hold positions 0..start-1."""
        w = self.weights
        kv, group, d = w.kv_heads, w.group, w.head_dim
        ids = np.concatenate([s.ids for s in segments])
        at = np.concatenate([np.arange(s.start, s.start + len(s.ids)) for s in segments])
        n = len(ids)
        padding = (0, self.round_rows(n) - n)
        tokens = torch.from_numpy(np.pad(ids, padding).astype(np.int64)).to(self.device)
        positions = torch.from_numpy(np.pad(at, padding)).to(self.device)
        bounds = np.cumsum([0, *(len(s.ids) for s in segments)]).tolist()
        masks = [self._causal(s) for s in segments]
        hidden, eps = w.embedding.shape[1:], w.eps
        x = w.embedding[tokens]
        rotation = w.rotation[positions].unsqueeze(1).unsqueeze(1)
        attended = self._zeros(len(tokens), w.heads, d)
        for layer, keys, values in zip(w.layers, self.keys, self.values, strict=True):
            qkv = F.linear(F.rms_norm(x, hidden, None, eps), layer.qkv, layer.qkv_bias)
            heads = qkv.view(-1, kv, group + 2, d)
            if layer.qk_norm is not None:
                qk = heads[:, :, : group + 1]
                qk.copy_(F.rms_norm(qk, (d,), None, eps).mul_(layer.qk_norm))
            _rotate(_as_pairs(heads[:, :, : group + 1]), rotation)
            for segment, mask, begin, end in zip(segments, masks, bounds[:-1], bounds[1:], strict=True):
                mine, stop = heads[begin:end], segment.start + end - begin
                rows = slice(segment.row * kv, (segment.row + 1) * kv)
                keys[rows, segment.start : stop] = mine[:, :, group].transpose(0, 1)
                values[rows, segment.start : stop] = mine[:, :, group + 1].transpose(0, 1)
                attended[begin:end] = F.scaled_dot_product_attention(
                    mine[:, :, :group].reshape(end - begin, w.heads, d).transpose(0, 1).unsqueeze(0),
                    keys[rows, :stop].unsqueeze(0),
                    values[rows, :stop].unsqueeze(0),
                    attn_mask=mask,
                    is_causal=mask is None and end - begin > 1,
                    scale=1.0,  # it is in the weights of q
                    enable_gqa=True,
                )[0].transpose(0, 1)
            _add_linear(x, attended.view(len(tokens), -1), layer.o, layer.o_bias)
            gate, up = F.linear(F.rms_norm(x, hidden, None, eps), layer.gate_up).chunk(2, -1)
            _add_linear(x, F.silu(gate).mul_(up), layer.down, None)
        last = [end - 1 for end in bounds[1:]]
        last += [0] * (self.round_rows(len(last)) - len(last))
        return F.linear(F.rms_norm(x[last], hidden, w.norm, eps), w.head)[: len(segments)]

    def _causal(self, s: Segment) -> Tensor | None:
        """True where a token of the segment may look; None where plain causal attention is meant."""
        n = len(s.ids)
        if s.start == 0 or n == 1:
            return None
        return torch.ones(n, s.start + n, dtype=torch.bool, device=self.device).tril(s.start)

    # -- rows ------------------------------------------------------------------------------------------------------

    def activate(self, row: int, length: int) -> None:
        """Decode ``row`` from the next step on; it sees its first ``length`` positions."""
        self.live[row] = 1
        self.mask[row, :length] = 0
        self.mask[row, length:] = float("-inf")

    def park(self, row: int) -> None:
        """Stop decoding ``row``: its steps go to the scratch column."""
        self.live[row] = 0
        self.positions[row] = self.scratch

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a row's cache."""
        keys, values = self._row(source, length)
        self.load_row(target, keys, values, length)

    def save_row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Return copies of keys and values, each [layer, kv_head, length, head_dim]."""
        keys, values = self._row(row, length)
        return keys.clone(memory_format=torch.contiguous_format), values.clone(memory_format=torch.contiguous_format)

    def load_row(self, row: int, keys: Tensor, values: Tensor, length: int) -> None:
        to_keys, to_values = self._row(row, length)
        to_keys.copy_(keys[:, :, :length])
        to_values.copy_(values[:, :, :length])

    def _row(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        rows = slice(row * self.weights.kv_heads, (row + 1) * self.weights.kv_heads)
        return self.keys[:, rows, :length], self.values[:, rows, :length]

    # -- set-up ----------------------------------------------------------------------------------------------------

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _row_quantum(self) -> int:
        """The smallest power of two at whose multiples a matrix product's rows do not depend on their number."""
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
