"""Faults of what counts in the loss, and of what a position is trained to give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.certificate.faults.batch import (
    CertifiedBatch,
    Choice,
    Fault,
    Prediction,
    last_positions,
    mean_of,
)
from nemo_openmath.training.certificate.reference import TokenLosses


def mask_late(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the mask is one token late."""

    def inside(pack: Pack, losses: TokenLosses) -> Choice:
        return losses.next, _late(pack) & ~last_positions(pack)

    def onto_padding(pack: Pack, losses: TokenLosses) -> Choice:
        return np.where(last_positions(pack), losses.zero, losses.next), _late(pack)

    def onto_the_next(pack: Pack, losses: TokenLosses) -> Choice:
        mask = _late(pack)
        mask[-1] = False
        return losses.next, mask

    yield mean_of("within each sample: the first target of each run is lost", batch.masked(inside))
    yield mean_of("the last token of each sample is trained to give token 0", batch.masked(onto_padding))
    yield mean_of("the last token of each sample is trained to give the next one's first", batch.masked(onto_the_next))


def mask_early(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the mask is one token early: a prompt's last token counts, and the end does not."""

    def inside(pack: Pack, losses: TokenLosses) -> Choice:
        return losses.next, _early(pack) & ~last_positions(pack)

    def rolled(pack: Pack, losses: TokenLosses) -> Choice:
        return np.where(last_positions(pack), losses.zero, losses.next), _early(pack)

    yield mean_of("within each sample", batch.masked(inside))
    yield mean_of("over the pack", batch.masked(rolled))


def prompt_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where all tokens are targets, those of the prompt too."""

    def over_the_pack(pack: Pack, losses: TokenLosses) -> Choice:
        return losses.next, np.arange(len(pack.tokens)) < len(pack.tokens) - 1

    yield mean_of("", batch.masked(lambda pack, losses: (losses.next, ~last_positions(pack))))
    yield mean_of("the first token of each next sample too", batch.masked(over_the_pack))


def labels_not_shifted(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where a position is to give its own token."""
    yield mean_of("the mask of the next tokens", batch.masked(lambda pack, losses: (losses.own, pack.loss_mask)))
    yield mean_of("the mask of the tokens themselves", batch.masked(lambda pack, losses: (losses.own, _late(pack))))
    everything = batch.masked(lambda pack, losses: (losses.own, np.ones(len(pack.tokens), np.bool_)))
    yield mean_of("no mask", everything)


def labels_shifted_twice(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where labels that were shifted with the data are shifted again by the model."""

    def inside(pack: Pack, losses: TokenLosses) -> Choice:
        return losses.second, _early(pack) & ~last_positions(pack)

    yield mean_of("within each sample", batch.masked(inside))
    yield mean_of("over the pack", batch.masked(lambda pack, losses: (losses.second, _early(pack))))


def boundary_targets(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the last token of a sample is trained to give the first one of the next."""

    def added(pack: Pack, losses: TokenLosses) -> Choice:
        last = last_positions(pack)
        last[-1] = False
        return losses.next, pack.loss_mask | last

    yield mean_of("", batch.masked(added))


# Runs of targets: an answer is one; with tools or turns between, there are several


def end_not_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the token that ends an answer is no target."""
    yield mean_of("of each sample", batch.masked(_without(lambda runs: [runs[-1][1] - 1])))
    yield mean_of("of each run of targets", batch.masked(_without(lambda runs: [stop - 1 for _, stop in runs])))
    eos = batch.model.config.eos_token_id
    for token in eos if isinstance(eos, tuple) else () if eos is None else (eos,):

        def others(pack: Pack, losses: TokenLosses, token: int = token) -> Choice:
            return losses.next, pack.loss_mask & (pack.labels != token)

        yield mean_of(f"each token {token}, with which samples are padded, too", batch.masked(others))


def first_target_masked(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the first token of an answer is no target."""
    yield mean_of("of each sample", batch.masked(_without(lambda runs: [runs[0][0]])))
    yield mean_of("of each run of targets", batch.masked(_without(lambda runs: [start for start, _ in runs])))


def between_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where all between the first and the last target of a sample counts: a tool's output too."""

    def filled(pack: Pack, losses: TokenLosses) -> Choice:
        mask = pack.loss_mask.copy()
        for runs in _runs(pack):
            mask[runs[0][0] : runs[-1][1]] = True
        return losses.next, mask

    yield mean_of("", batch.masked(filled))


def one_run_trained(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where one run of targets alone counts of each sample."""
    for kept, word in ((-1, "the last alone"), (0, "the first alone")):

        def of_one(pack: Pack, losses: TokenLosses, kept: int = kept) -> Choice:
            mask = np.zeros_like(pack.loss_mask)
            for runs in _runs(pack):
                mask[slice(*runs[kept])] = True
            return losses.next, mask

        yield mean_of(word, batch.masked(of_one))


_Runs = list[tuple[int, int]]  # of a sample: (first target's position, the one behind the last's)


def _runs(pack: Pack) -> list[_Runs]:
    """Return each sample's runs of targets; samples without any are left out."""
    mask = np.concatenate([[False], pack.loss_mask, [False]])
    starts, stops = np.flatnonzero(mask[1:] & ~mask[:-1]), np.flatnonzero(~mask[1:] & mask[:-1])
    owners = np.searchsorted(pack.cu_seqlens, starts, side="right") - 1  # no run goes on into the next sample
    runs: dict[int, _Runs] = {}
    for owner, start, stop in zip(owners.tolist(), starts.tolist(), stops.tolist(), strict=True):
        runs.setdefault(owner, []).append((start, stop))
    return list(runs.values())


def _without(positions: Callable[[_Runs], list[int]]) -> Callable[[Pack, TokenLosses], Choice]:
    """Return the right choice but for the ``positions`` of each sample's runs."""

    def choose(pack: Pack, losses: TokenLosses) -> Choice:
        mask = pack.loss_mask.copy()
        for runs in _runs(pack):
            mask[positions(runs)] = False
        return losses.next, mask

    return choose


def _late(pack: Pack) -> NDArray[np.bool_]:
    return np.roll(pack.loss_mask, 1)


def _early(pack: Pack) -> NDArray[np.bool_]:
    return np.roll(pack.loss_mask, -1)


FAULTS: tuple[Fault, ...] = (
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
        "first_target_masked",
        "the first token of an answer is no target",
        "where the mask begins: behind the header of the turn, not behind the first token of its text",
        (),
        first_target_masked,
    ),
    Fault(
        "end_not_trained",
        "the token that ends an answer is no target: models do not stop",
        "labels where the padding token is the one that ends a text; a turn's end that the template gives to the next",
        ("TRL #976, #5988", "transformers #23530", "torchtune #949"),
        end_not_trained,
    ),
    Fault(
        "prompt_trained",
        "the prompt counts in the loss, too",
        "the loss mask is made and not used",
        ("nanochat #582", "TRL #3279"),
        prompt_trained,
    ),
    Fault(
        "between_trained",
        "what stands between targets counts, too: what a tool wrote, or a user in between",
        "a mask of prompt and answer alone, with nothing said of messages in between",
        ("prime-rl #978", "ARPO #9"),
        between_trained,
        some_data=True,
    ),
    Fault(
        "one_run_trained",
        "of several runs of targets in a sample one alone counts",
        "masks of the last turn alone, or a template that finds one answer",
        ("ms-swift #4596", "TRL #1282", "NeMo-RL #2268"),
        one_run_trained,
        some_data=True,
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
        ("InternLM #318", "ms-swift #10185"),
        labels_shifted_twice,
    ),
    Fault(
        "boundary_targets",
        "the last token of a sample is trained to give the first one of the next",
        "labels that were shifted over the pack and not within each sample",
        ("torchtune #2613",),
        boundary_targets,
    ),
)
