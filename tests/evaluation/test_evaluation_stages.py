"""The two stages over real folders, with the real grading pool."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.evaluation.stage import CompareConfig, CompareScores, ComputeMetrics, MetricsConfig
from nemo_openmath.grading import GradingPool
from tests.support.services import Lent, stage_context

PROBLEMS = [Problem.make(f"What is {i}?") for i in range(40)]


def generations(mode: str, skill: int) -> list[Generation]:
    """Problem i is solved by its samples below ``skill - i % 4``."""
    return [
        Generation(
            id=f"{mode}-{skill}-{i}-{s}",
            problem_id=problem.id,
            mode=mode,
            model="m",
            sample=s,
            transcript={},
            finish="stop",
            predicted_answer=str(i if s < skill - i % 4 else -1 - s),
            verdict="equal" if s < skill - i % 4 else "not_equal",
        )
        for i, problem in enumerate(PROBLEMS)
        for s in range(8)
    ]


def run(stage: Stage[Any], inputs: dict[str, list[Path]], output: Path) -> StageContext:
    async def work(pool: GradingPool) -> StageContext:
        context = stage_context(inputs, output, services=Lent(grading=pool), seed=7)
        await stage.run(context)
        return context

    with GradingPool() as pool:
        return asyncio.run(work(pool))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, list[Any]], Path]:
    def write(name: str, records: list[Any]) -> Path:
        write_records(tmp_path / name, records)
        return tmp_path / name

    return write


def test_two_checkpoints_are_measured_and_compared(folder: Callable[[str, list[Any]], Path], tmp_path: Path) -> None:
    benchmark = folder("benchmark", list(PROBLEMS))
    cot = folder("cot", generations("cot", 3))
    metrics = {}
    for label, skill in (("base", 4), ("iteration1", 6)):
        inputs = {"generations": [folder(label, generations("tir", skill)), cot], "problems": [benchmark]}
        context = run(ComputeMetrics(MetricsConfig(label, ks=[1, 4, 16])), inputs, tmp_path / f"{label}-metrics")
        rows = orjson.loads((context.output / "results.json").read_bytes())
        assert rows == context.metrics["results"]
        assert context.metrics["skipped_ks"] == {"cot": [16], "tir": [16]}
        metrics[label] = context.output
        by_name = {(r["mode"], r["metric"], r["k"]): r for r in rows}
        assert by_name["tir", "pass@1", 1]["value"] == pytest.approx((skill - 1.5) / 8)
        assert by_name["tir", "pass@1", 1]["checkpoint"] == label
        assert by_name["cot", "pass@1", 1]["problems"] == 40

    pairs = ["tir pass@1", "cot pass@1", "tir pass@1 -> tir maj@4"]
    inputs = {"before": [metrics["base"]], "after": [metrics["iteration1"]]}
    context = run(CompareScores(CompareConfig(pairs)), inputs, tmp_path / "compare")
    gain, same, _ = orjson.loads((context.output / "paired.json").read_bytes())
    assert gain["difference"] == pytest.approx(0.25)
    assert 0 < gain["low"] < 0.25 < gain["high"]
    assert (gain["checkpoint_before"], gain["checkpoint_after"], gain["better"]) == ("base", "iteration1", 40)
    assert same["difference"] == 0
    assert same["low"] < 0 < same["high"]


def test_a_foreign_folder_is_refused(folder: Callable[[str, list[Any]], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no per_problem\.jsonl"):
        run(CompareScores(CompareConfig()), {"before": [tmp_path], "after": [tmp_path]}, tmp_path / "compare")
    (tmp_path / "per_problem.jsonl").write_text('{"checkpoint": "a", "mode": 1}\n')
    with pytest.raises(UserError, match=r"per_problem\.jsonl:1: not a row of scores"):
        run(CompareScores(CompareConfig()), {"before": [tmp_path], "after": [tmp_path]}, tmp_path / "compare")
    with pytest.raises(UserError, match="no generations"):
        run(
            ComputeMetrics(MetricsConfig()),
            {"generations": [folder("empty", [])], "problems": []},
            tmp_path / "metrics",
        )
