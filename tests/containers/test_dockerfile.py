"""The Dockerfile against the repository: what a build would find out after a download of 10 GB."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
TEXT = (TOP / "Dockerfile").read_text()
INSTRUCTIONS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n", " ", TEXT).splitlines()
    if line and not line.startswith("#")
]


def of(instruction: str) -> list[str]:
    return [words for name, words in INSTRUCTIONS if name == instruction]


def test_what_it_copies_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copy in of("COPY"):
        for source in shlex.split(copy)[:-1]:
            assert (TOP / source).exists(), source
            assert source.split("/")[0] in allowed, f"{source}: .dockerignore leaves it out"


def test_the_default_extras_are_those_that_the_papers_recipes_read_with() -> None:
    extras = re.search(r"^ARG EXTRAS=(.*)$", TEXT, re.MULTILINE)
    assert extras is not None
    names = extras[1].split(",")
    assert set(names) <= set(PROJECT["optional-dependencies"])
    assert "datasets" in names  # examples/sft.yaml: dataset: nvidia/OpenMathReasoning


def test_labels_and_versions() -> None:
    labels = dict(word.split("=", 1) for label in of("LABEL") for word in shlex.split(label))
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.revision"] == "${COMMIT}"


def test_no_syntax_of_buildkit_alone() -> None:
    """buildah of Debian 12 and older Dockers know neither `RUN <<HERE` nor `--mount`."""
    assert "<<" not in TEXT
    assert "--mount" not in TEXT


def test_every_setting_of_the_commands_in_the_header_is_on_the_page() -> None:
    page = (TOP / "docs/howto/containers.md").read_text()
    for option in re.findall(r"--[a-z-]+", "\n".join(line for line in TEXT.splitlines() if line.startswith("#"))):
        assert option in page, f"{option}: docs/howto/containers.md does not say what it is for"


def test_the_images_of_the_cluster_files_are_those_that_the_page_makes() -> None:
    page = (TOP / "docs/howto/containers.md").read_text()
    for name, suffix in (("slurm-pyxis.yaml", ".sqsh"), ("slurm-apptainer.yaml", ".sif")):
        image = yaml.safe_load((TOP / "launcher_scripts" / name).read_text())["container"]["image"]
        assert image.endswith(suffix)
        assert Path(image).name in page


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """containers/packages.py as the Dockerfile lays it: beside pyproject.toml and constraints.txt."""
    for name in ("pyproject.toml", "constraints.txt", "containers/packages.py"):
        (tmp_path / Path(name).name).write_bytes((TOP / name).read_bytes())
    return tmp_path


def plan(folder: Path, extras: str, have: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = f"import packages; packages.installed = lambda: {have!r}; packages.main()"
    command = [sys.executable, "-c", program, "plan", "--extras", extras]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_plan_keeps_the_torch_of_the_image(packages: Path) -> None:
    have = {"torch": "2.13.0a0+8145d630e8.nv26.06", "numpy": "2.3.5", "pyarrow": "18.1.0", "triton": "3.6.0"}
    done = plan(packages, "datasets, quantize", have)
    assert done.returncode == 0, done.stderr
    asked = (packages / "requirements.txt").read_text()
    assert "torch" not in asked
    assert "datasets>=4" in asked
    assert "nvidia-modelopt" in asked
    pins = (packages / "constraints-image.txt").read_text().splitlines()
    assert "torch==2.13.0a0+8145d630e8.nv26.06" in pins
    assert "triton==3.6.0" in pins
    assert any(pin.startswith("transformers==5.23") for pin in pins)  # the image has none: the tested version
    assert any(pin.startswith("pyarrow==2") for pin in pins)  # the image's is too old
    assert not any(pin.startswith("numpy==") for pin in pins)  # the image's serves
    assert json.loads((packages / "base.json").read_text()) == have


@pytest.mark.parametrize(
    ("extras", "have", "message"),
    [
        ("vllm", {"torch": "2.13.0"}, "serve models from its own image"),
        ("nonsense", {"torch": "2.13.0"}, "extra nonsense: unknown; known: datasets"),
        ("", {"torch": "2.10.0a0+nv25.12"}, "this image has torch 2.10.0a0"),
        ("", {}, "this image has no torch"),
    ],
)
def test_plan_refuses_by_name(packages: Path, extras: str, have: dict[str, str], message: str) -> None:
    done = plan(packages, extras, have)
    assert done.returncode == 1
    assert message in done.stderr


def test_check_refuses_a_torch_that_was_replaced(packages: Path) -> None:
    (packages / "base.json").write_text(json.dumps({"torch": "2.13.0a0+nv"}))
    program = "import packages; packages.installed = lambda: {'torch': '2.13.0', 'nemo-openmath': '1'}; packages.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "check"], cwd=packages, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip replaced torch 2.13.0a0+nv" in done.stderr
