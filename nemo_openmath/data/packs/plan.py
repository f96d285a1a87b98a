"""The packing stage: token folders -> ``packs.plan``, which samples lie together, decided once for all runs.

The plan is a section file of kind "packs" (``section_file.py``):

    entries    <u4: sample numbers, pack after pack (number in the token folders laid end to end)
    pack_end   <u4: where each pack's entries end
    phase_end  <u4: where each phase's packs end
    meta       {"capacity", "pad_multiple", "seed", "phases": [[group, ...], ...], "weights": {group: weight},
                "at_least": {group: tokens},
                "tokens": [{"path" (relative to the plan), "fingerprint"}], "samples", "copies", "tokens_kept",
                "padding", "dropped": {reason: count}, "examples": {reason: id}}

Every sample whose group is asked for is in it exactly round(weight) times or, for weights that are not whole, once
more or less as its hash falls; what is left out is counted by reason. Samples are taken in the order of their ids'
hashes, so the plan does not depend on the order in which jobs happened to write the rows.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.permutation import hash_indices
from nemo_openmath.data.packs.types import Pack
from nemo_openmath.data.tokens.section_file import SectionFile, SectionWriter
from nemo_openmath.data.tokens.token_file import Sample, TokenFolder

PLAN = "packs.plan"
KIND = "packs"
TOO_LONG = "longer than a pack"
DOUBLED = "same id as another sample"
TOO_SHORT = "solution shorter than the mixture asks for"
NO_WEIGHT = "group not in the mixture"
THINNED = "left out by a weight below 1"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which groups are trained on, how often in an epoch, and in what order.

    ``phases``: groups trained on together, phase after phase, each phase for all epochs of the run (the sequential
    curriculum of paper section 5.1's comparison: [["cot"], ["tir"], ["genselect"]]); None: all in one phase.
    ``weights``: copies of each sample in an epoch, by group; 1 where not named; 0 leaves the group out.
    ``at_least``: tokens that a group's solutions have at least, the prompt not counted. The second round of section
    5.1 is {"cot": 5000, "tir": 5000}; that GenSelect is exempt is the reference's choice.
    """

    phases: Sequence[Sequence[str]] | None = None
    weights: Mapping[str, float] | None = None
    at_least: Mapping[str, int] | None = None


class Samples:
    """Token folders laid end to end: sample numbers 0..n-1 across all of them."""

    def __init__(self, folders: Sequence[TokenFolder]):
        self.folders = list(folders)
        if len({f.tokenizer for f in folders}) > 1:
            raise UserError("made with another tokenizer than the first", file=folders[-1].folder)
        self._ends = list(accumulate(len(f) for f in folders))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> Sample:
        folder, row = self._find(sample)
        return folder[row]

    def length(self, sample: int) -> int:
        """Tokens of a sample, from the index alone."""
        folder, row = self._find(sample)
        return folder.length(row)

    def _find(self, sample: int) -> tuple[TokenFolder, int]:
        at = bisect_right(self._ends, sample)
        return self.folders[at], sample - (self._ends[at - 1] if at else 0)


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
    counted. ``folder``: where ``packs.plan`` goes, by default beside the tokens. Raises UserError where nothing
    is left to train on or, with ``too_long="error"``, where a sample does not fit.
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
    opened = [TokenFolder(source) for source in sources]
    samples = Samples(opened)
    lengths = np.concatenate([f.lengths() for f in opened]).astype(np.int64)
    padded = -(-lengths // pad_multiple) * pad_multiple
    names = sorted({name for f in opened for name in f.groups})
    recode = [np.array([names.index(g) for g in f.groups] or [0], np.uint16)[f.group_codes()] for f in opened]
    groups = np.concatenate(recode)

    dropped: dict[str, int] = {}
    examples: dict[str, str] = {}

    def drop(reason: str, which: NDArray[np.int64]) -> None:
        if len(which):
            dropped[reason] = len(which)
            examples[reason] = samples[int(which[0])].id

    # The order of the ids' hashes; equal neighbours are doubled samples (64 bits: 5.5M samples collide by chance
    # once in a million data sets, and then one sample is counted as dropped).
    hashes = np.concatenate([f.id_hashes() for f in opened])
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(order), np.bool_)
    again[1:] = hashes[order[1:]] == hashes[order[:-1]]
    drop(DOUBLED, order[again])
    order = order[~again]
    fits = padded[order] <= capacity
    drop(TOO_LONG, order[~fits])
    if TOO_LONG in dropped and too_long == "error":
        raise UserError(
            f"{dropped[TOO_LONG]} samples are longer than {capacity} tokens, the first is {examples[TOO_LONG]}",
            file=folder,
            remedy="raise the capacity or drop them (too_long: drop)",
        )
    order = order[fits]
    if mixture.at_least:
        limits = np.array([mixture.at_least.get(name, 0) for name in names])
        solutions = lengths - np.concatenate([f.prompt_lengths() for f in opened])
        long_enough = solutions[order] >= limits[groups[order]]
        drop(TOO_SHORT, order[~long_enough])
        order = order[long_enough]

    phases = [list(p) for p in mixture.phases] if mixture.phases is not None else [names]
    weights = _check(mixture, phases, names, folder)
    listed = {name for phase in phases for name in phase}
    copies = np.array([weights.get(n, 1.0) if n in listed else 0.0 for n in names] or [0.0])[groups[order]]
    whole = np.floor(copies)
    more = (hash_indices(len(order), seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < copies - whole
    times = (whole + more).astype(np.int64)
    drop(NO_WEIGHT, order[copies == 0])
    drop(THINNED, order[(times == 0) & (copies > 0)])

    entries: list[NDArray] = []
    ends: list[NDArray] = []
    phase_end: list[int] = []
    for phase in phases:
        inside = np.isin(groups[order], [names.index(n) for n in phase])
        chosen = np.repeat(order[inside], times[inside])
        index, count = pack(padded[chosen], capacity, seed)
        by_pack = np.argsort(index, kind="stable")
        entries.append(chosen[by_pack].astype("<u4"))
        ends.append(np.cumsum(np.bincount(index, minlength=count)) + sum(map(len, entries[:-1])))
        phase_end.append(sum(map(len, ends)))
    flat = np.concatenate([np.empty(0, "<u4"), *entries])
    if not len(flat):
        raise UserError(
            "no sample to train on", file=folder, remedy=f"dropped: {dropped or 'the token files are empty'}"
        )
    meta: dict[str, Any] = {
        "capacity": capacity,
        "pad_multiple": pad_multiple,
        "seed": seed,
        "phases": phases,
        "weights": {n: weights.get(n, 1.0) for n in names},
        "at_least": dict(mixture.at_least or {}),
        "tokens": [{"path": os.path.relpath(f.folder, folder), "fingerprint": f.fingerprint} for f in opened],
        "samples": int((times > 0).sum()),
        "copies": len(flat),
        "tokens_kept": int(lengths[flat].sum()),
        "padding": int((padded - lengths)[flat].sum()),
        "dropped": dropped,
        "examples": examples,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with SectionWriter(folder / PLAN, KIND) as writer:
        writer.add("entries", flat)
        writer.add("pack_end", np.concatenate(ends).astype("<u4"))
        writer.add("phase_end", np.array(phase_end, "<u4"))
        writer.finish(meta)
    return PackPlan(folder)


def _check(mixture: Mixture, phases: list[list[str]], names: list[str], folder: Path) -> dict[str, float]:
    weights = dict(mixture.weights or {})
    listed = [name for phase in phases for name in phase]
    for name in [*listed, *weights, *(mixture.at_least or ())]:
        if name not in names:
            raise UserError(f"no sample of group {name!r}", file=folder, remedy=f"the groups are {', '.join(names)}")
    if len(set(listed)) < len(listed):
        raise UserError("a group is in two phases", file=folder, remedy="name each group once")
    for name, weight in weights.items():
        if not 0 <= weight < 1000:
            raise UserError(
                f"weight {weight} of group {name!r}", file=folder, remedy="weights are copies an epoch, from 0"
            )
    return weights


class PackPlan:
    """An opened plan and the token folders it speaks of. ``entries``, ``pack_end``, ``phase_end`` are mapped."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        file = SectionFile(self.folder / PLAN, KIND)
        self.meta = file.meta
        self.digest = file.digest
        self.capacity: int = file.meta["capacity"]
        self.pad_multiple: int = file.meta["pad_multiple"]
        self.entries = file.section("entries")
        self.pack_end = file.section("pack_end")
        self.phase_end = file.section("phase_end")
        folders = []
        for source in file.meta["tokens"]:
            opened = TokenFolder(self.folder / source["path"])
            if opened.fingerprint != source["fingerprint"]:
                raise DamagedFile(file.path, f"made from other token files than those in {opened.folder}", "pack again")
            folders.append(opened)
        self.samples = Samples(folders)

    @property
    def num_packs(self) -> int:
        return len(self.pack_end)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample in it."""
        lengths = np.concatenate([folder.lengths() for folder in self.samples.folders])
        return int(lengths[np.asarray(self.entries)].max())

    def require_multiple(self, sample_multiple: int) -> None:
        """Refuse a layout that pads each sample to ``sample_multiple`` tokens where the plan left no room for it.

        A plan made for a multiple of it suits. Raises UserError, which names both numbers.
        """
        if self.pad_multiple % sample_multiple:
            raise UserError(
                f"packed with pad_multiple = {self.pad_multiple}, the layout pads each sample to a multiple of "
                f"{sample_multiple} (2 x CP)",
                file=self.folder,
                remedy=f"pack again with pad_multiple={math.lcm(self.pad_multiple, sample_multiple)}",
            )

    def rows(self, pack: int) -> list[int]:
        """Sample numbers of a pack (0 <= pack < num_packs). Raises UserError."""
        if not 0 <= pack < self.num_packs:
            raise UserError(f"no pack {pack}", file=self.folder, remedy=f"choose 0 to {self.num_packs - 1}")
        start = int(self.pack_end[pack - 1]) if pack else 0
        return self.entries[start : int(self.pack_end[pack])].tolist()

    def pack(self, pack: int) -> Pack:
        """A pack as it was planned, read and checked."""
        return lay_out([self.samples[row] for row in self.rows(pack)], self.pad_multiple)

    @property
    def fill(self) -> float:
        """Tokens, padding included, over the room of all packs."""
        return (self.meta["tokens_kept"] + self.meta["padding"]) / (self.num_packs * self.capacity)


def lay_out(samples: Sequence[Sample], pad_multiple: int) -> Pack:
    """The pack of samples laid end to end, each padded to a multiple of ``pad_multiple``."""
    sizes = [-(-len(sample.tokens) // pad_multiple) * pad_multiple for sample in samples]
    boundaries = np.cumsum([0, *sizes], dtype=np.int32)
    tokens = np.zeros(boundaries[-1], np.int32)
    labels = np.zeros(boundaries[-1], np.int32)
    loss_mask = np.zeros(boundaries[-1], np.bool_)
    for sample, start in zip(samples, boundaries.tolist(), strict=False):
        stop = start + len(sample.tokens)
        tokens[start:stop] = sample.tokens
        labels[start : stop - 1] = sample.tokens[1:]
        loss_mask[start : stop - 1] = sample.loss_mask[1:]
    return Pack(tokens, labels, loss_mask, boundaries, tuple(s.id for s in samples))
