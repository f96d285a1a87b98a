"""The whole recipe, every stage of it, by the command a user types; then again, in seconds."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_openmath.core.stage import UnitStage
from nemo_openmath.recipe.file import load_recipe
from tests.conftest import SmokeRun

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_whole_recipe_runs_and_reports(smoke_run: SmokeRun, tmp_path: Path) -> None:
    first = smoke_run.copy(tmp_path / "clone")  # the second run writes its report anew
    run, command, clone = first.output, list(first.command), first.clone
    assert "report.html" in first.stdout
    assert "stand-in" in first.stdout, "what stands in for a model is said where the results are"

    score = "competition (competition, student2): "
    assert score in first.stdout
    assert re.match(r"smoke \(examples/smoke.yaml\) in .*: 61 of 61 stages to do\n\[1/61\] benchmark: ", first.stderr)

    report = json.loads((run / "report.json").read_text())
    assert {"results", "funnel", "drops", "seconds", "config", "versions", "seeds"} <= report.keys()
    rows = {(r["checkpoint"], r["mode"], r["metric"]) for r in report["results"]}
    for checkpoint in ("base", "iteration1", "iteration2"):
        assert {(checkpoint, "cot", "pass@1"), (checkpoint, "tir", "pass@1"), (checkpoint, "tir", "unfinished")} <= rows
    assert ("iteration2", "genselect", "genselect@k") in rows
    for row in report["results"]:
        assert {"value", "low", "high", "problems", "k"} <= row.keys()
        if row["metric"] == "pass@1":
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
            assert row["problems"] == 24
    assert report["drops"]["problems"], "the benchmark leaks into the forum and is found"
    assert any(table["title"] == "Dropped by problems" for table in report["funnel"])

    (competition,) = report["competition"]
    assert competition["problems"] == 3
    command_of_status = [*command[:4], "status", str(run)]
    shown = subprocess.run(command_of_status, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
    assert score in shown

    # The page is whole: no address outside itself.
    page = (run / "report.html").read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)

    # Nothing trained on is in the benchmark.
    benchmark = {json.loads(line)["problem"] for line in _lines(run / "benchmark")}
    trained = {json.loads(line)["problem"] for line in _lines(run / "problems")}
    assert len(benchmark) == 24
    assert trained
    assert not trained & benchmark

    _everything_adds_up(run)
    _the_problem_set_adds_up(report["problem_set"])
    samples = (run / "samples.html").read_text()
    assert "no problem in the post" in samples
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", samples)

    _its_files_feed_the_other_examples(run, tmp_path)

    before = {p: p.stat().st_mtime_ns for p in run.glob("*/manifest.json")}
    begun = time.monotonic()
    again = subprocess.run(
        command, cwd=clone, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in run.glob("*/manifest.json")} == before
    print(f"second run: {time.monotonic() - begun:.1f} s")


def _its_files_feed_the_other_examples(run: Path, output: Path) -> None:
    """``examples/generate.yaml`` and ``examples/sft-job.yaml``, over this run instead of ``runs/smoke``."""
    solve = ["generate", "examples/generate.yaml", "--output", f"{output}/generated", f"problems={run}/benchmark"]
    learn = ["sft", "examples/sft-job.yaml", f"output={output}/trained", f"data.folder={run}/packs1"]
    for words in ([*solve, f"engine.model={run}/student1"], learn):
        command = [sys.executable, "-m", "nemo_openmath.cli.main", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(_lines(output / "generated/solutions")) == 16
    assert (output / "trained/checkpoints/step-00000004").is_dir()


def _everything_adds_up(run: Path) -> None:
    """Of every kind of stage: what went in is out, merged, or dropped by a reason."""
    recipe = load_recipe(ROOT / "examples/smoke.yaml")
    counts = {name: json.loads((run / name / "manifest.json").read_bytes()) for name in recipe.stages}
    kinds = set()
    for name, entry in recipe.stages.items():
        port = next(iter(entry.stage.ports), None)
        records = sum(counts[str(n)]["counts"]["records"] for n in entry.inputs.get(port or "", ()))
        made, facts = counts[name]["counts"], counts[name]["facts"]
        if isinstance(entry.stage, UnitStage):
            kinds.add(entry.stage.kind)
            samples = getattr(entry.stage.config, "samples", 1)
            units = (records - facts.get("problems_beyond_the_limit", 0)) * samples
            assert made["units"] == units, name
            assert len(_lines(run / name)) == made["records"] + made["merged"], name
            with_records = {json.loads(line)["unit"] for line in _drops(run / name)}
            assert made["drops"] == len(_drops(run / name)) == sum(counts[name]["drops"].values())
            if entry.stage.kind != "genselect.groups":  # a drop for each mode
                assert made["drops"] == len(with_records)
            if entry.stage.kind not in ("problems.extract", "genselect.groups"):  # several records of a unit
                assert made["records"] + made["merged"] + made["drops"] == units, name
        elif entry.stage.kind == "sft.tokenize":
            assert facts["samples"] + made["drops"] == records, name
        elif entry.stage.kind == "sft.pack":
            assert facts["samples"] + made["drops"] == counts[str(entry.inputs["tokens"][0])]["facts"]["samples"]
    assert len(kinds) >= 13


def _the_problem_set_adds_up(problem_set: dict) -> None:
    """What a stage read is what the one before it kept; and it dropped, merged or kept it."""
    stages = problem_set["stages"]
    assert [row["stage"] for row in stages] == [
        "threads",
        "extracted",
        "classified",
        "converted",
        "answered",
        "problems",
    ]
    for before, row in zip([None, *stages], stages, strict=False):
        assert row["read"] + row["further"] == row["kept"] + row["merged"] + row["dropped"]
        assert row["dropped"] == sum(row["drops"].values())
        assert before is None or row["read"] == before["kept"]
        assert row["further"] == 0 or row["kind"] == "problems.extract"
    measured = {row["stage"] for row in problem_set["truth"]}
    assert measured == {"extraction", "classification", "conversion", "answers", "decontamination", "the whole"}


def _drops(folder: Path) -> list[str]:
    return [line for part in sorted(folder.glob("drops-*.jsonl")) for line in part.read_text().splitlines()]


def _lines(folder: Path) -> list[str]:
    return [line for part in sorted(folder.glob("part-*.jsonl")) for line in part.read_text().splitlines()]
