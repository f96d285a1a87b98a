"""Packed samples as a training reads them, step by step.

Opening maps files and reads their index; nothing is packed, tokenized or shuffled sample by sample here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.epoch_order import EpochOrders
from nemo_openmath.data.batches.held_out import hold_out
from nemo_openmath.data.packs.bin_packing import first_fit
from nemo_openmath.data.packs.pack import Pack, lay_out
from nemo_openmath.data.packs.plan import PackPlan


class PackedData:
    """The :class:`~nemo_openmath.data.batches.source.PackSource` over a pack plan; ``source.py`` says what a batch is.

    The run is a stream of ``epochs`` x num_samples samples: phase after phase, in each phase epoch after epoch, in
    each epoch the phase's packs in an order of their own. Step s is samples [s x B, (s + 1) x B) of it.

    ``held_out``: another of its kind, one pass over the samples held out, or None.
    """

    def __init__(self, plan: PackPlan, *, batch_samples: int, run_samples: int, seed: int, pad_multiple: int):
        self.plan = plan
        self.held_out: PackedData | None = None
        self.batch_samples = batch_samples
        self._run_samples = run_samples
        self._pad_multiple = pad_multiple
        self._pack_end = np.asarray(plan.pack_end, np.int64)
        self._orders = EpochOrders(plan, seed)
        ends = [int(self._pack_end[end - 1]) for _, end in self._orders.phases]  # entries
        # Where each phase ends in the stream of the run: its share of the samples.
        self._stream_end = [run_samples * end // ends[-1] for end in ends]
        length = "" if len(ends) == 1 else f" {run_samples}"  # a single phase can be prolonged
        text = f"{plan.digest} {[s['fingerprint'] for s in plan.meta['tokens']]} {batch_samples} {seed}{length}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        batch_samples: int,
        epochs: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        pad_multiple: int | None = None,
        tokenizer: str | None = None,
        validation_share: float = 0.0,
    ) -> PackedData:
        """Open the folder of a ``packs.plan`` for a run of ``epochs`` or of ``steps``.

        - ``batch_samples``: samples of the global batch.
        - ``pad_multiple``: samples are laid out padded to a multiple of it, a divisor of the plan's. None: the plan's.
          The trainer gives 1, for ``shard_batch`` pads for the layout.
        - ``tokenizer``: fingerprint of the model's tokenizer and template; token files made with another are refused.
        - ``validation_share``: of the samples, held out (:func:`hold_out`) as ``self.held_out``.

        Raises UserError, and DamagedFile naming the file.
        """
        plan, held_out = PackPlan(folder), None
        if validation_share:
            plan, held_out = hold_out(plan, validation_share, seed)
        if (epochs is None) == (steps is None):
            raise UserError("give the length of the run as epochs or as steps", file=folder)
        if (
            batch_samples < 1
            or not 0 < (1 if epochs is None else epochs) < math.inf
            or (1 if steps is None else steps) < 1
        ):
            raise UserError("batch, epochs and steps must be above zero", file=folder)
        pad_multiple = pad_multiple or plan.pad_multiple
        plan.require_multiple(pad_multiple)
        if tokenizer is not None:
            for tokens in plan.samples.folders:
                tokens.require(tokenizer)
        entries = len(plan.entries)
        run_samples = steps * batch_samples if steps is not None else max(1, round((epochs or 0) * entries))
        data = cls(plan, batch_samples=batch_samples, run_samples=run_samples, seed=seed, pad_multiple=pad_multiple)
        if held_out is not None:
            once = len(held_out.entries)
            data.held_out = cls(
                held_out, batch_samples=batch_samples, run_samples=once, seed=seed, pad_multiple=pad_multiple
            )
        return data

    @property
    def num_samples(self) -> int:
        return len(self.plan.entries)

    @property
    def num_steps(self) -> int:
        return -(-self._run_samples // self.batch_samples)

    def last_targets(self, most: int = 4096) -> Counter[int]:
        """Count the last tokens of samples, where they are targets: what the data teaches to end a text with.

        Of more than ``most`` samples, ``most`` that lie evenly over the packs are looked at.
        """
        entries = self.plan.entries
        counts: Counter[int] = Counter()
        for row in entries[np.unique(np.linspace(0, len(entries) - 1, min(most, len(entries)), dtype=np.int64))]:
            sample = self.plan.samples[int(row)]
            if sample.loss_mask[-1]:
                counts[int(sample.tokens[-1])] += 1
        return counts

    def batch(self, step: int) -> list[Pack]:
        """Return the packs of a step's batch. Only the samples of this step are read and checked."""
        return [self._build(rows) for rows in self.rows(step)]

    def rows(self, step: int) -> list[list[int]]:
        """Return the sample numbers (of ``plan.samples``) of each pack of a step's batch. Raises IndexError."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} outside 0..{self.num_steps - 1}")
        at = step * self.batch_samples
        stop = min(at + self.batch_samples, self._run_samples)
        pieces: list[list[int]] = []
        cut: list[int] = []  # pieces cut by the boundaries of the batch (the first and the last) or of a phase
        while at < stop:
            phase = int(np.searchsorted(self._stream_end, at, "right"))
            first, last = self._orders.phases[phase]
            base = int(self._pack_end[first - 1]) if first else 0
            size = int(self._pack_end[last - 1]) - base  # samples of an epoch of this phase
            begin = self._stream_end[phase - 1] if phase else 0
            epoch, offset = divmod(at - begin, size)
            until = min(stop - begin, (epoch + 1) * size, self._stream_end[phase] - begin) - epoch * size
            order, ends = self._orders.order(phase, epoch)
            for i in range(int(np.searchsorted(ends, offset, "right")), int(np.searchsorted(ends, until, "left")) + 1):
                pack = int(order[i])
                high = int(self._pack_end[pack])
                low = int(self._pack_end[pack - 1]) if pack else 0
                start = int(ends[i]) - (high - low)  # of the pack in the epoch's stream
                a, b = max(offset, start) - start, min(until, int(ends[i])) - start
                if b - a < high - low:
                    cut.append(len(pieces))
                pieces.append(self.plan.entries[low + a : low + b].tolist())
            at = begin + epoch * size + until
        return self._join(pieces, cut)

    def _join(self, pieces: list[list[int]], cut: list[int]) -> list[list[int]]:
        """Lay cut pieces together where they fit into one pack; there are rarely more than two.

        They are measured as the plan measured them, so the batch does not depend on the layout.
        """
        multiple = self.plan.pad_multiple
        sizes = [
            sum(-(-self.plan.samples.length(row) // multiple) * multiple for row in pieces[number]) for number in cut
        ]
        joined = first_fit(sizes, self.plan.capacity)
        whole = [piece for number, piece in enumerate(pieces) if number not in cut]
        return whole + [[row for i in members for row in pieces[cut[i]]] for members in joined]

    def _build(self, rows: list[int]) -> Pack:
        return lay_out([self.plan.samples[row] for row in rows], self._pad_multiple)
