"""Who computes what of a global batch: packs or their samples dealt to data-parallel ranks, padded for the layout.

The loss is a sum over target tokens divided by their number in the whole batch, so any division of the samples into
packs and ranks gives the same step. That freedom is used for speed: when the packs do not divide evenly over the ranks
(five packs on two ranks would leave one idle for a sixth of the step), their samples are dealt anew.

Every rank computes the whole deal by itself from the same batch: no communication, no disagreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nemo_openmath.data.batches.balance import assign
from nemo_openmath.data.packs.types import Pack
from nemo_openmath.models.layout import Parallel

# Attention of one token over one earlier token against all else for one token; measured for a 1M and a 1.5B model it
# lies between 1/2000 and 1/10000, and the deal changes little inside that range.
ATTENTION_WEIGHT = 1 / 4000


def shard_batch(batch: Sequence[Pack], ranks: int, parallel: Parallel) -> list[list[Pack]]:
    """Micro-batches of each data-parallel rank, equally many for all (padded with packs that train nothing).

    Each sample is padded to ``parallel.sample_multiple``, each pack to ``parallel.pack_multiple``; under pipeline
    parallelism all packs of the batch get the same length, as the stages exchange tensors of one shape.
    """
    shares = assign([round(_cost(pack)) for pack in batch], ranks)
    packs = [[batch[i] for i in share] for share in shares]
    if ranks > 1 and parallel.pp == 1:
        again = _share_samples(batch, ranks)
        if _slowest(again) < _slowest(packs):
            packs = again
    count = max(1, *(len(share) for share in packs))
    if parallel.vpp > 1:  # the interleaved schedule works in groups of pp micro-batches
        count = -(-count // parallel.pp) * parallel.pp
    padded = [[pad_pack(pack, parallel) for pack in share] for share in packs]
    length = max((len(pack.tokens) for share in padded for pack in share), default=parallel.pack_multiple)
    if parallel.pp > 1:
        padded = [[_extend(pack, length) for pack in share] for share in padded]
    filler = empty_pack(length if parallel.pp > 1 else parallel.pack_multiple)
    return [share + [filler] * (count - len(share)) for share in padded]


def empty_pack(length: int) -> Pack:
    """One segment of padding: keeps a rank in step with the others and adds nothing to loss or gradients."""
    zeros = np.zeros(length, np.int32)
    return Pack(zeros, zeros, np.zeros(length, np.bool_), np.array([0, length], np.int32), ("",))


def pad_pack(pack: Pack, parallel: Parallel) -> Pack:
    """``pack`` with each sample padded to ``sample_multiple`` tokens and the whole to ``pack_multiple``."""
    lengths = np.diff(pack.cu_seqlens)
    multiple = parallel.sample_multiple
    padded = -(-lengths // multiple) * multiple
    if (padded != lengths).any():
        cu = np.concatenate([[0], np.cumsum(padded)]).astype(np.int32)
        target = np.arange(len(pack.tokens)) + np.repeat(cu[:-1] - pack.cu_seqlens[:-1], lengths)
        tokens, labels = np.zeros(cu[-1], np.int32), np.zeros(cu[-1], np.int32)
        loss_mask = np.zeros(cu[-1], np.bool_)
        tokens[target], labels[target], loss_mask[target] = pack.tokens, pack.labels, pack.loss_mask
        pack = Pack(tokens, labels, loss_mask, cu, pack.sample_ids)
    total = len(pack.tokens)
    return _extend(pack, -(-total // parallel.pack_multiple) * parallel.pack_multiple)


def _extend(pack: Pack, length: int) -> Pack:
    """``pack`` with one more segment of padding up to ``length`` tokens."""
    missing = length - len(pack.tokens)
    if missing == 0:
        return pack
    return concatenate([pack, empty_pack(missing)])


def concatenate(packs: Sequence[Pack]) -> Pack:
    """Packs laid end to end as one."""
    if len(packs) == 1:
        return packs[0]
    starts = np.cumsum([0] + [len(pack.tokens) for pack in packs[:-1]])
    cu = [np.zeros(1, np.int32), *(pack.cu_seqlens[1:] + start for pack, start in zip(packs, starts, strict=True))]
    return Pack(
        np.concatenate([pack.tokens for pack in packs]),
        np.concatenate([pack.labels for pack in packs]),
        np.concatenate([pack.loss_mask for pack in packs]),
        np.concatenate(cu).astype(np.int32),
        tuple(name for pack in packs for name in pack.sample_ids),
    )


def samples_of(pack: Pack) -> list[Pack]:
    """A pack of one sample for each of its samples."""
    return [
        Pack(pack.tokens[a:b], pack.labels[a:b], pack.loss_mask[a:b], np.array([0, b - a], np.int32), (name,))
        for (a, b), name in zip(pairwise(pack.cu_seqlens.tolist()), pack.sample_ids, strict=True)
    ]


def _cost(pack: Pack) -> float:
    return len(pack.tokens) + ATTENTION_WEIGHT * pack.attention_cost


def _slowest(shares: Sequence[Sequence[Pack]]) -> float:
    return max(sum(_cost(pack) for pack in share) for share in shares)


def _share_samples(batch: Sequence[Pack], ranks: int) -> list[list[Pack]]:
    """Samples dealt by cost, each rank's packed again (first fit) within the length of the batch's longest pack."""
    samples = [sample for pack in batch for sample in samples_of(pack)]
    capacity = max(len(pack.tokens) for pack in batch)
    loads, shares = [0.0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[float], list[list[Pack]]]
    for sample in sorted(samples, key=_cost, reverse=True):
        rank = loads.index(min(loads))
        shares[rank].append(sample)
        loads[rank] += _cost(sample)
    return [_first_fit(share, capacity) for share in shares]


def _first_fit(samples: Sequence[Pack], capacity: int) -> list[Pack]:
    bins: list[list[Pack]] = []
    room: list[int] = []
    for sample in samples:  # by falling cost, hence by falling length
        size = len(sample.tokens)
        for i, free in enumerate(room):
            if size <= free:
                bins[i].append(sample)
                room[i] -= size
                break
        else:
            bins.append([sample])
            room.append(capacity - size)
    return [concatenate(each) for each in bins]
