"""A share of the samples is held out from training, to measure the validation loss on.

A sample is held out where the hash of its id, mixed with the seed, falls into the share. So the choice depends on ids
and seed alone, not on packing, order, layout or the other samples: data that grows keeps its held-out samples held out.
All copies of a sample go together. Solutions of one problem may fall on both sides: where that matters, hold out
another file (the ``validation`` of the job).
"""

from __future__ import annotations

import copy
import hashlib

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.permutation import hash_indices

_PURPOSE = 0x48454C44  # keeps these hashes apart from those that order packs


def check_share(share: float) -> None:
    """Raise UserError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise UserError(f"validation_share = {share}", remedy="choose it from 0 (none) to below 1")


def hold_out(plan: PackPlan, share: float, seed: int) -> tuple[PackPlan, PackPlan]:
    """Return the plan of what is trained on and the plan of what is held out: together ``plan``, no sample in both.

    ``share``: of the samples, in expectation. Training packs stay as planned, less the held-out samples; these are
    packed anew, each once, in one phase. Raises UserError when a side would be empty.
    """
    check_share(share)
    hashes = plan.samples.id_hashes()
    mixed = (hashes ^ hash_indices(1, _PURPOSE, seed)) * np.uint64(0x9E3779B97F4A7C15)
    chosen = mixed < np.uint64(int(share * 2**64))  # by sample number
    entries = np.asarray(plan.entries, np.int64)
    out = chosen[entries]
    if out.all() or not out.any():
        raise UserError(
            f"validation_share = {share} of {len(np.unique(entries))} samples leaves "
            + ("none to train on" if out.all() else "none to validate on"),
            file=plan.folder,
            remedy="choose it lower" if out.all() else "choose it higher, or 0",
        )
    staying_before = np.concatenate([[0], np.cumsum(~out)])  # samples that stay, among the first n entries
    ends = staying_before[np.asarray(plan.pack_end, np.int64)]
    filled = np.diff(ends, prepend=0) > 0
    packs_before = np.concatenate([[0], np.cumsum(filled)])
    training = _part(plan, entries[~out], ends[filled], packs_before[np.asarray(plan.phase_end, np.int64)])

    # in the order of the hashes, as every plan's samples are: not in the order in which jobs wrote the rows
    samples = np.unique(entries[out])
    samples = samples[np.argsort(hashes[samples], kind="stable")]
    index, count = pack(plan.samples.padded_lengths(plan.pad_multiple)[samples], plan.capacity, seed)
    validation = _part(
        plan,
        samples[np.argsort(index, kind="stable")],
        np.cumsum(np.bincount(index, minlength=count)),
        np.array([count]),
    )
    for part, side in ((training, "training"), (validation, "validation")):
        part.digest = hashlib.sha256(f"{plan.digest} {side} {share} {seed}".encode()).hexdigest()
    return training, validation


def _part(
    plan: PackPlan, entries: NDArray[np.int64], pack_end: NDArray[np.int64], phase_end: NDArray[np.int64]
) -> PackPlan:
    """Return ``plan`` with other packs; its ``meta`` counts what they hold."""
    part = copy.copy(plan)
    part.entries, part.pack_end, part.phase_end = entries, pack_end, phase_end
    lengths = plan.samples.lengths()
    tokens, padded = int(lengths[entries].sum()), int(plan.samples.padded_lengths(plan.pad_multiple)[entries].sum())
    counts = {
        "samples": len(np.unique(entries)),
        "copies": len(entries),
        "tokens_kept": tokens,
        "padding": padded - tokens,
    }
    part.meta = {**plan.meta, **counts}
    return part
