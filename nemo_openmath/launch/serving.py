"""Which model a stage asks, what serves it, and where it is found."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.cluster import Cluster, JobPlace
from nemo_openmath.launch.model_server import ModelServer

TEACHER, DEFAULT = "teacher", "default"


@dataclass(frozen=True)
class AskedModel:
    """A model that a stage generates with."""

    asked: str
    """As the stage asks for it: ``teacher``, the name of a stage, or a folder as it is written."""
    folder: str | None
    """Where its weights lie; None: not known."""
    name: str
    """What clients call it, and so its server."""
    stage: str | None = None
    """The stage that makes it."""
    urls: tuple[str, ...] | None = None
    """Where the recipe asks for it; None where it needs no server."""

    @property
    def key(self) -> str:
        """Return its name under ``servers`` of a cluster file."""
        return TEACHER if self.asked == TEACHER else self.stage or Path(self.folder or self.asked).name


@dataclass(frozen=True)
class ServedModel:
    """A model and what serves it."""

    model: AskedModel
    folder: str
    """Where the weights lie."""
    label: str
    """The model's name in those of files and jobs."""
    settings: ModelServer
    place: JobPlace
    """Where it runs, with its container."""
    gpu_offset: int = 0
    """The first of the job's GPUs on a node that it uses."""

    def own_folder(self, job: str) -> str:
        """Return the folder, below ``servers``, for addresses of the servers inside a job."""
        return f"{job}.${{SLURM_JOB_ID}}/{self.label}"

    def address(self, folder: Path) -> Mapping[str, object]:
        """Return what clients are told: the folder of addresses, the name, and how long none may be there."""
        wait_s = self.settings.wait_seconds if self.settings.jobs else self.settings.start_seconds
        return {"addresses": str(folder), "name": self.model.name, "wait_s": wait_s}


@dataclass(frozen=True)
class PoolAddress:
    """A pool that a job asks."""

    server: ServedModel
    job: str
    """The name of the pool's job."""

    @property
    def folder(self) -> str:
        """The folder, below ``servers``, of its addresses."""
        return self.job.removeprefix("server.")


def entry_of(cluster: Cluster, model: AskedModel) -> ModelServer | None:
    """Return what serves a model on the cluster; None where the recipe's engine or a server elsewhere is asked."""
    default = None if model.key == TEACHER else cluster.servers.get(DEFAULT)
    return cluster.servers.get(model.key, default)


def refuse_misspelt_entries(cluster: Cluster, models: Sequence[AskedModel]) -> None:
    """Raise UserError for an entry that no model has and whose name is nearly that of a model without one."""
    keys = {model.key for model in models}
    without = {key.lower(): key for key in keys - set(cluster.servers)}
    for name in set(cluster.servers) - keys - {TEACHER, DEFAULT}:
        if close := difflib.get_close_matches(name.lower(), without, 1, 0.9):
            raise UserError(f"servers.{name}: no model is called so", remedy=f"did you mean {without[close[0]]!r}?")
