"""Faults of normalisation: by what the sum of the losses is divided.

Where such a trainer also reports single micro-batches, it may divide them rightly, or as wrongly as the batch: each
fault has variants of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.training.certificate.faults.batch import CertifiedBatch, Fault, Prediction
from nemo_openmath.training.certificate.views import SampleSums

_TOO = "those of micro-batches too"


def micro_batch_means(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses that are means of micro-batches' or of ranks' means, whatever their numbers of tokens."""
    packs = batch.right_sums()
    sums = np.array([pack.sums.sum() for pack in packs])
    counts = np.array([pack.counts.sum() for pack in packs])
    trained = counts > 0
    yield Prediction("each pack a micro-batch", packs, float((sums[trained] / counts[trained]).mean()))
    number = np.arange(len(packs))
    for dp in batch.layouts.dp:
        if len(packs) <= dp:
            continue
        for rank_of, word in ((number % dp, "in turn"), (number * dp // len(packs), "in blocks")):
            total, tokens = np.bincount(rank_of, sums, dp), np.bincount(rank_of, counts, dp)
            if (tokens > 0).all():
                yield Prediction(f"means of {dp} ranks, packs dealt {word}", packs, float((total / tokens).mean()))


def sample_means(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the loss that is the mean of samples' means."""
    packs = batch.right_sums()
    means = [pack.sums[pack.counts > 0] / pack.counts[pack.counts > 0] for pack in packs]
    loss = float(np.concatenate(means).mean())
    of_packs = [float(part.mean()) if len(part) else None for part in means]
    yield Prediction("", packs, loss)
    yield Prediction(_TOO, packs, loss, micro_batches=of_packs)
    yield Prediction("the mean of micro-batches' means of samples", packs, _mean(of_packs), micro_batches=of_packs)
    if any((pack.counts == 0).any() for pack in packs):
        number = sum(len(pack.counts) for pack in packs)
        yield Prediction("samples without targets are 0", packs, float(np.concatenate(means).sum()) / number)


def loss_summed(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the loss that is a sum: over tokens, or of micro-batches' means."""
    packs = batch.right_sums()
    sums = [float(pack.sums.sum()) for pack in packs]
    summed = [SampleSums(pack.sums, np.minimum(pack.counts, 1)) for pack in packs]
    yield Prediction("over tokens", packs, sum(sums))
    yield Prediction(f"over tokens, {_TOO}", summed, sum(sums), micro_batches=sums)
    if len(sums) > 1:
        yield Prediction("over tokens, then the mean of micro-batches", summed, _mean(sums), micro_batches=sums)
    numbers = [len(pack.counts) for pack in packs]
    of_packs = [total / number for total, number in zip(sums, numbers, strict=True)]
    for rows, note in ((None, ""), (of_packs, f", {_TOO}")):
        word = f"over the tokens of a sample, then the mean of samples{note}"
        yield Prediction(word, packs if rows is None else summed, sum(sums) / sum(numbers), micro_batches=rows)
    means = [float(pack.sums.sum() / pack.counts.sum()) for pack in packs if pack.counts.sum()]
    if len(means) > 1:
        yield Prediction("of the micro-batches' means", packs, sum(means))


def divided_by_all_tokens(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses that are divided by positions that do not count in the loss."""
    lengths = [np.diff(pack.cu_seqlens).astype(np.int64) for pack in batch.packs]
    tokens = [int(part.sum()) for part in lengths]
    yield from _divided(batch, "by all tokens", lengths, tokens)
    if batch.layouts.capacity > max(tokens):
        yield from _divided(batch, "by the packs' capacity", lengths, [batch.layouts.capacity] * len(tokens))
    longest = max(int(part.max()) for part in lengths)
    for word, sizes in (
        ("by samples padded to the longest one", [longest] * len(lengths)),
        ("by samples padded to the longest of their micro-batch", [int(part.max()) for part in lengths]),
    ):
        padded = [np.full_like(part, size) for part, size in zip(lengths, sizes, strict=True)]
        yield from _divided(batch, word, padded, [int(part.sum()) for part in padded])


def _divided(
    batch: CertifiedBatch, word: str, of_samples: Sequence[NDArray[np.int64]], of_packs: Sequence[int]
) -> Iterator[Prediction]:
    """Yield the losses where the sums of samples and of packs are divided by these numbers of tokens."""
    packs = batch.right_sums()
    sums = [float(pack.sums.sum()) for pack in packs]
    divided = [SampleSums(pack.sums, counts) for pack, counts in zip(packs, of_samples, strict=True)]
    rows = [total / number for total, number in zip(sums, of_packs, strict=True)]
    yield Prediction(word, packs, sum(sums) / sum(of_packs))
    yield Prediction(f"{word}, {_TOO}", divided, sum(sums) / sum(of_packs), micro_batches=rows)
    yield Prediction(f"{word}, the mean of micro-batches", divided, _mean(rows), micro_batches=rows)


def _mean(losses: Sequence[float | None]) -> float:
    return float(np.mean([loss for loss in losses if loss is not None]))


FAULTS: tuple[Fault, ...] = (
    Fault(
        "micro_batch_means",
        "the loss is a mean of micro-batches' or ranks' means, whatever their numbers of targets",
        "the normalisation: divide by the targets of the whole global batch",
        ("mlx-lm #1413", "Megatron-LM #4590", "huggingface/blog #2414"),
        micro_batch_means,
    ),
    Fault(
        "sample_means",
        "the loss is the mean of samples' means: short answers weigh as much as long ones",
        "the normalisation: divide by the targets of the whole global batch",
        ("NeMo #8343",),
        sample_means,
    ),
    Fault(
        "loss_summed",
        "the loss is a sum",
        "the normalisation, or what is logged",
        ("transformers #37766",),
        loss_summed,
    ),
    Fault(
        "divided_by_all_tokens",
        "the sum over targets is divided by all positions",
        "the normalisation: tokens of prompts or padding are counted",
        ("mlx-vlm #1392",),
        divided_by_all_tokens,
    ),
)
