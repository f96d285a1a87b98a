"""Packing: token folders -> ``packs.plan``, in five steps.

    select    the samples that go in, each other one counted by reason
    weigh     how many copies of each an epoch has
    pack      phase by phase, which of them lie together (``packing.py``)
    describe  what the plan holds: its meta
    write     the plan (format in ``plan.py``)

Every sample whose group is asked for is in the plan exactly round(weight) times or, for weights that are not whole,
once more or less as its hash falls. Samples are taken in the order of their ids' hashes, so the plan does not depend
on the order in which jobs happened to write the rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.plan import KIND, PLAN, PackPlan
from nemo_openmath.data.permutation import hash_indices
from nemo_openmath.data.section_file import SectionWriter
from nemo_openmath.data.tokens.samples import Samples
from nemo_openmath.data.tokens.token_file import TokenFolder

# Why a sample is not in the plan; these are keys of its meta.
TOO_LONG = "longer than a pack"
DOUBLED = "same id as another sample"
TOO_SHORT = "solution shorter than the mixture asks for"
NO_WEIGHT = "group not in the mixture"
THINNED = "left out by a weight below 1"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which groups a training sees, how often in an epoch, and in what order.

    ``phases``: groups that are mixed, phase after phase, each phase for all epochs of the run (the sequential
    curriculum of paper section 5.1's comparison: [["cot"], ["tir"], ["genselect"]]); None: all in one phase.
    ``weights``: copies of each sample in an epoch, by group; 1 where not named; 0 leaves the group out.
    ``at_least``: tokens that a group's solutions have at least, the prompt not counted. The second round of section
    5.1 is {"cot": 5000, "tir": 5000}; that GenSelect is exempt is the reference's choice.
    """

    phases: Sequence[Sequence[str]] | None = None
    weights: Mapping[str, float] | None = None
    at_least: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Packed:
    """The three arrays of a plan."""

    entries: NDArray[np.uint32]
    pack_end: NDArray[np.uint32]
    phase_end: NDArray[np.uint32]


def write_packs(
    tokens: str | Path | Sequence[str | Path],
    folder: str | Path | None = None,
    *,
    capacity: int,
    pad_multiple: int = 1,
    mixture: Mixture | None = None,
    too_long: Literal["drop", "error"] = "drop",
    seed: int = 0,
) -> PackPlan:
    """Pack the samples of one or several token folders into rows of at most ``capacity`` tokens.

    ``pad_multiple``: each sample takes a multiple of it, 2 x CP of the layouts to be trained with; the padding is
    counted. ``folder``: where ``packs.plan`` goes, by default beside the tokens. Raises UserError where nothing is left
    to train on, where the mixture names a group that no sample has or, with ``too_long="error"``, where a sample does
    not fit.
    """
    sources = [Path(tokens)] if isinstance(tokens, str | Path) else [Path(t) for t in tokens]
    if not sources:
        raise UserError("no token files to pack", remedy="name folders of sft.tokenize")
    folder = Path(folder) if folder is not None else sources[0]
    if pad_multiple < 1 or capacity < pad_multiple or capacity % pad_multiple:
        raise UserError(
            f"packs of {capacity} tokens cannot hold multiples of {pad_multiple}",
            remedy="make the capacity a multiple of pad_multiple",
        )
    mixture = mixture or Mixture()
    samples = Samples([TokenFolder(source) for source in sources])
    phases = _check_mixture(mixture, samples.groups, folder)
    padded = samples.padded_lengths(pad_multiple)

    selection = _select(samples, mixture, padded, capacity, folder if too_long == "error" else None)
    copies = _weigh(selection, mixture, phases, seed)
    packed = _pack_phases(selection, copies, phases, padded, capacity, seed)
    if not len(packed.entries):
        reasons = selection.dropped or "the token files are empty"
        raise UserError("no sample to train on", file=folder, remedy=f"dropped: {reasons}")
    meta = {
        "capacity": capacity,
        "pad_multiple": pad_multiple,
        "seed": seed,
        "phases": phases,
        "weights": {name: (mixture.weights or {}).get(name, 1.0) for name in samples.groups},
        "at_least": dict(mixture.at_least or {}),
        "tokens": [{"path": os.path.relpath(f.folder, folder), "fingerprint": f.fingerprint} for f in samples.folders],
        **_counts(selection, packed, padded),
    }
    _write(folder, packed, meta)
    return PackPlan(folder)


class _Selection:
    """The samples that go into a plan: ``rows`` [n], sample numbers in the order of their ids' hashes.

    ``dropped``: {reason: how many are out}; ``examples``: {reason: id of one of them}.
    """

    def __init__(self, samples: Samples):
        self.samples = samples
        self.codes = samples.group_codes()  # of all samples
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, str] = {}
        hashes = samples.id_hashes()
        self.rows = np.argsort(hashes, kind="stable")
        # Equal neighbours are doubled samples (64 bits: 5.5M samples collide by chance once in a million data sets,
        # and then one sample is counted as dropped).
        ordered = hashes[self.rows]
        doubled = np.zeros(len(ordered), np.bool_)
        doubled[1:] = ordered[1:] == ordered[:-1]
        self.drop(DOUBLED, doubled)

    def drop(self, reason: str, out: NDArray[np.bool_]) -> None:
        """Take the samples out that ``out`` [n] flags, and count them."""
        if out.any():
            self.dropped[reason] = int(out.sum())
            self.examples[reason] = self.samples[int(self.rows[out][0])].id
            self.rows = self.rows[~out]


def _select(
    samples: Samples, mixture: Mixture, padded: NDArray[np.int64], capacity: int, strict: Path | None
) -> _Selection:
    """Leave out doubled, too long and too short samples. ``strict``: the folder to name where one is too long."""
    selection = _Selection(samples)
    selection.drop(TOO_LONG, padded[selection.rows] > capacity)
    if strict is not None and TOO_LONG in selection.dropped:
        raise UserError(
            f"{selection.dropped[TOO_LONG]} samples are longer than {capacity} tokens, the first is "
            f"{selection.examples[TOO_LONG]}",
            file=strict,
            remedy="raise the capacity or drop them (too_long: drop)",
        )
    if mixture.at_least:
        limits = np.array([mixture.at_least.get(name, 0) for name in samples.groups])
        solutions = samples.lengths() - samples.prompt_lengths()
        selection.drop(TOO_SHORT, solutions[selection.rows] < limits[selection.codes[selection.rows]])
    return selection


def _weigh(selection: _Selection, mixture: Mixture, phases: list[list[str]], seed: int) -> NDArray[np.int64]:
    """Return how often an epoch has each sample of the selection, [n], at least once; others are dropped."""
    listed = {name for phase in phases for name in phase}
    weights = mixture.weights or {}
    groups = selection.samples.groups
    weight = np.array([weights.get(name, 1.0) if name in listed else 0.0 for name in groups] or [0.0])
    wanted = weight[selection.codes[selection.rows]]
    whole = np.floor(wanted)
    # A uniform number of 53 bits for each sample: one copy more where it falls below the weight's fraction.
    uniform = (hash_indices(len(wanted), seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    copies = (whole + (uniform < wanted - whole)).astype(np.int64)
    selection.drop(NO_WEIGHT, wanted == 0)
    copies = copies[wanted > 0]
    selection.drop(THINNED, copies == 0)
    return copies[copies > 0]


def _pack_phases(
    selection: _Selection,
    copies: NDArray[np.int64],
    phases: list[list[str]],
    padded: NDArray[np.int64],
    capacity: int,
    seed: int,
) -> _Packed:
    """Pack each phase's samples by itself, one phase behind the other."""
    codes = selection.codes[selection.rows]
    entries: list[NDArray] = [np.empty(0, "<u4")]
    pack_end: list[NDArray] = [np.empty(0, np.int64)]
    phase_end: list[int] = []
    num_entries = num_packs = 0
    for phase in phases:
        inside = np.isin(codes, [selection.samples.groups.index(name) for name in phase])
        chosen = np.repeat(selection.rows[inside], copies[inside])
        index, count = pack(padded[chosen], capacity, seed)
        entries.append(chosen[np.argsort(index, kind="stable")].astype("<u4"))
        pack_end.append(num_entries + np.cumsum(np.bincount(index, minlength=count)))
        num_entries += len(chosen)
        num_packs += count
        phase_end.append(num_packs)
    return _Packed(np.concatenate(entries), np.concatenate(pack_end).astype("<u4"), np.array(phase_end, "<u4"))


def _counts(selection: _Selection, packed: _Packed, padded: NDArray[np.int64]) -> dict[str, Any]:
    lengths = selection.samples.lengths()
    return {
        "samples": len(selection.rows),
        "copies": len(packed.entries),
        "tokens_kept": int(lengths[packed.entries].sum()),
        "padding": int((padded - lengths)[packed.entries].sum()),
        "dropped": selection.dropped,
        "examples": selection.examples,
    }


def _write(folder: Path, packed: _Packed, meta: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with SectionWriter(folder / PLAN, KIND) as writer:
        writer.add("entries", packed.entries)
        writer.add("pack_end", packed.pack_end)
        writer.add("phase_end", packed.phase_end)
        writer.finish(meta)


def _check_mixture(mixture: Mixture, groups: list[str], folder: Path) -> list[list[str]]:
    """Return the phases, all groups in one where the mixture names none. Raises UserError."""
    listed = [name for phase in mixture.phases or () for name in phase]
    for name in [*listed, *(mixture.weights or ()), *(mixture.at_least or ())]:
        if name not in groups:
            raise UserError(f"no sample of group {name!r}", file=folder, remedy=f"the groups are {', '.join(groups)}")
    if len(set(listed)) < len(listed):
        raise UserError("a group is in two phases", file=folder, remedy="name each group once")
    for name, weight in (mixture.weights or {}).items():
        if not 0 <= weight < 1000:
            raise UserError(
                f"weight {weight} of group {name!r}", file=folder, remedy="weights are copies an epoch, from 0"
            )
    return [list(groups)] if mixture.phases is None else [list(phase) for phase in mixture.phases]
