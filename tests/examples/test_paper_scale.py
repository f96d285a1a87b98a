"""The examples at the paper's scale: they make as many samples as the paper, and jobs get what they use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from nemo_openmath.inference.rollout.counts import by_hardness
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.launch import SlurmJob, load_cluster, plan_jobs
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.slurm import stage_infos

ROOT = Path(__file__).parents[2]
KNOWN, OPEN = 190_000, 350_000  # problems with an answer of the forum, and without or converted (Table 2)
PROBE = 32  # solutions that a pass rate is measured by (2.3)

# Stages -> (samples, section). What the last iteration of TIR made is not published; it kept 1.7M (3.3), and of CoT
# 3.2M of 5.2M were kept (2.3).
SAMPLES = {
    ("cot_r1", "cot_r1_open"): (4.2e6, "2.3"),
    ("cot_qwq", "cot_qwq_open"): (1.0e6, "2.3"),
    ("probe",): (KNOWN * PROBE, "2.3"),
    ("tir0",): (1.2e6, "3.2"),
    ("tir1",): (0.7e6, "3.3"),
    ("tir2",): (1.7e6 * 5.2 / 3.2, "3.3, ours"),
}
AT_SCALE = ("data-generation", "sft", "kaggle", "qwen2.5-14b", "sft-curriculum")


@cache
def recipe(name: str) -> Recipe:
    return load_recipe(ROOT / f"examples/{name}.yaml")


def test_no_stage_makes_more_or_fewer_samples_than_the_paper() -> None:
    """Where the number follows the hardness, each pass rate that the probe can measure is as likely as the others, and
    a problem whose pass rate was not measured gets most."""
    entries = recipe("data-generation").stages
    problems = {"known": (KNOWN, 0), "measured": (KNOWN, 0), "open": (0, OPEN), "labelled": (KNOWN, OPEN)}
    expected = {}
    for name, entry in entries.items():
        if isinstance(entry.stage, Generate):
            config = entry.stage.config
            known, unmeasured = problems[str(entry.inputs["problems"][0])]
            share = min(config.limit or known + unmeasured, known + unmeasured) / (known + unmeasured)
            rates = [by_hardness(right / PROBE, config.least, config.samples) for right in range(PROBE + 1)]
            mean = config.samples if config.count == "fixed" else sum(rates) / len(rates)
            expected[name] = share * (known * mean + unmeasured * config.samples)
            assert config.count in ("fixed", "hardness"), "how many does it make?"
    assert set(expected) == {name for names in SAMPLES for name in names}
    for names, (paper, section) in SAMPLES.items():
        assert sum(expected[name] for name in names) == pytest.approx(paper, rel=0.05), f"{names}: section {section}"
    assert entries["probe"].stage.config.max_tokens < entries["cot_r1"].stage.config.max_tokens, "a context of 4096"
    assert {name: entries[name].stage.config.samples for name in ("cot_r1", "probe")} == {"cot_r1": 32, "probe": PROBE}


def planned(name: str, cluster: str) -> tuple[Recipe, list[SlurmJob]]:
    loaded = recipe(name)
    infos = stage_infos(loaded, ROOT / "no-such-run")
    loaded_cluster = load_cluster(ROOT / f"launcher_scripts/{cluster}.yaml", list(loaded.stages))
    return loaded, plan_jobs(infos, loaded_cluster)


@pytest.mark.parametrize("cluster", ["slurm-pyxis", "slurm-apptainer"])
@pytest.mark.parametrize("name", AT_SCALE)
def test_jobs_get_what_they_use(name: str, cluster: str) -> None:
    loaded, jobs = planned(name, cluster)
    for job in jobs:
        assert loaded.partitions % job.array == 0, f"{job.stage}: {job.array} jobs cannot share alike"
        computes = job.work != "stage" or job.kind == "drafter.train"  # in its own process
        assert (job.gpus > 0) == computes, f"{job.name}: GPUs"
        assert job.memory is not None, job.name
        if job.kind in ("solutions.grade", "solutions.majority_answers", "solutions.summarize", "evaluation.metrics"):
            assert job.cpus == 1 + loaded.grading.workers, f"{job.stage}: a client and its graders"
        elif job.kind == "rollout.generate":
            assert loaded.sandbox.workers is not None
            assert job.cpus > 1 + loaded.sandbox.workers, f"{job.stage}: a client and its sandbox"
        elif job.kind in ("solutions.filter", "solutions.rows", "solutions.hardness", "judging.judge"):
            assert job.cpus == 1, f"{job.stage}: one process of Python"
