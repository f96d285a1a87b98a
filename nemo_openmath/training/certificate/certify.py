"""A certificate made: batches chosen, each sample run alone, every fault computed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.pack import Pack, lay_out
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.models.layout import Precision
from nemo_openmath.training.base_model import BaseModel
from nemo_openmath.training.certificate.choose import choose_packs
from nemo_openmath.training.certificate.diagnose import inseparable
from nemo_openmath.training.certificate.faults.batch import CertifiedBatch, Fault, Layouts, Prediction, batch_loss
from nemo_openmath.training.certificate.faults.known import FAULTS
from nemo_openmath.training.certificate.files import (
    TOLERANCES,
    Certificate,
    CertifiedSample,
    CertifiedStep,
    Predicted,
)
from nemo_openmath.training.certificate.reference import ReferenceModel, alone, reference_model
from nemo_openmath.training.forward_backward import check_tokens

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 15.0
_SAME = 1e-9  # relative: a fault that changes no more than this changes nothing


@dataclass(frozen=True)
class CertifiedData:
    """The batches of a certificate: of each step its micro-batches, samples without padding."""

    steps: Sequence[Sequence[Pack]]
    source: dict[str, Any]  # field ``packs`` of the certificate
    capacity: int
    pad_multiple: int


def chosen_packs(folder: Path, number: int, tokenizer: str | None = None) -> CertifiedData:
    """Return a single batch of ``number`` packs of ``folder`` that tell faults apart (:func:`choose_packs`)."""
    plan = PackPlan(folder)
    _require(plan, tokenizer)
    numbers = choose_packs(plan, number)
    packs = [lay_out([plan.samples[row] for row in plan.rows(pack)], 1) for pack in numbers]
    source = {"folder": str(folder), "digest": plan.digest, "chosen": numbers}
    return CertifiedData([packs], source, plan.capacity, plan.pad_multiple)


def first_batches(
    folder: Path, *, batch_samples: int, steps: int, seed: int, tokenizer: str | None = None
) -> CertifiedData:
    """Return the first ``steps`` global batches of a training over ``folder``."""
    data = PackedData.open(
        folder, batch_samples=batch_samples, steps=steps, seed=seed, pad_multiple=1, tokenizer=tokenizer
    )
    source = {"folder": str(folder), "digest": data.fingerprint, "batch_samples": batch_samples, "seed": seed}
    batches = [data.batch(step) for step in range(steps)]
    return CertifiedData(batches, source, data.plan.capacity, data.plan.pad_multiple)


def _require(plan: PackPlan, tokenizer: str | None) -> None:
    if tokenizer is not None:
        for tokens in plan.samples.folders:
            tokens.require(tokenizer)


def stages_of(num_layers: int) -> tuple[int, ...]:
    """Return the numbers of pipeline stages, from 3 to 16, that divide ``num_layers``."""
    return tuple(stages for stages in range(3, 17) if num_layers % stages == 0)


def make_certificate(
    base: BaseModel,
    data: CertifiedData,
    layouts: Layouts,
    precision: Precision = "fp32",
    faults: Sequence[Fault] = FAULTS,
) -> Certificate:
    """Compute the certificate of ``data`` and the model ``base``, in this process alone.

    ``precision``: bf16 rounds the weights first, as those of a bf16 training are. Raises UserError where a step trains
    no token, and for tokens outside the model's vocabulary.
    """
    with reference_model(base, precision) as model:
        steps, unexercised = [], []
        for number, packs in enumerate(data.steps, 1):
            check_tokens(packs, base.config.vocab_size)
            step, unseen = _certify_step(model, number, packs, layouts, faults)
            steps.append(step)
            unexercised.append(unseen)
    certificate = Certificate(
        model={
            "folder": str(base.folder),
            "digest": base.identity["source"],
            "config": base.identity["model"],
            "weights": precision,
        },
        packs=data.source,
        faults={fault.name: _described(fault) for fault in faults},
        steps=steps,
        unexercised=[list(key) for key in sorted(set.intersection(*unexercised))],
    )
    pairs = {precision: inseparable(certificate, tolerance) for precision, tolerance in TOLERANCES.items()}
    return replace(certificate, inseparable=pairs)


def _described(fault: Fault) -> dict[str, Any]:
    texts = {"what": fault.what, "where": fault.where, "sources": list(fault.sources)}
    return {**texts, "harmless": fault.harmless, "some_data": fault.some_data}


def _certify_step(
    model: ReferenceModel, number: int, packs: Sequence[Pack], layouts: Layouts, faults: Sequence[Fault]
) -> tuple[CertifiedStep, set[tuple[str, str]]]:
    """Return the step's part of the certificate, and which variants change nothing of it."""
    begun = reported_at = time.monotonic()
    batch = CertifiedBatch(model, packs, [alone(model, pack) for pack in packs], layouts)
    sums = batch.right_sums()
    loss, targets = batch_loss(sums), sum(int(pack.counts.sum()) for pack in sums)
    if not targets:
        raise UserError(f"step {number} trains no token", remedy="check the loss masks of the data")
    log.info(f"step {number}: {len(packs)} packs, {targets:,} target tokens, loss {loss:.6f}")
    samples = [
        CertifiedSample(name, micro_batch, length, int(count), _ratio(total, count))
        for micro_batch, (pack, pack_sums) in enumerate(zip(packs, sums, strict=True))
        for name, length, total, count in zip(
            pack.sample_ids, np.diff(pack.cu_seqlens).tolist(), pack_sums.sums, pack_sums.counts, strict=True
        )
    ]
    step = CertifiedStep(number, loss, targets, samples, [])
    right, unexercised = step.right(), set()
    for fault in faults:
        for prediction in fault.predict(batch):
            predicted = _predicted(fault.name, prediction, packs)
            if _is_same(predicted, right):
                unexercised.add((fault.name, prediction.variant))
            else:
                step.predicted.append(predicted)
        if time.monotonic() - reported_at > _SECONDS_BETWEEN_LINES:
            reported_at = time.monotonic()
            log.info(f"step {number}: {fault.name} is done, {reported_at - begun:.0f} s so far")
    return step, unexercised


def _predicted(fault: str, prediction: Prediction, packs: Sequence[Pack]) -> Predicted:
    micro_batches = (
        [_ratio(pack.sums.sum(), pack.counts.sum()) for pack in prediction.packs]
        if prediction.micro_batches is None
        else list(prediction.micro_batches)
    )
    samples = [
        _ratio(total, count)
        for sums, pack in zip(prediction.packs, packs, strict=True)  # behind the samples there may be padding
        for total, count in list(zip(sums.sums, sums.counts, strict=True))[: len(pack.sample_ids)]
    ]
    return Predicted(fault, prediction.variant, prediction.tolerance, prediction.loss, micro_batches, samples)


def _ratio(total: float, count: int) -> float | None:
    return float(total / count) if count else None


def _is_same(predicted: Predicted, right: Predicted) -> bool:
    """Return whether nothing of a prediction differs from what is right."""
    pairs = [
        (predicted.loss, right.loss),
        *zip(predicted.micro_batches, right.micro_batches, strict=True),
        *zip(predicted.samples, right.samples, strict=True),
    ]
    return all(a == b or (a is not None and b is not None and abs(a - b) <= _SAME * abs(b)) for a, b in pairs)


def write_data(data: CertifiedData, file: Path) -> None:
    """Write the certified packs as JSON Lines, a pack each, for another trainer to read.

    Fields: ``step``, ``micro_batch``, ``input_ids``, ``labels`` (the token's own id where it is a target, else -100;
    not shifted, as transformers takes them), ``position_ids``, ``seq_lengths``, ``seq_start_id`` and ``sample_ids``.
    Nothing is padded.
    """
    with file.open("wb") as out:
        for step, packs in enumerate(data.steps, 1):
            for micro_batch, pack in enumerate(packs):
                out.write(orjson.dumps(_row(step, micro_batch, pack)) + b"\n")


def _row(step: int, micro_batch: int, pack: Pack) -> dict[str, Any]:
    is_target = np.append(False, pack.loss_mask[:-1])
    return {
        "step": step,
        "micro_batch": micro_batch,
        "input_ids": pack.tokens.tolist(),
        "labels": np.where(is_target, pack.tokens, -100).tolist(),
        "position_ids": pack.position_ids().tolist(),
        "seq_lengths": np.diff(pack.cu_seqlens).tolist(),
        "seq_start_id": pack.cu_seqlens[:-1].tolist(),
        "sample_ids": list(pack.sample_ids),
    }
