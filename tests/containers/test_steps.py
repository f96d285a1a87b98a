"""The words by which srun is told to run in a container, each with where its meaning is written.

pyxis:     github.com/NVIDIA/pyxis, commit of May 2026: args.c (options), pyxis_slurmstepd.c (variables, working folder)
enroot:    github.com/NVIDIA/enroot, commit of April 2026: conf/hooks, doc/cmd/import.md
Apptainer: github.com/apptainer/apptainer 1.6 (cmd/internal/cli/action_flags.go), apptainer-userdocs
           (environment_and_metadata.rst, bind_paths_and_mounts.rst, docker_and_oci.rst)
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nemo_openmath.launch.container import Container, step

TOP = Path(__file__).resolve().parents[2]
PYXIS = Container("pyxis", "/i/openmath.sqsh", ("/a:/b", "/c:/d:ro"), ("--no-container-mount-home",))
APPTAINER = Container("apptainer", "/i/openmath.sif", ("/a:/b", "/c:/d:ro"), ("--no-home",))
# A shell with variables of all sorts; HF_HOME is not set, and nounset is on, as in the jobs' scripts.
SHELL = 'set -u; cd /tmp; unset HF_HOME; export PYTHONPATH="/my code:/b" DOLLAR=\'$x\'; printf "%s\\n" '


def words(container: Container, gpus: int, *names: str) -> list[str]:
    """What srun is given, by a real shell."""
    done = subprocess.run(["bash", "-c", SHELL + step(container, gpus, names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pyxis() -> None:
    assert words(PYXIS, 8, "PYTHONPATH", "HF_HOME", "PYTHONPATH") == [
        # srun(1): all of the job's variables and this one. Python: no ~/.local of a home that an admin mounts
        "--export=ALL,PYTHONNOUSERSITE=1",
        # args.c, "a path to a squashfs file"; importing is skipped for what begins with / or .
        "--container-image=/i/openmath.sqsh",
        # args.c, SRC:DST[:FLAGS][,SRC:DST...]
        "--container-mounts=/a:/b,/c:/d:ro",
        # args.c, "working directory inside the container"; pyxis_slurmstepd.c: else the image's
        "--container-workdir=/tmp",
        # args.c: "existing values in the image take precedence; the variables specified with this flag are preserved
        # from the host"; pyxis_slurmstepd.c, environ(): names that are not set are passed over
        "--container-env=PYTHONPATH,HF_HOME",
        # args.c, "do not bind mount the user's home directory"
        "--no-container-mount-home",
    ]


def test_pyxis_without_gpus() -> None:
    """enroot, conf/hooks/98-nvidia.sh and 99-mellanox.sh: "void" leaves at once; the job's value comes before the
    image's; otherwise a node without nvidia-container-cli or InfiniBand ends the container."""
    first = words(PYXIS, 0)[0]
    assert first == "--export=ALL,PYTHONNOUSERSITE=1,NVIDIA_VISIBLE_DEVICES=void,MELLANOX_VISIBLE_DEVICES=void"


def test_apptainer() -> None:
    assert words(APPTAINER, 8, "PYTHONPATH", "HF_HOME", "DOLLAR") == [
        "--export=ALL,PYTHONNOUSERSITE=1",
        # environment_and_metadata.rst: "Dockerfile ENV vars will not be overridden by host environment variables of the
        # same name"; an APPTAINERENV_ variable overrides both. One that is not set is not given.
        "env",
        "APPTAINERENV_PYTHONPATH=/my code:/b",
        "APPTAINERENV_DOLLAR=$x",
        "apptainer",
        "exec",
        "--nv",  # action_flags.go, "enable Nvidia support"
        "--bind",  # bind_paths_and_mounts.rst: src[:dest[:opts]], may be given several times
        "/a:/b",
        "--bind",
        "/c:/d:ro",
        "--pwd",  # action_flags.go, "initial working directory"; --cwd of 1.2 and later is the same
        "/tmp",
        "--no-home",  # bind_paths_and_mounts.rst: the working folder is still mounted
        "/i/openmath.sif",
    ]
    assert "--nv" not in words(APPTAINER, 0)


def test_without_containers_there_are_no_words() -> None:
    assert step(Container(), 8, ["PYTHONPATH"]) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runtime": "pyxis", "image": "openmath.sqsh"}, "would look for openmath.sqsh in a registry"),
        ({"runtime": "apptainer", "image": "/i.sif", "mounts": ("/a:/b,/c",)}, "a comma begins another mount"),
        ({"runtime": "apptainer"}, "needs an image"),
    ],
)
def test_refused_by_name(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Container(**fields)  # type: ignore[arg-type]


def test_imports_are_written_as_their_documentation_has_them() -> None:
    """enroot, doc/cmd/import.md: dockerd://IMAGE[:TAG], podman://IMAGE[:TAG], docker://[USER@][REGISTRY#]IMAGE[:TAG];
    docker_and_oci.rst: docker-daemon:REPOSITORY:TAG, without slashes."""
    texts = [TOP / "docs/howto/containers.md", *(TOP / "launcher_scripts").glob("*.yaml"), TOP / "Dockerfile"]
    text = "\n".join(path.read_text() for path in texts)
    assert "docker-daemon://" not in text
    assert "docker-daemon:openmath:latest" in text
    assert "dockerd://openmath:latest" in text
