"""Tokens and what they bought: hand-counted, the same in any order and in any number of parts, silent about noise."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.core.records import Problem
from nemo_openmath.evaluation.reports.economics import Economics
from nemo_openmath.recipe.economics import samples as samples_module
from nemo_openmath.recipe.economics.counting import Counts, ProblemRatio
from nemo_openmath.recipe.economics.measure import measure
from nemo_openmath.recipe.economics.samples import (
    ACCEPTED,
    ENOUGH,
    Outcomes,
    ProblemClasses,
    SampleColumns,
    SampleGroup,
    SampleStage,
)
from nemo_openmath.recipe.economics.suggestions import suggestions
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages, StageInput
from tests.conftest import SmokeRun
from tests.support.runs import shuffle_lines, solution, write_stage

PROBLEMS = [Problem.make(f"What is {n}?", source="forum" if n % 2 else "book", pass_rate=n / 3) for n in range(4)]


def fate(n: int, k: int) -> str:
    """What the filters make of sample k of problem n: 0 is never solved, 3 by every sample."""
    if k == 3:
        return "unfinished (length)"
    if n == 3:
        return "" if k < 2 else ENOUGH
    return "" if k < n else "wrong answer"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four problems by two models, of four samples each; model ``b`` writes twice as much. One more is not filtered."""
    write_stage(tmp_path, "problems", "problems.extract", [p.with_(pass_rate=None) for p in PROBLEMS])
    for model, tokens in (("a", 100), ("b", 200)):
        made = {
            (n, k): solution(p.id, k, model=model, completion_tokens=tokens)
            for n, p in enumerate(PROBLEMS)
            for k in range(4)
        }
        write_stage(tmp_path, model, "rollout.generate", made.values(), reads=["problems"], partitions=2)
        write_stage(tmp_path, f"{model}_graded", "solutions.grade", made.values(), reads=[model])
        kept = [g for at, g in made.items() if not fate(*at)]
        drops = {g.id: fate(*at) for at, g in made.items() if fate(*at)}
        limit = {"per_problem": 2}
        reads = [f"{model}_graded"]
        write_stage(tmp_path, f"{model}_kept", "solutions.filter", kept, reads=reads, drops=drops, settings=limit)
    write_stage(tmp_path, "measured", "solutions.hardness", PROBLEMS, reads=["problems", "a_graded"])
    write_stage(tmp_path, "novel", "solutions.novelty", kept[1:], reads=["b_kept"], drops={kept[0].id: "trivial"})
    write_stage(tmp_path, "held_out", "rollout.generate", [solution("problem-x")], reads=["problems"])
    return tmp_path


def measured(run: Path) -> Economics:
    return measure(RunStages(run))


def test_all_is_counted_once(run: Path) -> None:
    economics = measured(run)
    a, b = economics.models
    assert (a.problems, a.solved, a.samples, a.tokens, a.accepted) == (4, 3, 16, 1600, 5)
    assert (b.model, b.tokens, b.accepted, b.per_million) == ("b", 3200, 4, 1250.0), "novel drops one that b_kept keeps"
    assert a.low is not None
    assert a.low < a.per_million == 3125 < (a.high or 0)

    by_rate = {r.value: r.accepted for r in economics.classes if (r.kind, r.model) == ("pass rate", "a")}
    assert by_rate == {"0": 0, "0.25 to 0.5": 1, "0.5 to 0.75": 2, "1": 2}
    assert {r.value: r.tokens for r in economics.classes if (r.kind, r.model) == ("source", "b")} == {
        "book": 1600,
        "forum": 1600,
    }
    assert "category" not in {r.kind for r in economics.classes}, "one class is no class"

    spent = economics.spent[0]
    assert (spent.stage, spent.wanted, spent.kept_all, spent.tokens) == ("a", 2, False, 1600)
    assert spent.beyond == 400, "of problem 2 samples 2 and 3, of problem 3 as many"

    for model in ("a", "b"):
        lost = [row for row in economics.losses if row.model == model]
        (whole,) = (row for row in economics.models if row.model == model)
        assert sum(row.samples for row in lost) + whole.accepted == whole.samples
        drops = json.loads((run / f"{model}_kept/manifest.json").read_text())["drops"]
        assert {row.reason: row.samples for row in lost if row.reason != "trivial"} == drops
        counts = json.loads((run / model / "manifest.json").read_text())["counts"]
        assert counts["records"] == whole.samples
    assert economics.suggestions == [], "four problems say nothing"
    assert "held_out" in economics.notes[-1]


def test_order_and_parts_change_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measured(run)
    for folder in run.iterdir():
        shuffle_lines(folder)
    assert measured(run) == before
    monkeypatch.setattr(samples_module, "PART", 5)
    in_parts = measured(run)
    for name in ("models", "classes", "spent", "losses"):
        for row, same in zip(getattr(in_parts, name), getattr(before, name), strict=True):
            for field in type(row).__dataclass_fields__:
                value = getattr(row, field)
                assert value == (
                    pytest.approx(getattr(same, field)) if isinstance(value, float) else getattr(same, field)
                )


def test_a_run_that_goes_on_is_counted_as_far_as_it_is(run: Path) -> None:
    (run / "a_kept/manifest.json").unlink()  # its filter began, and has decided a part
    journal = run / "a_kept/journal-00000-of-00001.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))
    (run / "a_kept/drops-00000-of-00001.jsonl").write_bytes(b'{"unit":"generation-cut')
    economics = measure(_with_recipe_of(run))
    a = economics.models[0]
    assert (a.model, a.samples, a.accepted) == ("a", 3, 3)
    assert (economics.spent[0].wanted, economics.spent[0].kept_all) == (3, False), "as the recipe says"
    assert economics.notes[0].startswith("13 samples (1,300 tokens) wait for a filter")
    (run / "problems/part-00000-of-00001.jsonl").write_bytes(b"{broken\n")
    assert "not counted" in measure(_with_recipe_of(run)).notes[0]


def _with_recipe_of(run: Path) -> RunStages:
    """The stages, with what a recipe would say of the unfinished one."""
    stages = RunStages(run)
    graded = StageInput("a_graded", run / "a_graded")
    told: dict[str, Any] = {"kind": "solutions.filter", "inputs": (graded,), "asked": {"per_problem": 3}}
    stages.stages = [replace(stage, **told) if stage.name == "a_kept" else stage for stage in stages]
    return stages


# -- what is said, and what not ----------------------------------------------------------------------------------------


def world(powers: dict[str, float], problems: int, count: int, seed: int, quota: int = 0) -> list[str]:
    """Suggestions on models that solve a problem of ease e with probability e to their power. ``cut`` ends a quarter of
    its samples at the length limit."""
    random = np.random.default_rng(seed)
    ease = random.beta(2, 2, problems)
    used = [
        SampleStage(RunStage(model, Path(model), "rollout.generate", None, ()), [], [], quota or 1, quota > 0)
        for model in powers
    ]
    outcomes = Outcomes(used)
    wrong, length, enough = map(outcomes.number, ("wrong answer", "unfinished (length)", ENOUGH))
    columns = []
    for stage, (model, power) in enumerate(powers.items()):
        right = random.random((problems, count)) < (ease**power)[:, None]
        outcome = np.where(right, outcomes.number(ACCEPTED), wrong)
        if quota:
            outcome[right & (np.cumsum(right, axis=1) > quota)] = enough
        tokens = random.integers(50, 150, (problems, count))
        if model == "cut":
            outcome[:, 0], tokens[:, 0] = length, 400
        key = np.repeat(np.arange(problems), count)
        columns.append((np.full(problems * count, stage), key, tokens.ravel(), outcome.ravel()))
    group, key, tokens, outcome = (np.concatenate(column) for column in zip(*columns, strict=True))
    groups = [SampleGroup(stage, model, "tir") for stage, model in enumerate(powers)]
    counts = Counts(outcomes, ProblemClasses([], ()), [sample.quota for sample in used])
    samples = SampleColumns(group.astype(np.uint16), key.astype(np.uint64), tokens, outcome.astype(np.uint8), groups)
    counts.add(samples)
    return [suggestion.text for suggestion in suggestions(counts, used)]


def test_what_is_clear_is_said_with_its_numbers() -> None:
    (better,) = world({"a": 0.3, "b": 3}, 200, 4, 0)
    assert re.match(r"a \(TIR\) gives \d\.\dx as many accepted samples per token as b \(TIR\) on all problems", better)
    assert "on the same 200 problems" in better
    (cut,) = world({"cut": 0.01}, 60, 4, 0)
    assert "of the tokens of cut (TIR) are of solutions that end at the length limit" in cut
    assert "60 samples, 24,000 tokens" in cut
    lower = world({"a": 0.5}, 60, 16, 0, quota=4)
    assert any(
        text.startswith("Lower `samples` of a for all problems") and "the 4 good solutions" in text for text in lower
    )
    (more,) = world({"a": 2}, 400, 2, 0)
    assert more.startswith("Raise `samples` of a for all problems: of ")


def test_noise_says_nothing() -> None:
    said = sum(bool(world({"a": 1, "b": 1}, 100, 1, seed)) for seed in range(200))
    assert said <= 15, "two equal models, 5% of the time at most, and chance"
    assert not world({"a": 0.01, "b": 9}, 12, 8, 0), "twelve problems are too few, however clear"


def test_an_interval_holds_the_truth() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        ratio, ease = ProblemRatio(), random.beta(2, 2, 50)
        ratio.add(random.binomial(4, ease).astype(float), random.gamma(4, 25, 50))
        low, high = ratio.interval() or (1.0, 0.0)
        held += low <= 4 * 0.5 / 100 <= high
    assert held >= 370, "95% of them, but for chance"


@pytest.mark.slow
def test_the_report_of_a_run_has_them(smoke_run: SmokeRun) -> None:
    report = json.loads((smoke_run.output / "report.json").read_text())["economics"]
    (teacher,) = (row for row in report["models"] if (row["model"], row["mode"]) == ("stand-in-teacher", "tir"))
    counts = json.loads((smoke_run.output / "tir/manifest.json").read_text())
    assert (teacher["samples"], teacher["tokens"]) == (
        counts["counts"]["records"],
        counts["facts"]["completion_tokens"],
    )
    kept = json.loads((smoke_run.output / "tir_kept/manifest.json").read_text())["counts"]["records"]
    assert teacher["accepted"] == kept
    assert "Tokens for problems that were solved already" in (smoke_run.output / "report.html").read_text()
