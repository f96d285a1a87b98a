"""Faults of context parallelism: which tokens a rank is dealt, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.models.context_plan import zigzag
from nemo_openmath.training.certificate.faults.batch import CertifiedBatch, Choice, Fault, Prediction, mean_of
from nemo_openmath.training.certificate.reference import TokenLosses
from nemo_openmath.training.certificate.views import Boundaries, PackView, dealt_view, padded_view


def context_order(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where context ranks were dealt other tokens than their attention takes them for."""
    for cp in batch.layouts.cp:
        for dealing, word in _DEALINGS:
            for follow, note in ((True, "positions of the tokens"), (False, "positions of the places")):

                def view(pack: Pack, cp: int = cp, dealing: _Dealing = dealing, follow: bool = follow) -> PackView:
                    padded, _ = padded_view(pack, 2 * cp)
                    dealt = [dealing(padded.told.cu_seqlens, cp, rank) for rank in range(cp)]
                    return dealt_view(padded, dealt, positions_follow=follow)

                yield mean_of(f"CP {cp}, {word}, {note}", batch.run(view))


_Dealing = Callable[[NDArray[np.int64], int, int], NDArray[np.int64]]


def _contiguous_sample(cu: NDArray[np.int64], cp: int, rank: int) -> NDArray[np.int64]:
    size = np.diff(cu) // cp
    return np.concatenate([np.arange(a + rank * n, a + (rank + 1) * n) for a, n in zip(cu[:-1], size, strict=True)])


def _contiguous_pack(cu: NDArray[np.int64], cp: int, rank: int) -> NDArray[np.int64]:
    size = int(cu[-1]) // cp
    return np.arange(rank * size, (rank + 1) * size)


def _zigzag_pack(cu: NDArray[np.int64], cp: int, rank: int) -> NDArray[np.int64]:
    return zigzag((0, int(cu[-1])), cp, rank)


_DEALINGS: tuple[tuple[_Dealing, str], ...] = (
    (_contiguous_sample, "each sample contiguous"),
    (_contiguous_pack, "the pack contiguous"),
    (_zigzag_pack, "zig-zag over the pack"),
)


def rank_positions(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where each context rank counts positions in its own part."""
    for cp in batch.layouts.cp:

        def view(pack: Pack, cp: int = cp) -> PackView:
            padded, _ = padded_view(pack, 2 * cp)
            cu = padded.told.cu_seqlens
            positions = np.empty_like(padded.told.positions)
            for rank in range(cp):
                size = np.diff(cu) // cp
                positions[zigzag(cu.tolist(), cp, rank)] = np.concatenate([np.arange(n) for n in size])
            return PackView(padded.tokens, padded.labels, padded.loss_mask, Boundaries(cu, positions), padded.owner)

        yield mean_of(f"CP {cp}", batch.run(view))


def shifted_on_ranks(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where labels are shifted after tokens were dealt: the last position of each run of tokens that
    a rank holds has no label, or the first token of the rank's next run."""
    for cp in batch.layouts.cp:
        for dealing, word in _RIGHT_DEALINGS:

            def kept(pack: Pack, losses: TokenLosses, cp: int = cp, dealing: _Dealing = dealing) -> Choice:
                padded, is_padding = padded_view(pack, 2 * cp)
                follows = np.zeros(len(padded.tokens), np.bool_)
                for held in _dealt(padded, dealing, cp):
                    follows[held[:-1]] = np.diff(held) == 1
                return losses.next, pack.loss_mask & follows[~is_padding]

            yield mean_of(f"CP {cp}, {word}, labels lost", batch.masked(kept))

        def view(pack: Pack, cp: int = cp) -> PackView:
            padded, _ = padded_view(pack, 2 * cp)
            labels, mask = np.zeros_like(padded.labels), np.zeros_like(padded.loss_mask)
            is_target = np.append(False, padded.loss_mask[:-1])
            for held in _dealt(padded, _zigzag_sample, cp):
                labels[held[:-1]], mask[held[:-1]] = padded.tokens[held[1:]], is_target[held[1:]]
            return PackView(padded.tokens, labels, mask, padded.told, padded.owner)

        yield mean_of(f"CP {cp}, {_RIGHT_DEALINGS[0][1]}, labels of the rank's next run", batch.run(view))


def context_rank_means(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses that are means of context ranks' means, whatever their numbers of targets."""
    right = batch.right_sums()
    for cp in batch.layouts.cp:
        for dealing, word in _RIGHT_DEALINGS:
            parts = [
                _of_ranks(pack, losses, dealing, cp) for pack, losses in zip(batch.packs, batch.right, strict=True)
            ]
            sums, counts = (np.array([part[number] for part in parts]) for number in (0, 1))  # [packs, cp]
            for clamped, note in ((False, "ranks without targets left out"), (True, "ranks without targets are 0")):
                rows = [_mean_of_means(*part, clamped) for part in parts]
                known = [row for row in rows if row is not None]
                text = f"CP {cp}, {word}" + (f", {note}" if (counts == 0).any() else "")
                yield Prediction(text, right, float(np.mean(known)), micro_batches=rows)
                whole = _mean_of_means(sums.sum(0), counts.sum(0), clamped)
                if whole is not None:
                    yield Prediction(f"{text}, over all micro-batches", right, whole)
                if not (counts == 0).any():
                    break


def _of_ranks(
    pack: Pack, losses: TokenLosses, dealing: _Dealing, cp: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sums [cp] and the numbers [cp] of the targets' losses that each context rank holds."""
    padded, is_padding = padded_view(pack, 2 * cp)
    rank = np.empty(len(padded.tokens), np.int64)
    for number, held in enumerate(_dealt(padded, dealing, cp)):
        rank[held] = number
    of_targets = rank[~is_padding][pack.loss_mask]
    sums = np.bincount(of_targets, losses.next[pack.loss_mask], cp).astype(np.float64)
    return sums, np.bincount(of_targets, minlength=cp).astype(np.int64)


def _mean_of_means(sums: NDArray[np.float64], counts: NDArray[np.int64], clamped: bool) -> float | None:
    if not counts.any():
        return None
    means = sums / np.maximum(1, counts)
    return float(means.mean() if clamped else means[counts > 0].mean())


def _dealt(view: PackView, dealing: _Dealing, cp: int) -> list[NDArray[np.int64]]:
    """Return the positions of a padded pack that each context rank holds, in its order."""
    return [dealing(view.told.cu_seqlens, cp, rank) for rank in range(cp)]


def _zigzag_sample(cu: NDArray[np.int64], cp: int, rank: int) -> NDArray[np.int64]:
    return zigzag(cu.tolist(), cp, rank)


_RIGHT_DEALINGS: tuple[tuple[_Dealing, str], ...] = (
    (_zigzag_sample, "zig-zag over each sample"),
    (_contiguous_pack, "the pack contiguous"),
)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "context_order",
        "context ranks were dealt other tokens than their attention takes them for",
        "how tokens are dealt: zig-zag chunks of each sample, not of the pack, and not contiguous",
        ("Megatron-Bridge #1867", "Megatron-LM #7238"),
        context_order,
    ),
    Fault(
        "rank_positions",
        "each context rank counts positions in its own part",
        "the rotary angles of context ranks",
        ("Megatron-LM #560, #1473, #4075",),
        rank_positions,
    ),
    Fault(
        "shifted_on_ranks",
        "labels are shifted by each context rank, within the tokens that it was dealt",
        "labels: shift them before tokens are dealt",
        (),
        shifted_on_ranks,
    ),
    Fault(
        "context_rank_means",
        "the loss is a mean of context ranks' means, whatever their numbers of targets",
        "the normalisation: add up sums and numbers of targets over context ranks, too",
        ("Megatron-LM #7513", "prime-rl #1961"),
        context_rank_means,
    ),
)
