"""When each stage of a recipe ends: it begins when all that it reads has ended, and shares servers with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_openmath.recipe.file import Recipe


@dataclass(frozen=True)
class Timetable:
    """When stages end, in seconds from the beginning, where no job waits for machines."""

    ends: Mapping[str, float]
    path: tuple[str, ...]
    """The chain of stages, each read by the next, that ends last."""

    @property
    def seconds(self) -> float:
        """Return the time of the whole."""
        return max(self.ends.values(), default=0.0)


def timetable(recipe: Recipe, seconds: Mapping[str, float], servers: Mapping[str, str]) -> Timetable:
    """Return when each stage ends.

    ``seconds``: what a stage takes where it has its machines alone. ``servers``: stage -> the servers that it asks;
    stages that ask the same ones at the same time get equal shares of them.
    """
    reads = {name: recipe.runs_after(entry) for name, entry in recipe.stages.items()}
    remaining, ends, clock = dict(seconds), dict[str, float](), 0.0
    while len(ends) < len(reads):
        running = [name for name in reads if name not in ends and all(n in ends for n in reads[name])]
        asked = [servers[name] for name in running if name in servers]
        sharing = {name: max(1, asked.count(servers.get(name, ""))) for name in running}
        step = min(remaining[name] * sharing[name] for name in running)
        clock += step
        for name in running:
            if remaining[name] * sharing[name] <= step * (1 + 1e-12):
                ends[name] = clock
            else:
                remaining[name] -= step / sharing[name]
    at: str | None = max(ends, key=lambda n: ends[n])
    path: list[str] = []
    while at is not None:
        path.append(at)
        at = max(reads[at], key=lambda n: ends[n], default=None)
    return Timetable(ends, tuple(path[::-1]))
