"""Shared: the demo's tokenizer and a run of the smoke recipe, each made once a session; no test fails because the
machine is slow, or has a GPU: ``OPENMATH_TEST_GPU=1`` shows the GPUs to tests that run on them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if not os.environ.get("OPENMATH_TEST_GPU"):  # before anything asks CUDA; processes of tests inherit it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Threads of OpenMP wait by spinning: two in each of two processes on two cores take several times the CPU time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes are started, and each would compile the package's 460 modules anew: 1.5 s of CPU time.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

from nemo_openmath.chat import ChatTokenizer
from tests.support.made_once import contents, made_once

settings.register_profile("openmath", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openmath")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes, files with slow tests come first: at the end none of them is left to one process alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    def make(folder: Path) -> None:
        from nemo_openmath.demo.corpus import documents, recipe_texts
        from nemo_openmath.demo.tokenizer import train_tokenizer

        train_tokenizer([*itertools.islice(documents(0), 400), *recipe_texts(0, 200)], folder)

    return ChatTokenizer.load(made_once(tmp_path_factory, "demo-tokenizer", make))


@dataclass(frozen=True)
class SmokeRun:
    """A finished ``openmath recipe run examples/smoke.yaml --output runs/smoke``, typed in a folder like a clone."""

    clone: Path
    command: tuple[str, ...]
    stdout: str
    stderr: str

    @property
    def output(self) -> Path:
        return self.clone / "runs/smoke"

    def copy(self, clone: Path) -> "SmokeRun":
        """The same in another folder. Large files are links; nothing writes into a file that is there."""

        def copy(source: str, target: str) -> None:
            (os.link if os.path.getsize(source) > 1 << 16 else shutil.copy2)(source, target)

        shutil.copytree(self.clone, clone, symlinks=True, copy_function=copy)
        return replace(self, clone=clone)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmokeRun]:
    """Every stage of the recipe, by the command that a user types. Who changes the run does so in a copy.

    ``SMOKE_RUN=DIR`` takes the finished run in this folder instead: for whoever writes pages.
    """
    folder = made_once(tmp_path_factory, "smoke-run", run_smoke)
    command, stdout, stderr = json.loads((folder / "printed.json").read_text())
    before = contents(folder)
    yield SmokeRun(folder / "clone", tuple(command), stdout, stderr)
    assert contents(folder) == before, "a test has changed the run that all tests share"


def run_smoke(folder: Path) -> None:
    """Make ``clone``, with links to this repository, and its ``runs/smoke``; ``printed.json`` has what was said."""
    top, clone = Path(__file__).parents[1], folder / "clone"
    clone.mkdir()
    for entry in top.iterdir():
        if entry.name == "examples":
            shutil.copytree(entry, clone / "examples")
        elif entry.name not in {".git", "runs", "build"}:
            (clone / entry.name).symlink_to(entry)
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "run", "examples/smoke.yaml"]
    command += ["--output", "runs/smoke"]
    stdout = stderr = ""
    if finished := os.environ.get("SMOKE_RUN"):
        shutil.copytree(finished, clone / "runs/smoke")
    else:
        environment = os.environ | {"PYTHONPATH": str(top)}
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
        stdout, stderr = done.stdout, done.stderr
        assert done.returncode == 0, stdout + stderr
    (folder / "printed.json").write_text(json.dumps([command, stdout, stderr]))
