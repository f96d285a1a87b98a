"""Where jobs run: images, what is mounted in containers, packages, the Hugging Face Hub, the file system of the run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nemo_openmath.core.build import Key
from nemo_openmath.data.rows.stages import ReadRows
from nemo_openmath.launch.cluster import JobPlace
from nemo_openmath.launch.container import Container
from nemo_openmath.recipe.launch_check.findings import Finding, Note, Unseen, some
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch, PlannedServer, PlannedStage
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.training.stage import Sft

_IMAGES = (".sqsh", ".squashfs", ".sif")
_SHARED = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "wekafs",
    "panfs",
    "pvfs2",
    "orangefs",
    "glusterfs",
    "cifs",
)
_SHARED_TOO = (
    "smb3",
    "afs",
    "9p",
    "virtiofs",
    "fuse.sshfs",
    "fuse.juicefs",
    "fuse.quobyte",
    "fuse.ceph",
    "fuse.glusterfs",
)
_YES = ("1", "on", "yes", "true")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_NAMED = 3  # paths in a message


@dataclass(frozen=True)
class ContainerMount:
    """A folder of the node inside a container."""

    host: Path
    inside: Path
    read_only: bool = False


def mounts_of(container: Container) -> list[ContainerMount]:
    """Return the mounts of a container, those included that its runtime makes unasked."""
    mounts = []
    for text in container.mounts:
        host, _, rest = text.partition(":")
        inside, _, flags = rest.partition(":")
        mounts.append(ContainerMount(Path(host), Path(inside or host), "ro" in flags.replace("+", ",").split(",")))
    arguments = set(container.arguments)
    if container.runtime == "apptainer" and not arguments & {"--contain", "--containall", "-c", "-C"}:
        own = [] if "--no-home" in arguments else [Path.home()]
        mounts += [ContainerMount(path, path) for path in (*own, Path("/tmp"))]
    if container.runtime == "pyxis" and "--container-mount-home" in arguments:
        mounts.append(ContainerMount(Path.home(), Path.home()))
    return mounts


def hidden_by(container: Container, path: Path) -> str | None:
    """Return why a path of the node is not the same file inside a container; None where it is."""
    if container.runtime == "none":
        return None
    around = [mount for mount in mounts_of(container) if path.is_relative_to(mount.inside)]
    if not around:
        outside = [mount for mount in mounts_of(container) if path.is_relative_to(mount.host)]
        if outside:
            mount = max(outside, key=lambda m: len(m.host.parts))
            return f"{path} is {mount.inside / path.relative_to(mount.host)} inside"
        return f"{path} is below no mount"
    mount = max(around, key=lambda m: len(m.inside.parts))
    there = mount.host / path.relative_to(mount.inside)
    return None if there == path else f"{path} is the node's {there} inside"


def mounts(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look for every path of the jobs inside their containers, under the same name."""
    for key, container, paths in launch.containers():
        if launch.output in paths and container.runtime != "none":
            around = [m for m in mounts_of(container) if launch.output.is_relative_to(m.inside)]
            if around and max(around, key=lambda m: len(m.inside.parts)).read_only:
                remedy = "take :ro away, or mount the folder of the runs without it"
                yield launch.error((*key, "mounts"), f"{launch.output}, which jobs write, is mounted read-only", remedy)
        yield from _mounted(launch, (*key, "mounts"), container, [Path(os.path.abspath(path)) for path in paths])


def _mounted(launch: PlannedLaunch, key: Key, container: Container, paths: Sequence[Path]) -> Iterator[Finding]:
    files = [path / "config.json" for path in paths]  # of a model in the Hub's cache they are links to its blobs
    linked = [*paths, *(file for file in files if file.is_symlink())]
    resolved = [Path(os.path.realpath(path)) for path in linked]  # links lead through other folders
    reasons = [reason for path in dict.fromkeys([*paths, *resolved]) if (reason := hidden_by(container, path))]
    if reasons:
        more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        tops = _tops([path for path in (*paths, *resolved) if hidden_by(container, path)])
        wanted = ", ".join(f'"{top}:{top}"' for top in tops)
        remedy = f"mount what holds them under its own name: {wanted}"
        yield launch.error(key, "; ".join(reasons[:_NAMED]) + more, remedy)
    for mount in container.mounts:
        if "," in mount:
            problem = f"{mount!r} has a comma, at which {container.runtime} divides mounts"
            yield launch.error(key, problem, "rename the folder, or mount the one above it")
        host = Path(mount.partition(":")[0])
        if host.is_absolute() and not host.exists():
            if _same_system(host.parent, launch.output):
                yield launch.error(key, f"no folder {host}", "make it, or take the mount out")
            else:
                yield Unseen(f"{host}, which is mounted ({launch.origin(key)})")


def _tops(paths: Sequence[Path]) -> list[str]:
    """Return the folders that hold these paths, as few as leave out / and what lies in it."""
    tops: list[str] = []
    for path in paths:
        folder = str(path if path.is_dir() else path.parent)
        for i, top in enumerate(tops):
            if len(Path(common := os.path.commonpath([top, folder])).parts) > 2:
                tops[i] = common
                break
        else:
            tops.append(folder)
    return list(dict.fromkeys(tops))


def images(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look whether images are there, where they are files."""
    seen: set[str] = set()
    for key, container, _ in launch.containers():
        image = container.image
        if container.runtime == "none" or image in seen:
            continue
        seen.add(image)
        if "://" in image or not (image.startswith((".", "/")) or image.endswith(_IMAGES)):
            yield Unseen(f"the image {image}, which the jobs pull ({launch.origin(key)})")
            continue
        file = launch.output / image  # jobs begin there; an absolute path stays what it is
        if file.is_dir() and container.runtime == "pyxis":
            remedy = "name the .sqsh file (docs/howto/cluster.md, An image)"
            yield launch.error((*key, "image"), f"{file} is a folder, and pyxis starts files", remedy)
        if file.exists():
            continue
        if file.parent.is_dir() or _same_system(file.parent, launch.output):
            remedy = "put the image there (docs/howto/cluster.md, An image), or change the path"
            yield launch.error((*key, "image"), f"no file {file}", remedy)
        else:
            yield Unseen(f"the image {file} ({launch.origin(key)})")
    if shutil.which("apptainer") is None and any(c.runtime == "apptainer" for _, c, _ in launch.containers()):
        yield Unseen("the command apptainer, which the jobs call")


def _same_system(path: Path, output: Path) -> bool:
    """Tell whether a path that is not there would lie on the file system of the run, which all nodes see. Of another
    one, the nodes may have what this machine has not."""
    near = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    base = next((folder for folder in (output, *output.parents) if folder.exists()), output)
    return len(near.parts) > 1 and near.stat().st_dev == base.stat().st_dev


def hub(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold datasets that are read by name against the environment of the jobs."""
    reached: dict[str, list[str]] = {}
    blocked: dict[tuple[str, str, str], list[StageEntry]] = {}
    for planned in launch.stages:
        entry, environment = planned.entry, planned.job.place.environment
        if not isinstance(entry.stage, ReadRows) or (dataset := entry.stage.config.dataset) is None:
            continue
        both = {**os.environ, **environment}
        variable = next((name for name in _OFFLINE if both.get(name, "").lower() in _YES), None)
        if variable is None:
            reached.setdefault(dataset, []).append(entry.name)
        else:
            key = launch.of_role(launch.role(planned.job), "environment", variable)
            origin = str(launch.origin(key)) if variable in environment else "the environment of this shell"
            blocked.setdefault((dataset, variable, origin), []).append(entry)
    for (dataset, variable, origin), entries in blocked.items():
        readers = ", ".join(entry.name for entry in entries)
        yield entries[0].error(
            f"{dataset} is read from the Hugging Face Hub ({readers}), and {variable} switches it off ({origin})",
            f"take {variable} out there, or read from files: run: sft.read, from: {{data: FOLDER}}",
            "dataset",
        )
    for dataset, names in reached.items():
        yield Unseen(f"whether the nodes reach the Hugging Face Hub, for {dataset} ({', '.join(names)})")


def packages(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look for the optional packages and the programs that the jobs need."""
    needed: dict[tuple[str, str], list[PlannedStage]] = {}
    for planned in launch.stages:
        stage = planned.entry.stage
        if isinstance(stage, ReadRows) and stage.config.dataset is not None:
            needed.setdefault(("datasets", "datasets"), []).append(planned)
        if isinstance(stage, Sft):
            training = stage.config.training
            for package, extra, wanted in (
                ("tensorboard", "watch", training.tensorboard),
                ("wandb", "watch", training.wandb_project is not None),
                ("transformer_engine", "gpu", training.backend == "transformer_engine"),
            ):
                if wanted:
                    needed.setdefault((package, extra), []).append(planned)
    for (package, extra), readers in needed.items():
        names, place = some([planned.name for planned in readers]), readers[0].job.place
        if place.container.runtime != "none":
            yield Unseen(f"the package {package} ({names}) in {place.container.image}")
        elif _elsewhere(place):
            yield Unseen(f"the package {package} ({names}) in the environment of the jobs")
        elif importlib.util.find_spec(package) is None:
            problem = f"needs {package}, which this environment lacks ({names})"
            yield readers[0].entry.error(problem, f"pip install 'nemo-openmath[{extra}]'")
    unseen: dict[tuple[str, str], list[str]] = {}
    for server in launch.servers:
        program, place = _program(server), server.served.place
        if place.container.runtime != "none":
            unseen.setdefault((program, place.container.image), []).append(server.served.label)
        elif _elsewhere(place):
            unseen.setdefault((program, "the environment of the jobs"), []).append(server.served.label)
        elif shutil.which(program) is None and not server.settings.command:  # a command may be a function of the shell
            yield launch.error(server.key, f"no program {program} here", "install it, or give a container with it")
    for (program, where), labels in unseen.items():
        yield Unseen(f"the program {program} in {where} (servers of {some(labels)})")
    venv = launch.cluster.venv
    if venv is not None and not (Path(venv) / "bin" / "activate").is_file():
        if _same_system(Path(venv), launch.output):
            yield launch.error(("venv",), f"no virtual environment in {venv}", "make it, or change the path")
        else:
            yield Unseen(f"the virtual environment {venv}")


def _program(server: PlannedServer) -> str:
    """The program that serves a model."""
    known = {"vllm": "vllm", "sglang": "python3", "trtllm": "trtllm-serve", "openmath": "openmath"}
    words = _words(server.settings.command or "")
    return known.get(server.settings.engine) or next((word for word in words if "=" not in word and word != "exec"), "")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _elsewhere(place: JobPlace) -> bool:
    """Tell whether jobs without a container may have another environment than this shell."""
    return bool(place.setup or place.modules or place.venv) or "PATH" in place.environment


def shared(launch: PlannedLaunch) -> Iterator[Finding]:
    """Say where the folder of the run lies on a disk of this machine alone."""
    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    mount = next((folder for folder in (launch.output, *launch.output.parents) if folder in kinds), None)
    if mount is not None and kinds[mount] not in (*_SHARED, *_SHARED_TOO) and not kinds[mount].startswith("fuse."):
        yield Unseen(f"whether all nodes see {launch.output}: it lies on {mount} ({kinds[mount]}), a local file system")


def shell(launch: PlannedLaunch) -> Iterator[Finding]:
    """Let bash read the lines of shell of the cluster file, and look for variables where none is put in."""
    cluster = launch.cluster
    roles = [(role, getattr(cluster.roles, role)) for role in ("cpu", "training", "server")]
    places = [((), cluster), *((("roles", role), its) for role, its in roles)]
    lines: list[tuple[Key, str]] = [((*key, "setup"), "\n".join(place.setup)) for key, place in places]
    lines += [(("servers", name, "command"), server.command or "") for name, server in cluster.servers.items()]
    lines.append((("notify", "command"), cluster.notify.command))
    for key, text in lines:
        if not text:
            continue
        done = subprocess.run(["/bin/bash", "-n", "-c", text], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.split()).removeprefix("/bin/bash: -c: ")
            yield launch.error(key, f"bash cannot read it ({reason})", "mend the quotes, or what is not closed")
    for key, place in places:
        for name, value in place.environment.items():
            if re.search(r"\$\{?[A-Za-z_]", value):
                at = f"{launch.origin((*key, 'environment', name))}: environment.{name}"
                yield Note(f"{at}: {value!r} is taken as it stands; else write under setup: export {name}={value}")


def secrets(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look for the secrets that the cluster file names."""
    for i, name in enumerate(launch.cluster.secrets):
        if not os.environ.get(name):
            problem = f"the environment variable {name} is not set"
            yield launch.error(("secrets", str(i)), problem, f"export {name}=... in this shell, or take it out")
