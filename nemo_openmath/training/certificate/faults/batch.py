"""What a fault computes with, and what it yields: a batch, the losses of its positions, a prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.certificate.reference import ReferenceModel, TokenLosses
from nemo_openmath.training.certificate.views import Boundaries, PackView, SampleSums, padded_view, right_view

Choice = tuple[NDArray[np.float64], NDArray[np.bool_]]  # of a pack's positions: their losses [T], which count [T]


@dataclass(frozen=True)
class Layouts:
    """The layouts whose faults are predicted."""

    stages: tuple[int, ...] = ()  # pipeline stages x model chunks of each
    cp: tuple[int, ...] = (2, 4)  # context-parallel ranks
    dp: tuple[int, ...] = (2, 4, 8)  # data-parallel ranks
    paddings: tuple[int, ...] = (1,)  # multiples of tokens to which samples are padded when they are packed
    capacity: int = 0  # tokens to which packs are padded at their end; 0: none


@dataclass(frozen=True)
class CertifiedBatch:
    """A global batch, its micro-batches, and the losses of each position with each sample alone."""

    model: ReferenceModel
    packs: Sequence[Pack]  # samples without padding
    right: Sequence[TokenLosses]  # of each pack
    layouts: Layouts

    def right_sums(self) -> list[SampleSums]:
        """Return the losses that are right."""
        return self.masked(lambda pack, losses: (losses.next, pack.loss_mask))

    def masked(self, choose: Callable[[Pack, TokenLosses], Choice]) -> list[SampleSums]:
        """Return the losses where each pack's positions have the losses and the mask ([T], [T]) of ``choose``."""
        chosen = [choose(pack, losses) for pack, losses in zip(self.packs, self.right, strict=True)]
        return [
            by_sample(right_view(pack).owner, len(pack.sample_ids), losses, mask)
            for pack, (losses, mask) in zip(self.packs, chosen, strict=True)
        ]

    def run(
        self,
        view: Callable[[Pack], PackView],
        told: Callable[[PackView], Boundaries] = lambda view: view.told,
        layers: range | None = None,
        rope_theta: float | None = None,
    ) -> list[SampleSums]:
        """Return the losses where the model computes each pack as ``view`` has it, and ``layers`` (numbers from 0;
        None: all) are told of it what ``told`` says."""
        result = []
        for pack in self.packs:
            seen = view(pack)
            wrong, rows = told(seen), np.flatnonzero(seen.loss_mask)

            def of_layer(layer: int, seen: PackView = seen, wrong: Boundaries = wrong) -> Boundaries:
                return wrong if layers is None or layer in layers else seen.told

            [losses] = self.model.losses(seen.tokens, of_layer, [seen.labels[rows]], rows, rope_theta)
            result.append(by_sample(seen.owner[rows], len(pack.sample_ids), losses, np.ones(len(rows), np.bool_)))
        return result


@dataclass(frozen=True)
class Prediction:
    """What a trainer reports with one variant of a fault. The counts of ``packs`` are what it divides by."""

    variant: str
    packs: Sequence[SampleSums]
    loss: float  # of the batch
    tolerance: float = 0.0  # relative, of the prediction itself
    micro_batches: Sequence[float | None] | None = None  # losses of single packs; None: their sums over their counts


@dataclass(frozen=True)
class Fault:
    """A known fault: ``what`` is wrong, ``where`` to look, and the public ``sources``."""

    name: str
    what: str
    where: str
    sources: tuple[str, ...]
    predict: Callable[[CertifiedBatch], Iterator[Prediction]]
    harmless: bool = False  # it does not change the loss of a model with rotary embeddings
    some_data: bool = False  # it acts on data or models of one kind alone; others are certified without it


def batch_loss(packs: Sequence[SampleSums]) -> float:
    """Return the mean over all tokens that count; NaN where there are none."""
    count = sum(int(pack.counts.sum()) for pack in packs)
    return sum(float(pack.sums.sum()) for pack in packs) / count if count else math.nan


def by_sample(
    owner: NDArray[np.int64], samples: int, losses: NDArray[np.float64], mask: NDArray[np.bool_]
) -> SampleSums:
    """Return the sums of ``losses`` [T] at the positions of ``mask`` [T], by the sample ``owner`` [T] of each."""
    counted = owner[mask]
    sums = np.bincount(counted, losses[mask], samples).astype(np.float64)
    return SampleSums(sums, np.bincount(counted, minlength=samples).astype(np.int64))


def mean_of(variant: str, packs: Sequence[SampleSums]) -> Prediction:
    """Return the prediction of a trainer that takes the mean over all tokens that count."""
    return Prediction(variant, packs, batch_loss(packs))


def last_positions(pack: Pack) -> NDArray[np.bool_]:
    """Return which positions [T] are the last of their sample."""
    last = np.zeros(len(pack.tokens), np.bool_)
    last[pack.cu_seqlens[1:] - 1] = True
    return last


def padded_to(multiple: int) -> Callable[[Pack], PackView]:
    """Return the view of a pack whose samples are padded to a multiple of ``multiple`` tokens."""
    return lambda pack: padded_view(pack, multiple)[0]
