"""Packed samples as a training reads them, step by step.

Opening maps files and reads their index; nothing is packed, tokenized or shuffled sample by sample here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.epoch_order import EpochOrder, EpochOrders
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
        self._orders = EpochOrders(plan, seed)
        ends = np.cumsum([self._orders.num_samples(phase) for phase in range(len(self._orders.phases))]).tolist()
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
        parts: list[list[int]] = []
        cut: list[int] = []  # parts of packs that the boundaries of the batch or of a phase cut: rarely more than two
        for order, first, end in self._stretches(at, min(at + self.batch_samples, self._run_samples)):
            for rows, whole in self._parts(order, first, end):
                if not whole:
                    cut.append(len(parts))
                parts.append(rows)
        return self._join(parts, cut)

    def _stretches(self, at: int, stop: int) -> Iterator[tuple[EpochOrder, int, int]]:
        """Yield what the samples [at, stop) of the run are of each epoch: (its order, first sample, end)."""
        while at < stop:
            phase = int(np.searchsorted(self._stream_end, at, "right"))
            phase_begin = self._stream_end[phase - 1] if phase else 0
            size = self._orders.num_samples(phase)
            epoch, first = divmod(at - phase_begin, size)
            end = min(stop - phase_begin, (epoch + 1) * size, self._stream_end[phase] - phase_begin) - epoch * size
            yield self._orders.order(phase, epoch), first, end
            at = phase_begin + epoch * size + end

    def _parts(self, order: EpochOrder, first: int, end: int) -> Iterator[tuple[list[int], bool]]:
        """Yield the rows of each pack in the samples [first, end) of an epoch, and whether they are the whole pack."""
        low = int(np.searchsorted(order.sample_ends, first, "right"))
        high = int(np.searchsorted(order.sample_ends, end, "left"))
        for pack, pack_end in zip(order.packs[low : high + 1], order.sample_ends[low : high + 1], strict=True):
            rows = self.plan.rows(int(pack))
            start = int(pack_end) - len(rows)
            part = rows[max(first - start, 0) : end - start]
            yield part, len(part) == len(rows)

    def _join(self, parts: list[list[int]], cut: list[int]) -> list[list[int]]:
        """Lay the cut parts together where they fit into one pack.

        They are measured as the plan measured them, so the batch does not depend on the layout.
        """
        multiple, length = self.plan.pad_multiple, self.plan.samples.length
        sizes = [sum(-(-length(row) // multiple) * multiple for row in parts[number]) for number in cut]
        joined = first_fit(sizes, self.plan.capacity)
        whole = [part for number, part in enumerate(parts) if number not in cut]
        return whole + [[row for i in members for row in parts[cut[i]]] for members in joined]

    def _build(self, rows: list[int]) -> Pack:
        return lay_out([self.plan.samples[row] for row in rows], self._pad_multiple)
