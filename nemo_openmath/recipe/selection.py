"""Which stages of a recipe a run does."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.file import Recipe


@dataclass(frozen=True, slots=True)
class StageSelection:
    """Which stages to run: all, a range of them, one, or a shard of one."""

    start: str | None = None
    """The first stage; earlier ones must be finished."""
    until: str | None = None
    """The last stage."""
    only: str | None = None
    """The one stage to run."""
    shard: int = 0
    """Which job of an array this is, from 0."""
    shards: int = 1
    """How many jobs share the stage ``only``."""
    prepare: bool = False
    """Write down what a launcher's processes will do, and run nothing."""
    replace: bool = False
    """Make a stage anew that is not what the recipe asks for, even where long work lies in its folder."""

    def names(self, recipe: Recipe) -> list[str]:
        """Return stage names in order. Raises UserError for an unknown one, and where nothing would be selected."""
        names = list(recipe.stages)
        first, last = self.only or self.start, self.only or self.until
        if self.only is None and (self.shards > 1 or self.prepare):
            raise UserError("--shard and --prepare are of one stage", remedy="name it with --only")
        if self.only is not None and (self.start or self.until):
            raise UserError("--only is one stage; --from and --until name more", remedy="give one or the other")
        begin = names.index(recipe.entry(first).name) if first else 0
        end = names.index(recipe.entry(last).name) if last else len(names) - 1
        if end < begin:
            raise UserError(f"--from {first} comes after --until {last}: nothing to run", remedy="exchange the two")
        if self.only is not None and self.shards > 1 and not recipe.entry(self.only).stage.splits:
            raise UserError(f"stage {self.only!r} cannot be split into shards", remedy="leave out --shard")
        return names[begin : end + 1]
