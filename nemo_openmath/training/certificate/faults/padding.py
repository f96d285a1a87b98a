"""Faults of lengths: padding that counts, tokens that are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.certificate.faults.batch import (
    CertifiedBatch,
    Choice,
    Fault,
    Prediction,
    batch_loss,
    mean_of,
)
from nemo_openmath.training.certificate.reference import TokenLosses
from nemo_openmath.training.certificate.views import PackView, SampleSums, one_sequence, padded_view


def padding_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where padding counts: behind each sample, or at the end of each pack."""
    for multiple in sorted({*batch.layouts.paddings, *(2 * cp for cp in batch.layouts.cp)} - {1}):
        for token, word in _pad_tokens(batch):

            def appended(pack: Pack, multiple: int = multiple, token: int = token) -> PackView:
                view, is_padding = padded_view(pack, multiple, token)
                before = np.append(is_padding[1:], False) & (view.owner == np.append(view.owner[1:], -1))
                labels = np.where(before, token, view.labels).astype(np.int32)
                return PackView(view.tokens, labels, view.loss_mask | before, view.told, view.owner)

            yield mean_of(f"samples to {multiple}, {word}", batch.run(appended))
        yield mean_of(f"samples to {multiple}, its own positions", batch.run(_padding_positions(multiple)))
    yield from _end_padding_trained(batch)


def _padding_positions(multiple: int) -> Callable[[Pack], PackView]:
    def view_of(pack: Pack) -> PackView:
        view, is_padding = padded_view(pack, multiple)
        return PackView(view.tokens, view.labels, view.loss_mask | is_padding, view.told, view.owner)

    return view_of


def _end_padding_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Packs that a segment of padding fills up; its losses do not depend on the samples, so that one run is enough."""
    right, lengths = batch.right_sums(), [len(pack.tokens) for pack in batch.packs]
    for size, word in ((max(lengths), "longest pack"), (batch.layouts.capacity, "capacity")):
        missing = [size - length for length in lengths]
        if min(missing) < 0 or not max(missing):
            continue
        for token, pad_word in _pad_tokens(batch):
            tokens = np.full(max(missing), token, np.int32)
            [losses] = batch.model.losses(tokens, one_sequence(len(tokens)), [tokens])
            for shift, note in ((1, pad_word), (0, f"{pad_word}, its last position too")):
                counts = [max(0, count - shift) for count in missing]
                extra = [SampleSums(np.array([losses[:n].sum()]), np.array([n])) for n in counts]
                loss = batch_loss([*right, *extra])
                packs = [
                    SampleSums(np.append(pack.sums, more.sums), np.append(pack.counts, more.counts))
                    for pack, more in zip(right, extra, strict=True)
                ]
                yield Prediction(f"packs to the {word}, {note}", packs, loss)


def tokens_dropped(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the tokens behind the last multiple of 2 x CP are lost."""
    right = batch.right_sums()
    for cp in batch.layouts.cp:
        for lost, word in ((1, "before labels were made"), (0, "after labels were made")):

            def kept(pack: Pack, losses: TokenLosses, cp: int = cp, lost: int = lost) -> Choice:
                lengths = np.diff(pack.cu_seqlens)
                cut = lengths // (2 * cp) * (2 * cp)
                stays = pack.position_ids() < np.repeat(cut - np.where(cut < lengths, lost, 0), lengths)
                return losses.next, pack.loss_mask & stays

            packs = batch.masked(kept)
            yield mean_of(f"CP {cp}, each sample, {word}", packs)
        count = sum(int(pack.counts.sum()) for pack in right)
        lowered = sum(float(pack.sums.sum()) for pack in packs) / count
        yield Prediction(f"CP {cp}, each sample, lost tokens counted", packs, lowered)

        def begun(pack: Pack, losses: TokenLosses, cp: int = cp) -> Choice:
            return losses.next, pack.loss_mask & (np.arange(len(pack.tokens)) < len(pack.tokens) // (2 * cp) * 2 * cp)

        yield mean_of(f"CP {cp}, the pack's end", batch.masked(begun))


def samples_cut(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where samples are cut behind a number of tokens: every power of two from 64 on."""
    longest = max(int(np.diff(pack.cu_seqlens).max()) for pack in batch.packs)
    for kept in (2**power for power in range(6, longest.bit_length())):
        if kept < longest:

            def begun(pack: Pack, losses: TokenLosses, kept: int = kept) -> Choice:
                return losses.next, pack.loss_mask & (pack.position_ids() < kept - 1)

            yield mean_of(f"behind {kept} tokens", batch.masked(begun))


def _pad_tokens(batch: CertifiedBatch) -> list[tuple[int, str]]:
    """Return the tokens that trainers pad with: 0, and the one that ends a text."""
    eos = batch.model.config.eos_token_id
    end = eos[0] if isinstance(eos, tuple) and eos else eos
    tokens = [(0, "token 0")]
    if isinstance(end, int) and end:
        tokens.append((end, f"token {end}"))
    return tokens


FAULTS: tuple[Fault, ...] = (
    Fault(
        "padding_trained",
        "padding counts in the loss",
        "labels or mask of what fills samples or packs up",
        ("OpenJarvis #521", "DeepSpeedExamples #819"),
        padding_trained,
    ),
    Fault(
        "tokens_dropped",
        "tokens behind the last multiple of 2 x CP are lost",
        "lengths that are divided by 2 x CP and rounded down, where samples should be padded",
        ("TransformerEngine #1929, #1930", "Megatron-LM #1669"),
        tokens_dropped,
    ),
    Fault(
        "samples_cut",
        "long samples are cut: the ends of their answers are not learned",
        "the trainer's longest length (TRL's max_length is 1024 where nobody sets it)",
        ("TRL #3927",),
        samples_cut,
    ),
)
