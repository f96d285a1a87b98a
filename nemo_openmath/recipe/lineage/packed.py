"""Where a training row lies as tokens, and which row a sample of a pack is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.data.packs.plan import PLAN as PACKS
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.tokens.token_file import MANIFEST as TOKENS
from nemo_openmath.data.tokens.token_file import TokenFolder
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages


@dataclass(frozen=True, slots=True)
class PackedAt:
    """Where a row lies as tokens."""

    stage: str
    place: str
    """In words."""


def packed_row(stages: RunStages, name: str) -> str:
    """Return the id of the row that is a sample of a pack, named ``STAGE:PACK:SAMPLE``."""
    stage_name, pack_text, sample_text = name.split(":")
    stage = stages.named(stage_name)
    if stage is None or not (stage.folder / PACKS).is_file():
        packs = ", ".join(s.name for s in stages if (s.folder / PACKS).is_file()) or "none is there"
        raise UserError(f"{stage_name!r} is no stage with packs", file=stages.output, remedy=f"name one: {packs}")
    if not (pack_text.isdigit() and sample_text.isdigit()):
        raise UserError(f"{name}: no sample of a pack", remedy="write STAGE:PACK:SAMPLE with numbers from 0")
    plan = PackPlan(stage.folder)
    rows = plan.rows(int(pack_text))
    if int(sample_text) >= len(rows):
        problem = f"pack {pack_text} has no sample {sample_text}"
        raise UserError(problem, file=stage.folder, remedy=f"choose 0 to {len(rows) - 1}")
    return plan.samples[rows[int(sample_text)]].id


def packed_places(stages: RunStages, row: str) -> Iterator[PackedAt]:
    """Yield where a row lies in token files and packs, and which stages read those. ``row``: its id."""
    hashed = int.from_bytes(hashlib.blake2b(row.encode(), digest_size=8).digest(), "little")
    for stage in stages:
        try:
            if (stage.folder / PACKS).is_file():
                yield from _in_packs(stages, stage, hashed)
            for folder in sorted(path.parent for path in stage.folder.glob(f"tokens-*/{TOKENS}")):
                tokens = TokenFolder(folder, verify_bytes=0)
                for sample in np.flatnonzero(tokens.id_hashes() == hashed).tolist():
                    yield PackedAt(stage.name, f"sample {sample} of {folder.name}, {tokens.length(sample):,} tokens")
        except (DamagedFile, UserError) as error:
            yield PackedAt(stage.name, f"cannot be read: {error}")


def _in_packs(stages: RunStages, stage: RunStage, hashed: int) -> Iterator[PackedAt]:
    plan = PackPlan(stage.folder)
    samples = np.flatnonzero(plan.samples.id_hashes() == hashed)
    if not len(samples):
        return
    places = np.flatnonzero(np.isin(np.asarray(plan.entries), samples))
    ends = np.asarray(plan.pack_end)
    packs = np.searchsorted(ends, places, side="right")
    readers = ", ".join(s.name for s in stages if s.reads(stage))
    read_by = f", read by {readers}" if readers else ""
    if not len(places):
        yield PackedAt(stage.name, f"in none of its packs: too long, or not of its mixture{read_by}")
    for place, pack in zip(places.tolist(), packs.tolist(), strict=True):
        start = int(ends[pack - 1]) if pack else 0
        number = int(ends[pack]) - start
        yield PackedAt(stage.name, f"pack {pack}, sample {place - start} (of {number:,}){read_by}")
