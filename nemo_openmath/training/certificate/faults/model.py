"""Faults of what the model computes: attention, positions, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from nemo_openmath.training.certificate.faults.batch import (
    CertifiedBatch,
    Fault,
    Prediction,
    batch_loss,
    mean_of,
    padded_to,
)
from nemo_openmath.training.certificate.views import Boundaries, PackView, SampleSums, one_sequence, right_view


def attention_across_samples(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where no layer's attention stops at a sample, and positions restart."""
    for multiple in batch.layouts.paddings:

        def told(view: PackView) -> Boundaries:
            return Boundaries(np.array([0, len(view.tokens)]), view.told.positions)

        yield mean_of(_padding(multiple), batch.run(padded_to(multiple), told))


def pack_as_one_sequence(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where all layers take the pack for one sample."""
    for multiple in batch.layouts.paddings:
        yield mean_of(_padding(multiple), batch.run(padded_to(multiple), lambda view: one_sequence(len(view.tokens))))


def middle_stages_as_one_sequence(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where the layers of middle pipeline stages take the pack for one sample."""
    for stages in batch.layouts.stages:
        size = batch.model.num_layers // stages
        middle = range(size, batch.model.num_layers - size)
        for multiple in batch.layouts.paddings:
            note = f"{stages} stages" + (f", {_padding(multiple)}" if multiple > 1 else "")
            packs = batch.run(padded_to(multiple), lambda view: one_sequence(len(view.tokens)), middle)
            yield mean_of(note, packs)


def positions_not_reset(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses where positions run on through the pack, and the attention stops at samples."""

    def told(view: PackView) -> Boundaries:
        return Boundaries(view.told.cu_seqlens, np.arange(len(view.tokens)))

    yield mean_of("", batch.run(right_view, told))


def rotary_base(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses with bases of the rotary embedding that are some framework's default."""
    for base in (10_000.0, 500_000.0, 1_000_000.0):
        if base != batch.model.config.rope_theta:
            yield mean_of(f"base {base:.0f}", batch.run(right_view, rope_theta=base))


def biases_lost(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the losses of the model without the biases of its queries, keys and values."""
    if batch.model.config.qkv_bias:
        with batch.model.without_biases():
            yield mean_of("", batch.run(right_view))


def weights_not_loaded(batch: CertifiedBatch) -> Iterator[Prediction]:
    """Yield the loss of a model with random weights: the logarithm of the vocabulary's size."""
    packs, loss, uncertainty = batch.right_sums(), math.log(batch.model.config.vocab_size), 0.05
    if abs(batch_loss(packs) - loss) < 2 * uncertainty * loss:  # this model's own weights are as good as random
        return
    yield Prediction(
        "", [SampleSums(loss * pack.counts.astype(np.float64), pack.counts) for pack in packs], loss, uncertainty
    )


def _padding(multiple: int) -> str:
    return f"samples padded to {multiple}" if multiple > 1 else ""


FAULTS: tuple[Fault, ...] = (
    Fault(
        "attention_across_samples",
        "attention does not stop at samples, in all layers; positions restart",
        "the mask or cu_seqlens that reaches the attention; a context-parallel attention that takes no mask",
        ("TRL #805, #6843", "LLaMA-Factory #2289", "NeMo-RL #4167", "transformers #46634"),
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
        "rotary_base",
        "the rotary embedding has another base",
        "rope_theta or rotary_base of the trainer's model",
        (),
        rotary_base,
    ),
    Fault(
        "biases_lost",
        "the biases of queries, keys and values are not there",
        "the conversion of the checkpoint, or a model that is built without them (Megatron's add_qkv_bias)",
        ("Fast-LLM #398", "ANEForge #253"),
        biases_lost,
        some_data=True,
    ),
    Fault(
        "weights_not_loaded",
        "the loss is that of random weights",
        "the checkpoint that the trainer loads, or does not",
        (),
        weights_not_loaded,
    ),
)
