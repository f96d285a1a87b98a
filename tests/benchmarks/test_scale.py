"""The benchmark of scale runs, on next to no records: what it takes from the product is still there."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def test_the_benchmark_of_scale_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_scale", FILE)
    assert spec is not None
    assert spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_scale", scale)  # dataclasses look their module up
    spec.loader.exec_module(scale)
    monkeypatch.setenv("PYTHONPATH", str(scale.package().parent))
    options = argparse.Namespace(seed=1, wide=0.2, no_ids=False, set=[])
    with scale.silent_teacher() as teacher:
        run = scale.Scale(tmp_path / "1", 32, 0.02, options, teacher)
        run.tool("prepare", run.folder)
        cost = scale.measure(run.openmath("run", "scale.yaml", "--output", "run"), run.folder)
    assert min(cost.cpu, cost.read, cost.written, cost.peak) > 0
    for step in scale.STEPS:
        assert run.comes_out(step.name) > 0, step
    grades = [run.manifest(name)["facts"] for name in ("cot_graded", "tir_graded", "probe_graded")]
    assert all(grade["equal"] and grade["not_equal"] for grade in grades)
    assert not any(grade.get("unknown") or grade.get("timeout") for grade in grades)  # judging would ask
    assert run.outcome("cot_kept")["records"] == run.comes_out("cot_kept")
    measurements = {name: scale.Measurement(32, 32, cost, run.size("rows")) for name in [*scale.STEP, *scale.VIEWS]}
    scale.extrapolate({name: scale.Fit.of(m, m) for name, m in measurements.items()}, with_jobs=False)
    assert "TB on disk" in capsys.readouterr().out
