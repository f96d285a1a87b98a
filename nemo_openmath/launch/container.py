"""Where the commands of a job run: on the node, or in a container."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
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
        if self.runtime == "pyxis" and self.image.endswith(".sqsh") and not self.image.startswith(("/", "./", "../")):
            raise ValueError(f"pyxis would look for {self.image} in a registry: write its whole path")
        for mount in self.mounts:
            if "," in mount:
                raise ValueError(f"mount {mount!r}: a comma begins another mount; write each as its own entry")


def step(container: Container, gpus: int = 0, names: Iterable[str] = ()) -> str:
    """Return how srun is told to run something in a container: the words between its own options and the command.

    ``names``: the variables of the job that must have the job's values inside, also where the image sets them. The
    words are text for a shell, whose ``$PWD`` is the working folder inside. They follow the sources of pyxis (args.c,
    pyxis_slurmstepd.c), enroot (conf/hooks) and Apptainer (user guide, "Environment and Metadata").
    """
    names = tuple(dict.fromkeys(names))
    if container.runtime == "pyxis":
        return " ".join(_pyxis(container, gpus, names))
    if container.runtime == "apptainer":
        return " ".join(_apptainer(container, gpus, names))
    return ""


_USER_SITE = "PYTHONNOUSERSITE=1"
"""~/.local of a home that is mounted must not come before the image's packages."""


def _pyxis(container: Container, gpus: int, names: tuple[str, ...]) -> list[str]:
    exported = [_USER_SITE]
    if not gpus:
        # enroot's hooks set up GPUs and InfiniBand where these variables ask for it, be it the image's own, and end the
        # container on nodes that have neither.
        exported += [f"{n}=void" for n in ("NVIDIA_VISIBLE_DEVICES", "MELLANOX_VISIBLE_DEVICES")]
    # Without --container-env the image's values win. Names that are not set are passed over.
    variables = [f"--container-env={','.join(names)}"] if names else []
    mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
    words = [f"--export=ALL,{','.join(exported)}", f"--container-image={container.image}", *mounts]
    # Else the working folder is the image's, where nothing can be written.
    return [
        *map(shlex.quote, words),
        '--container-workdir="$PWD"',
        *map(shlex.quote, [*variables, *container.arguments]),
    ]


def _apptainer(container: Container, gpus: int, names: tuple[str, ...]) -> list[str]:
    # The ENV of a Dockerfile wins over the host's variables, and APPTAINERENV_ wins over both.
    variables = [f'${{{name}+APPTAINERENV_{name}="${name}"}}' for name in names]
    words = ["apptainer", "exec", *(["--nv"] if gpus else [])]
    words += [word for mount in container.mounts for word in ("--bind", mount)]
    return [
        f"--export=ALL,{_USER_SITE}",
        *(["env", *variables] if variables else []),
        *map(shlex.quote, words),
        '--pwd "$PWD"',
        *map(shlex.quote, [*container.arguments, container.image]),
    ]
