"""pip's own resolver beside stand-ins for the packages of NVIDIA's image: installing the project replaces none of them.

The stand-ins have the image's names, versions and nothing else; the index is a folder with a stand-in for every
dependency of pyproject.toml, torch's and TransformerEngine's releases of PyPI among them. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
IMAGE = {  # nvcr.io/nvidia/pytorch:26.07-py3
    "torch": "2.13.0a0+9186a08b2c.nv26.07",
    "transformer_engine": "2.17.0+2e559f06",
    "triton": "3.7.1",
    "numpy": "2.3.5",
}
RELEASES = {  # of PyPI: what pip could take in their place
    "torch": ("2.11.0", "2.13.0", "2.14.1"),
    "transformer_engine": ("2.8.0", "2.17.1"),
    "megatron_core": ("0.16.1", "0.19.2"),
    "numpy": ("2.3.5", "2.4.6"),
}


def stand_in(folder: Path, name: str, version: str, lines: Iterable[str] = ()) -> Path:
    """A wheel of metadata alone; ``lines`` are added to it."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: the project with pyproject.toml's requirements, what it needs, and ``before``, which asks for
    torch without a pre-release in its lower bound."""
    folder = tmp_path_factory.mktemp("index")
    pins = (line for line in (TOP / "constraints.txt").read_text().splitlines() if line[:1].isalnum())
    for name, version in (pin.split("==") for pin in pins):
        if name.replace("-", "_") not in RELEASES:
            stand_in(folder, name.replace("-", "_"), version)
    for name, versions in RELEASES.items():
        for version in versions:
            python = ["Requires-Python: >=3.12"] if (name, version) == ("megatron_core", "0.19.2") else []
            stand_in(folder, name, version, [*python, "Provides-Extra: pytorch"])
    wanted = [f"Requires-Dist: {line}" for line in PROJECT["dependencies"]]
    for extra, lines in EXTRAS.items():
        wanted += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {line}; extra == "{extra}"' for line in lines)]
    stand_in(folder, "nemo_openmath", PROJECT["version"], wanted)
    stand_in(folder, "before", "1", ["Requires-Dist: torch>=2.13,<2.15"])
    return folder


def installs(index: Path, root: Path, image: Mapping[str, str], asked: str) -> dict[str, str]:
    """What pip would install in an environment that has the packages of ``image``: name -> version."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    packages = next(root.glob("lib/python*/site-packages"))
    for name, version in image.items():
        with zipfile.ZipFile(stand_in(root, name, version)) as archive:
            archive.extractall(packages)
    command = [sys.executable, "-m", "pip", "--isolated", "--python", root / "bin/python", "install", "--dry-run"]
    command += ["--quiet", "--no-index", "--find-links", index, "--report", root / "report.json", asked]
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = json.loads((root / "report.json").read_text())["install"]
    return {e["metadata"]["name"]: e["metadata"]["version"] for e in entries}


@pytest.mark.parametrize(
    ("image", "asked"),
    [(IMAGE, "nemo-openmath[gpu]"), ({**IMAGE, "megatron_core": "0.19.0"}, "nemo-openmath[gpu,datasets]")],
    ids=["NGC", "NGC with megatron-core"],
)
def test_nothing_of_the_image_is_replaced(index: Path, tmp_path: Path, image: dict[str, str], asked: str) -> None:
    taken = installs(index, tmp_path, image, asked)
    assert taken["nemo_openmath"] == PROJECT["version"]
    assert len(taken) > 15
    assert not set(image) & set(taken)
    newest = "0.16.1" if sys.version_info < (3, 12) else "0.19.2"
    assert taken.get("megatron_core") == (None if "megatron_core" in image else newest)


def test_the_proof_can_fail(index: Path, tmp_path: Path) -> None:
    """2.13.0a0 sorts below 2.13: without a pre-release in the lower bound, pip takes PyPI's torch."""
    assert installs(index, tmp_path, IMAGE, "before")["torch"] == "2.14.1"
