"""A pack plan on disk: ``packs.plan`` says which samples lie together, decided once for all runs.

The plan is a section file of kind "packs" (``section_file.py``):

    entries    <u4: sample numbers, pack after pack (number in the token folders laid end to end)
    pack_end   <u4: where each pack's entries end
    phase_end  <u4: where each phase's packs end
    meta       {"capacity", "pad_multiple", "seed", "phases": [[group, ...], ...], "weights": {group: weight},
                "at_least": {group: tokens},
                "tokens": [{"path" (relative to the plan), "fingerprint"}], "samples", "copies", "tokens_kept",
                "padding", "dropped": {reason: count}, "examples": {reason: id}}

``write.py`` makes it. Tokens are not copied: the plan names the token folders, and a pack is laid out when it is read.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.nearby import nearby
from nemo_openmath.data.packs.pack import Pack, lay_out
from nemo_openmath.data.section_file import SectionFile
from nemo_openmath.data.tokens.samples import Samples
from nemo_openmath.data.tokens.token_file import TokenFolder

PLAN = "packs.plan"
KIND = "packs"


class PackPlan:
    """An opened plan and the token folders it speaks of. ``entries``, ``pack_end``, ``phase_end`` are mapped.

    Raises UserError where there is no plan, DamagedFile where it is not whole or its token files have changed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not os.path.lexists(self.folder / PLAN):
            near = nearby(self.folder, lambda place: (place / PLAN).is_file())
            remedy = f"give the folder of a finished sft.pack stage{near}"
            raise UserError("no such file, so no packs are here", file=self.folder / PLAN, remedy=remedy)
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
            tokens = TokenFolder(self.folder / source["path"])
            if tokens.fingerprint != source["fingerprint"]:
                raise DamagedFile(file.path, f"made from other token files than those in {tokens.folder}", "pack again")
            folders.append(tokens)
        self.samples = Samples(folders)

    @property
    def num_packs(self) -> int:
        return len(self.pack_end)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample in it."""
        return int(self.samples.lengths()[np.asarray(self.entries)].max())

    @property
    def fill(self) -> float:
        """Tokens, padding included, over the capacity of all packs."""
        return (self.meta["tokens_kept"] + self.meta["padding"]) / (self.num_packs * self.capacity)

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
        """Return the sample numbers of a pack (0 <= pack < num_packs). Raises UserError for another number."""
        if not 0 <= pack < self.num_packs:
            raise UserError(f"no pack {pack}", file=self.folder, remedy=f"choose 0 to {self.num_packs - 1}")
        start = int(self.pack_end[pack - 1]) if pack else 0
        return self.entries[start : int(self.pack_end[pack])].tolist()

    def pack(self, pack: int) -> Pack:
        """Read a pack as it was planned; each sample is checked."""
        return lay_out([self.samples[row] for row in self.rows(pack)], self.pad_multiple)
