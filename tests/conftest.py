"""Shared: the demo's tokenizer and a run of the smoke recipe, each made once a session; no test fails because the
machine is slow, or has a GPU: ``OPENMATH_TEST_GPU=1`` shows the GPUs to tests that run on them."""

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if not os.environ.get("OPENMATH_TEST_GPU"):  # before anything asks CUDA; processes of tests inherit it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from nemo_openmath.chat import ChatTokenizer

settings.register_profile("openmath", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openmath")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    from nemo_openmath.demo.corpus import documents, recipe_texts
    from nemo_openmath.demo.tokenizer import train_tokenizer

    folder: Path = tmp_path_factory.mktemp("demo-tokenizer")
    texts = [*itertools.islice(documents(0), 400), *recipe_texts(0, 200)]
    return train_tokenizer(texts, folder)


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


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """Every stage of the recipe, by the command that a user types. Who changes the run does so in a copy.

    ``SMOKE_RUN=DIR`` takes the finished run in this folder instead: for whoever writes pages.
    """
    top = Path(__file__).parents[1]
    clone = tmp_path_factory.mktemp("clone")
    for entry in top.iterdir():
        if entry.name == "examples":
            shutil.copytree(entry, clone / "examples")
        elif entry.name not in {".git", "runs", "build"}:
            (clone / entry.name).symlink_to(entry)
    command = (sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "run", "examples/smoke.yaml")
    command += ("--output", "runs/smoke")
    if finished := os.environ.get("SMOKE_RUN"):
        shutil.copytree(finished, clone / "runs/smoke")
        return SmokeRun(clone, command, "", "")
    environment = os.environ | {"PYTHONPATH": str(top)}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return SmokeRun(clone, command, done.stdout, done.stderr)
