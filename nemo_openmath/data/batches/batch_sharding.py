"""Who computes what of a global batch: its packs, or their samples, shared out to data-parallel ranks and padded.

The loss is a sum over target tokens divided by their number in the whole batch, so any division of the samples into
packs and ranks gives the same step. That freedom is used for speed: when the packs do not divide evenly over the ranks
(five packs on two ranks would leave one idle for a sixth of the step), their samples are shared out anew.

This is the only place that pads for a layout, by one rule: each sample to a multiple of 2 x CP (its zig-zag chunks),
each pack to a multiple of 2 x CP x TP (sequence parallelism splits it). Packs planned with ``pad_multiple`` = 2 x CP
have room for the first; the second adds less than 2 x CP x TP tokens to a pack, and none to one that fills a capacity
divisible by it.

Every rank computes the shares of all ranks by itself from the same batch: no communication, no disagreement.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_openmath.data.batches.balance import assign
from nemo_openmath.data.packs.bin_packing import first_fit
from nemo_openmath.data.packs.pack import Pack, concatenate, empty_pack, pad_end, pad_samples, samples_of
from nemo_openmath.models.layout import Parallel

# Attention of one token over one earlier token against all else for one token; measured for a 1M and a 1.5B model it
# lies between 1/2000 and 1/10000, and the shares change little inside that range.
ATTENTION_WEIGHT = 1 / 4000


def shard_batch(batch: Sequence[Pack], ranks: int, parallel: Parallel) -> list[list[Pack]]:
    """Return the micro-batches of each of ``ranks`` data-parallel ranks: [ranks] lists of equal length.

    Each sample is padded to a multiple of ``parallel.sample_multiple`` tokens, each pack to one of
    ``parallel.pack_multiple``. Under pipeline parallelism all packs of the batch get the same length, as the stages
    exchange tensors of one shape. A rank with fewer packs than another gets packs that train nothing.
    """
    batch = [pad_samples(pack, parallel.sample_multiple) for pack in batch]
    shares = _share_packs(batch, ranks)
    if ranks > 1 and parallel.pp == 1:
        by_samples = _share_samples(batch, ranks)
        if _slowest(by_samples) < _slowest(shares):
            shares = by_samples
    shares = [[pad_end(pack, _round_up(len(pack.tokens), parallel.pack_multiple)) for pack in s] for s in shares]
    filler = parallel.pack_multiple
    if parallel.pp > 1:
        filler = max((len(pack.tokens) for share in shares for pack in share), default=filler)
        shares = [[pad_end(pack, filler) for pack in share] for share in shares]
    count = max(1, *(len(share) for share in shares))
    if parallel.vpp > 1:  # the interleaved schedule works in groups of pp micro-batches
        count = _round_up(count, parallel.pp)
    return [share + [empty_pack(filler)] * (count - len(share)) for share in shares]


def _share_packs(batch: Sequence[Pack], ranks: int) -> list[list[Pack]]:
    return [[batch[i] for i in share] for share in assign([round(_cost(pack)) for pack in batch], ranks)]


def _share_samples(batch: Sequence[Pack], ranks: int) -> list[list[Pack]]:
    """Share samples out by cost; pack each rank's again within the length of the batch's longest pack."""
    samples = [sample for pack in batch for sample in samples_of(pack)]
    capacity = max(len(pack.tokens) for pack in batch)
    loads, shares = [0.0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[float], list[list[Pack]]]
    for sample in sorted(samples, key=_cost, reverse=True):  # by falling cost, hence by falling length
        rank = loads.index(min(loads))
        shares[rank].append(sample)
        loads[rank] += _cost(sample)
    return [
        [concatenate([share[i] for i in members]) for members in first_fit([len(s.tokens) for s in share], capacity)]
        for share in shares
    ]


def _cost(pack: Pack) -> float:
    return len(pack.tokens) + ATTENTION_WEIGHT * pack.attention_cost


def _slowest(shares: Sequence[Sequence[Pack]]) -> float:
    return max(sum(_cost(pack) for pack in share) for share in shares)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
