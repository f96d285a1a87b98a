"""A pack as a trainer sees it, right or wrong: what is padded, what the layers are told, what counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.pack import Pack, concatenate, samples_of
from nemo_openmath.models.context_plan import zigzag


@dataclass(frozen=True)
class Boundaries:
    """What attention layers are told of a pack."""

    cu_seqlens: NDArray[np.int64]  # [n + 1] where the attention stops
    positions: NDArray[np.int64]  # [T] of the rotary embedding


@dataclass(frozen=True)
class PackView:
    """A pack of T positions as a trainer computes it."""

    tokens: NDArray[np.int32]  # [T]
    labels: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T]
    told: Boundaries
    owner: NDArray[np.int64]  # [T] number of the sample that a position belongs to


@dataclass(frozen=True)
class SampleSums:
    """The loss of a pack's n samples: sums of -log p, and how many tokens they are of."""

    sums: NDArray[np.float64]  # [n]
    counts: NDArray[np.int64]  # [n]


def right_view(pack: Pack) -> PackView:
    """Return ``pack`` as a right trainer sees it."""
    cu = pack.cu_seqlens.astype(np.int64)
    owner = np.repeat(np.arange(len(cu) - 1), np.diff(cu))
    told = Boundaries(cu, pack.position_ids().astype(np.int64))
    return PackView(pack.tokens, pack.labels, pack.loss_mask, told, owner)


def one_sequence(length: int) -> Boundaries:
    """Return what layers are told of a pack whose boundaries were lost: one sample of ``length`` tokens."""
    return Boundaries(np.array([0, length]), np.arange(length))


def padded_view(pack: Pack, multiple: int, pad_token: int = 0) -> tuple[PackView, NDArray[np.bool_]]:
    """Return ``pack`` with each sample padded to a multiple of ``multiple``, and which positions [T] are padding."""
    view = right_view(pack)
    lengths = np.diff(view.told.cu_seqlens)
    cu = np.concatenate([[0], np.cumsum(-(-lengths // multiple) * multiple)])
    target = np.arange(len(pack.tokens)) + np.repeat(cu[:-1] - view.told.cu_seqlens[:-1], lengths)
    is_padding = np.ones(cu[-1], np.bool_)
    is_padding[target] = False
    tokens, labels = np.full(cu[-1], pad_token, np.int32), np.zeros(cu[-1], np.int32)
    loss_mask = np.zeros(cu[-1], np.bool_)
    tokens[target], labels[target], loss_mask[target] = pack.tokens, pack.labels, pack.loss_mask
    sizes = np.diff(cu)
    told = Boundaries(cu, np.arange(cu[-1]) - np.repeat(cu[:-1], sizes))
    return PackView(tokens, labels, loss_mask, told, np.repeat(np.arange(len(sizes)), sizes)), is_padding


def dealt_view(view: PackView, dealt: Sequence[NDArray[np.int64]], *, positions_follow: bool) -> PackView:
    """Return ``view`` as context ranks compute it that were dealt the positions ``dealt`` [cp][T / cp], while their
    attention takes them for zig-zag chunks of each sample.

    ``positions_follow``: rotary positions are those of the tokens; otherwise those of the places where they are taken
    to be.
    """
    cp = len(dealt)
    boundaries = view.told.cu_seqlens.tolist()
    place = np.concatenate([zigzag(boundaries, cp, rank) for rank in range(cp)])
    source = np.empty_like(place)
    source[place] = np.concatenate(dealt)
    positions = view.told.positions[source] if positions_follow else view.told.positions
    return PackView(
        view.tokens[source],
        view.labels[source],
        view.loss_mask[source],
        replace(view.told, positions=positions),
        view.owner[source],
    )


def without_padding(packs: Sequence[Pack], batch: Sequence[Pack]) -> list[Pack]:
    """Return the micro-batches ``packs`` of a layout with their samples as they are in ``batch``: without the padding
    of the layout, and without packs and segments of padding alone."""
    by_name = {sample.sample_ids[0]: sample for pack in batch for sample in samples_of(pack)}
    names = [[name for name in pack.sample_ids if name] for pack in packs]
    return [concatenate([by_name[name] for name in members]) for members in names if members]
