"""The known faults of trainers on packed samples: for each, the loss of a batch that a trainer with it reports.

A fault is a function of a :class:`CertifiedBatch` that yields a :class:`Prediction` for each of its variants (a
pipeline of 3 or of 4 stages, padding to 4 or to 8 tokens). Sources are issues and pull requests in which it was
reported.

All predictions are of one fault at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.models.context_plan import zigzag
from nemo_openmath.training.certificate.reference import ReferenceModel, TokenLosses
from nemo_openmath.training.certificate.views import (
    Boundaries,
    PackView,
    SampleSums,
    dealt_view,
    one_sequence,
    padded_view,
    right_view,
)


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

    def masked(
        self, choose: Callable[[Pack, TokenLosses], tuple[NDArray[np.float64], NDArray[np.bool_]]]
    ) -> list[SampleSums]:
        """Return the losses where each pack's positions have the losses and the mask ([T], [T]) of ``choose``."""
        chosen = [choose(pack, losses) for pack, losses in zip(self.packs, self.right, strict=True)]
        return [
            _by_sample(right_view(pack).owner, len(pack.sample_ids), losses, mask)
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
            result.append(_by_sample(seen.owner[rows], len(pack.sample_ids), losses, np.ones(len(rows), np.bool_)))
        return result


@dataclass(frozen=True)
class Prediction:
    """What a trainer reports with one variant of a fault."""

    variant: str
    packs: Sequence[SampleSums]
    loss: float  # of the batch
    tolerance: float = 0.0  # relative, of the prediction itself


@dataclass(frozen=True)
class Fault:
    """A known fault: ``what`` is wrong, ``where`` to look, and the public ``sources``."""

    name: str
    what: str
    where: str
    sources: tuple[str, ...]
    predict: Callable[[CertifiedBatch], Iterator[Prediction]]
    harmless: bool = False  # it does not change the loss of a model with rotary embeddings


def batch_loss(packs: Sequence[SampleSums]) -> float:
    """Return the mean over all tokens that count; NaN where there are none."""
    count = sum(int(pack.counts.sum()) for pack in packs)
    return sum(float(pack.sums.sum()) for pack in packs) / count if count else math.nan


def _by_sample(
    owner: NDArray[np.int64], samples: int, losses: NDArray[np.float64], mask: NDArray[np.bool_]
) -> SampleSums:
    counted = owner[mask]
    sums = np.bincount(counted, losses[mask], samples).astype(np.float64)
    return SampleSums(sums, np.bincount(counted, minlength=samples).astype(np.int64))


def _mean(variant: str, packs: Sequence[SampleSums]) -> Prediction:
    return Prediction(variant, packs, batch_loss(packs))


# Attention and positions


def attention_across_samples(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where no layer's attention stops at a sample, and positions restart."""
    for multiple in batch.layouts.paddings:

        def told(view: PackView) -> Boundaries:
            return Boundaries(np.array([0, len(view.tokens)]), view.told.positions)

        yield _mean(_padding(multiple), batch.run(_padded(multiple), told))


def pack_as_one_sequence(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where all layers take the pack for one sample."""
    for multiple in batch.layouts.paddings:
        yield _mean(_padding(multiple), batch.run(_padded(multiple), lambda view: one_sequence(len(view.tokens))))


def middle_stages_as_one_sequence(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the layers of middle pipeline stages take the pack for one sample."""
    for stages in batch.layouts.stages:
        size = batch.model.num_layers // stages
        middle = range(size, batch.model.num_layers - size)
        for multiple in batch.layouts.paddings:
            note = f"{stages} stages" + (f", {_padding(multiple)}" if multiple > 1 else "")
            packs = batch.run(_padded(multiple), lambda view: one_sequence(len(view.tokens)), middle)
            yield _mean(note, packs)


def positions_not_reset(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where positions run on through the pack, and the attention stops at samples."""

    def told(view: PackView) -> Boundaries:
        return Boundaries(view.told.cu_seqlens, np.arange(len(view.tokens)))

    yield _mean("", batch.run(right_view, told))


def rotary_base(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses with bases of the rotary embedding that are some framework's default."""
    for base in (10_000.0, 500_000.0, 1_000_000.0):
        if base != batch.model.config.rope_theta:
            yield _mean(f"base {base:.0f}", batch.run(right_view, rope_theta=base))


# What counts in the loss


def mask_late(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the mask is one token late."""

    def inside(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return losses.next, _late(pack) & ~_last(pack)

    def onto_padding(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.where(_last(pack), losses.zero, losses.next), _late(pack)

    def onto_the_next(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        mask = _late(pack)
        mask[-1] = False
        return losses.next, mask

    yield _mean("within each sample: the first target of each run is lost", batch.masked(inside))
    yield _mean("the last token of each sample is trained to give token 0", batch.masked(onto_padding))
    yield _mean("the last token of each sample is trained to give the next one's first", batch.masked(onto_the_next))


def mask_early(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the mask is one token early: a prompt's last token counts, and the end does not."""

    def inside(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return losses.next, _early(pack) & ~_last(pack)

    def rolled(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.where(_last(pack), losses.zero, losses.next), _early(pack)

    yield _mean("within each sample", batch.masked(inside))
    yield _mean("over the pack", batch.masked(rolled))


def prompt_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where all tokens are targets, those of the prompt too."""
    yield _mean("", batch.masked(lambda pack, losses: (losses.next, ~_last(pack))))


def labels_not_shifted(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where a position is to give its own token."""
    yield _mean("the mask of the next tokens", batch.masked(lambda pack, losses: (losses.own, pack.loss_mask)))
    yield _mean("the mask of the tokens themselves", batch.masked(lambda pack, losses: (losses.own, _late(pack))))


def labels_shifted_twice(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where labels that were shifted with the data are shifted again by the model."""

    def inside(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return losses.second, _early(pack) & ~_last(pack)

    yield _mean("within each sample", batch.masked(inside))
    yield _mean("over the pack", batch.masked(lambda pack, losses: (losses.second, _early(pack))))


def boundary_targets(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the last token of a sample is trained to give the first one of the next."""

    def added(pack: Pack, losses: TokenLosses) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        last = _last(pack)
        last[-1] = False
        return losses.next, pack.loss_mask | last

    yield _mean("", batch.masked(added))


def padding_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where padding counts: behind each sample, or at the end of each pack."""
    for multiple in sorted({*batch.layouts.paddings, *(2 * cp for cp in batch.layouts.cp)} - {1}):
        for token, word in _pad_tokens(batch):

            def appended(pack: Pack, multiple: int = multiple, token: int = token) -> PackView:
                view, is_padding = padded_view(pack, multiple, token)
                before = np.append(is_padding[1:], False) & (view.owner == np.append(view.owner[1:], -1))
                labels = np.where(before, token, view.labels).astype(np.int32)
                return PackView(view.tokens, labels, view.loss_mask | before, view.told, view.owner)

            yield _mean(f"samples to {multiple}, {word}", batch.run(appended))
        yield _mean(f"samples to {multiple}, its own positions", batch.run(_padding_positions(multiple)))
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

            def kept(pack: Pack, losses: TokenLosses, cp: int = cp, lost: int = lost) -> tuple[NDArray, NDArray]:
                lengths = np.diff(pack.cu_seqlens)
                cut = lengths // (2 * cp) * (2 * cp)
                stays = pack.position_ids() < np.repeat(cut - np.where(cut < lengths, lost, 0), lengths)
                return losses.next, pack.loss_mask & stays

            packs = batch.masked(kept)
            yield _mean(f"CP {cp}, each sample, {word}", packs)
        count = sum(int(pack.counts.sum()) for pack in right)
        lowered = sum(float(pack.sums.sum()) for pack in packs) / count
        yield Prediction(f"CP {cp}, each sample, lost tokens counted", packs, lowered)

        def begun(pack: Pack, losses: TokenLosses, cp: int = cp) -> tuple[NDArray, NDArray]:
            return losses.next, pack.loss_mask & (np.arange(len(pack.tokens)) < len(pack.tokens) // (2 * cp) * 2 * cp)

        yield _mean(f"CP {cp}, the pack's end", batch.masked(begun))


# Means


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
    means = np.concatenate([pack.sums[pack.counts > 0] / pack.counts[pack.counts > 0] for pack in packs])
    yield Prediction("", packs, float(means.mean()))


def loss_summed(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the loss that is a sum: over tokens, or of micro-batches' means."""
    packs = batch.right_sums()
    yield Prediction("over tokens", packs, sum(float(pack.sums.sum()) for pack in packs))
    means = [float(pack.sums.sum() / pack.counts.sum()) for pack in packs if pack.counts.sum()]
    if len(means) > 1:
        yield Prediction("of the micro-batches' means", packs, sum(means))


def divided_by_all_tokens(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses that are divided by positions that do not count in the loss."""
    packs = batch.right_sums()
    total = sum(float(pack.sums.sum()) for pack in packs)
    tokens = [len(pack.tokens) for pack in batch.packs]
    yield Prediction("by all tokens", packs, total / sum(tokens))
    if batch.layouts.capacity > max(tokens):
        yield Prediction("by the packs' capacity", packs, total / (len(tokens) * batch.layouts.capacity))


# Context parallelism


def context_order(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where context ranks were dealt other tokens than their attention takes them for."""
    for cp in batch.layouts.cp:
        for dealing, word in _DEALINGS:
            for follow, note in ((True, "positions of the tokens"), (False, "positions of the places")):

                def view(pack: Pack, cp: int = cp, dealing: _Dealing = dealing, follow: bool = follow) -> PackView:
                    padded, _ = padded_view(pack, 2 * cp)
                    dealt = [dealing(padded.told.cu_seqlens, cp, rank) for rank in range(cp)]
                    return dealt_view(padded, dealt, positions_follow=follow)

                yield _mean(f"CP {cp}, {word}, {note}", batch.run(view))


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

        yield _mean(f"CP {cp}", batch.run(view))


# The model


def weights_not_loaded(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the loss of a model with random weights: the logarithm of the vocabulary's size."""
    packs, loss, uncertainty = batch.right_sums(), math.log(batch.model.config.vocab_size), 0.05
    if abs(batch_loss(packs) - loss) < 2 * uncertainty * loss:  # this model's own weights are as good as random
        return
    yield Prediction(
        "", [SampleSums(loss * pack.counts.astype(np.float64), pack.counts) for pack in packs], loss, uncertainty
    )


# Parts of the above


def _last(pack: Pack) -> NDArray[np.bool_]:
    """Return which positions [T] are the last of their sample."""
    last = np.zeros(len(pack.tokens), np.bool_)
    last[pack.cu_seqlens[1:] - 1] = True
    return last


def _late(pack: Pack) -> NDArray[np.bool_]:
    return np.roll(pack.loss_mask, 1)


def _early(pack: Pack) -> NDArray[np.bool_]:
    return np.roll(pack.loss_mask, -1)


def _padded(multiple: int) -> Callable[[Pack], PackView]:
    return lambda pack: padded_view(pack, multiple)[0]


def _padding(multiple: int) -> str:
    return f"samples padded to {multiple}" if multiple > 1 else ""


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
        "attention_across_samples",
        "attention does not stop at samples, in all layers; positions restart",
        "the mask or cu_seqlens that reaches the attention; a context-parallel attention that takes no mask",
        ("TRL #805, #6843", "LLaMA-Factory #2289", "NeMo-RL #4167"),
        attention_across_samples,
    ),
    Fault(
        "pack_as_one_sequence",
        "all layers take a pack for one sample: attention does not stop, and positions run on",
        "packed_seq_params or cu_seqlens is not passed at all; position ids from which boundaries would be inferred",
        ("functionary #265", "ms-swift #4736"),
        pack_as_one_sequence,
    ),
    Fault(
        "middle_stages_as_one_sequence",
        "the middle pipeline stages alone take a pack for one sample",
        "packed_seq_params of stages that are neither first nor last; a data iterator that they do not have",
        ("Megatron-Bridge #2952, #3926", "Megatron-LM #1518, #4092", "Pai-Megatron-Patch #484"),
        middle_stages_as_one_sequence,
    ),
    Fault(
        "positions_not_reset",
        "positions run on through the pack, while attention stops at samples",
        "position ids; the loss of a model with rotary embeddings is the same, for they see differences alone",
        ("LLaMA-Factory #7318",),
        positions_not_reset,
        harmless=True,
    ),
    Fault(
        "mask_late",
        "the loss mask is one token late",
        "a mask of tokens that was not shifted with the labels: the first token of an answer is not learned",
        ("verl #3287", "OpenRLHF #973", "NeMo #6409"),
        mask_late,
    ),
    Fault(
        "mask_early",
        "the loss mask is one token early",
        "a mask that was shifted twice: the end of an answer is not learned, and models do not stop",
        ("verl #5362",),
        mask_early,
    ),
    Fault(
        "prompt_trained",
        "the prompt counts in the loss, too",
        "the loss mask is made and not used",
        ("nanochat #582", "TRL #3279"),
        prompt_trained,
    ),
    Fault(
        "labels_not_shifted",
        "a position is trained to give its own token",
        "labels that neither the data nor the model shifts",
        ("Megatron-LM #5682",),
        labels_not_shifted,
    ),
    Fault(
        "labels_shifted_twice",
        "a position is trained to give the token after the next",
        "labels that the data shifts, and the model again",
        ("InternLM #318",),
        labels_shifted_twice,
    ),
    Fault(
        "boundary_targets",
        "the last token of a sample is trained to give the first one of the next",
        "labels that were shifted over the pack and not within each sample",
        ("torchtune #2613",),
        boundary_targets,
    ),
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
        "rotary_base",
        "the rotary embedding has another base",
        "rope_theta or rotary_base of the trainer's model",
        (),
        rotary_base,
    ),
    Fault(
        "weights_not_loaded",
        "the loss is that of random weights",
        "the checkpoint that the trainer loads, or does not",
        (),
        weights_not_loaded,
    ),
)
