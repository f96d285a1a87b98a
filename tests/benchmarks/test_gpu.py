"""The checks of one GPU are rehearsed on the CPU: what they take from the product is still there, and passes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SECTIONS = ("kernel", "speed", "loss", "sdpa", "drafter", "ring", "certify")  # the others take longer to start


def test_the_checks_of_one_gpu_are_rehearsed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--dry", "--output", str(tmp_path), *SECTIONS],
        cwd=TOP,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {check["section"] for check in results["checks"]} == set(SECTIONS)
    assert all(check["passed"] for check in results["checks"])
    assert (tmp_path / "step.txt").exists()


def test_the_page_names_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", TOP / "benchmarks/gpu.py")
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_gpu", gpu)  # dataclasses look their module up
    spec.loader.exec_module(gpu)
    page = (TOP / "docs/howto/gpu.md").read_text()
    table = page[page.index("| section |") :].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(gpu.SECTIONS)
