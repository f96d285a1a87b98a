"""Where the commands of a job run: on the node, or in a container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Container:
    """Where the commands of a job run."""

    runtime: Literal["none", "pyxis", "apptainer"] = "none"
    """What runs the container: ``pyxis`` (srun's plugin) or ``apptainer``. ``none`` runs on the node itself."""
    image: str = ""
    """The image: a squashfs file, or what the runtime takes in its place."""
    mounts: tuple[str, ...] = ()
    """Folders of the node inside the container, each as ``HOST:CONTAINER``."""
    arguments: tuple[str, ...] = ()
    """Further words for srun (pyxis) or for ``apptainer exec``."""

    def __post_init__(self) -> None:
        if self.runtime != "none" and not self.image:
            raise ValueError(f"a {self.runtime} container needs an image")
        if self.runtime == "none" and (self.image or self.mounts or self.arguments):
            raise ValueError("image, mounts and arguments need runtime: pyxis or apptainer")
