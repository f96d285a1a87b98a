"""The stage ``sft.pack``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.data.packs.write import Mixture, write_packs


@dataclass(frozen=True)
class PackConfig:
    """Settings of ``sft.pack``."""

    capacity: PositiveInt = 32768
    """Tokens of a pack, padding included. The reference code has 32768; the paper gives no number."""
    pad_multiple: PositiveInt = 1
    """Each sample is padded to a multiple of this many tokens. Give 2 x CP of the training's layout, 1 without context
    parallelism. A multiple of what the layout needs suits it too."""
    weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Copies of each sample in an epoch, by mode (cot, tir, genselect), such as {cot: 1, tir: 2}; 1 where not named, 0
    leaves the mode out."""
    phases: list[list[str]] | None = None
    """Modes that are trained together, phase after phase; null: all in one. Paper section 5.1 compares
    [[cot], [tir], [genselect]]."""
    at_least: dict[str, NonNegativeInt] = field(default_factory=dict)
    """Tokens that solutions have at least, by mode, the prompt not counted. Paper section 5.1, second round: 5000 for
    cot and tir."""
    too_long: Literal["drop", "error"] = "drop"
    """What becomes of samples longer than the capacity: they are dropped and counted, or the stage fails."""


class PackSamples(Stage[PackConfig]):
    """Token files -> which samples lie together in a pack."""

    kind = "sft.pack"
    Config = PackConfig
    ports = {"tokens": "folders of sft.tokenize"}
    takes = {"tokens": "tokens"}
    makes = "packs"
    version = 2  # other samples of a length lie together than before

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for folder in inputs.get("tokens", ()):
            _token_folders(folder)

    async def run(self, context: StageContext) -> None:
        plan = await asyncio.to_thread(
            write_packs,
            [tokens for folder in context.paths("tokens") for tokens in _token_folders(folder)],
            context.output,
            capacity=self.config.capacity,
            pad_multiple=self.config.pad_multiple,
            mixture=Mixture(self.config.phases, self.config.weights, self.config.at_least),
            too_long=self.config.too_long,
            seed=context.seed,
        )
        context.metrics.update(
            packs=plan.num_packs, samples=len(plan.entries), fill=round(plan.fill, 4), dropped=plan.meta["dropped"]
        )


def _token_folders(folder: Path) -> list[Path]:
    """Return the token folders of a finished ``sft.tokenize``, in the order of its inputs. Raises UserError."""
    folders = sorted(folder.glob("tokens-*"), key=lambda path: int(path.name.removeprefix("tokens-")))
    if not folders:
        raise UserError("no token files", file=folder, remedy="name a stage or folder of sft.tokenize")
    return folders
