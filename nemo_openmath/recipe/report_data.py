"""A run as plain data for the report: what the stages' manifests say, put together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Generation, Manifest, Mode, read_records
from nemo_openmath.core.records.manifest import TALLY
from nemo_openmath.core.records.notes import Submission
from nemo_openmath.core.records.types import Tallied
from nemo_openmath.evaluation.controls import METRIC, measured
from nemo_openmath.evaluation.intervals import share_interval
from nemo_openmath.evaluation.reports.controls import StageControls
from nemo_openmath.evaluation.reports.view import ConfigValue, Example, Funnel, RunView, StageView, gather
from nemo_openmath.grading.majority import majority
from nemo_openmath.launch.run_files import read_run
from nemo_openmath.launch.run_state import run_state
from nemo_openmath.launch.view_graph import graph_svg
from nemo_openmath.launch.view_status import status_nodes
from nemo_openmath.recipe.problem_report import decontamination_tables, problem_funnels, problem_set
from nemo_openmath.recipe.prompt_match import prompt_notes
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.status import StageStatus, State
from nemo_openmath.synthesis.controls.plant import ControlledStage

_ORIGINS = (
    ("forum", "of the forum"),
    ("majority", "majority of solutions"),
    ("repaired", "repaired: no solution reached the forum's"),
    ("calibrated", "most probable, and not the forum's"),
)


def run_view(run: Run, waited: float | None = None, only: Collection[str] | None = None) -> RunView:
    """Read the manifests and whatever else the report shows.

    ``waited``: the seconds that this run took; None where nothing was run. ``only``: show these stages alone.
    """
    recipe, statuses = run.recipe, [s for s in run.status() if only is None or s.name in only]
    stages = [StageView.read(s.name, run.folder(s.name), str(s.state)) for s in statuses]
    finished = {s.name: s.manifest for s in stages if s.manifest is not None and s.current}
    return RunView(
        label=recipe.name,
        stages=stages,
        results=gather(stages, "results"),
        paired=gather(stages, "paired"),
        apart=gather(stages, "apart"),
        funnel=[
            *problem_funnels(run, finished),
            *decontamination_tables(run, finished),
            *_solution_funnels(run, finished),
            *_answer_tables(finished),
        ],
        training={n: run.folder(n) / "metrics.jsonl" for n in finished if _kind(run, n) == "training.sft"},
        examples=list(_examples(run, finished)),
        seeds={"recipe": recipe.seed} | {e.name: e.seed for e in recipe.stages.values() if e.seed != recipe.seed},
        config=[ConfigValue(".".join(v.key), v.value, str(v.origin)) for v in recipe.values],
        versions=next(iter(finished.values())).versions if finished else {},
        standins=list(_standins(run)),
        competition=list(_competition(run, finished)),
        left_out=list(_left_out(statuses)),
        prompts=list(prompt_notes(recipe, run.output, finished)),
        note=recipe.note,
        waited=waited,
        jobs=_jobs(run) if only is None else "",
        iterations=iterations(run, finished),
        problem_set=problem_set(run, finished, samples=only is None),
        controls=list(_controls(run, stages)),
    )


def _controls(run: Run, stages: Sequence[StageView]) -> Iterator[StageControls]:
    """Yield what the planted cases say of each stage that has some: of one that is finished as the recipe asks, and so
    far of one that has begun."""
    for view in stages:
        stage = run.recipe.stages[view.name].stage
        if not isinstance(stage, ControlledStage) or not stage.config.controls:
            continue
        row = view.manifest.metrics.get(METRIC) if view.manifest and view.current else None
        if row is None and view.state == State.UNFINISHED:
            row = measured(run.folder(view.name), stage.control_classes)
        if row is not None:
            config = stage.config
            yield StageControls(view.name, stage.kind, config.controls, config.control_bound, row, view.current)


def iterations(run: Run, finished: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return what the last decision of a loop says, of those among the stages ``finished``; empty where there is none.

    The keys are those of RunView.iterations.
    """
    loop = run.recipe.loop
    decisions = [] if loop is None else [name for name in loop.decisions if name in finished]
    if loop is None or not decisions:
        return {}
    last = decisions[-1]
    decision: dict[str, Any] = finished[last].metrics["iterations"]
    rows = [{**row, "is_best": row["iteration"] == decision["best"]["iteration"]} for row in decision["iterations"]]
    is_last = last == loop.decisions[-1] or decision["stop"] is not None
    return {
        "metric": decision["metric"],
        "most": loop.settings.most,
        "iterations": rows,
        "best": decision["best"],
        "tokens": decision["tokens"],
        "stop": decision["stop"],
        "is_over": is_last,
    }


def _jobs(run: Run) -> str:
    """The graph of the jobs of a launched run; empty where it was not launched, or where that cannot be read."""
    try:
        state = run_state(read_run(run.output))
    except OpenMathError:
        return ""
    return graph_svg(status_nodes(state), f"Jobs of {run.recipe.name}: {state.verdict}")


def _left_out(statuses: Sequence[StageStatus]) -> Iterator[str]:
    """Yield a sentence for each stage that is itself not as the recipe asks, and one for those made from such
    stages."""
    behind = [s.name for s in statuses if s.state is State.CHANGED and not s.other]
    for status in statuses:
        if status.other or status.state is State.DAMAGED:
            why = status.reason or "files of it are gone or cut"
            yield f"{status.name} is {status.state}: {why}"
    if behind:
        names = ", ".join(behind[:12]) + (f" and {len(behind) - 12} more" if len(behind) > 12 else "")
        yield f"made from stages that are missing, or that were made for an earlier state of the recipe: {names}"


def _competition(run: Run, finished: dict[str, Manifest]) -> Iterator[dict[str, Any]]:
    """Yield the score of each competition, from the answers that it left."""
    for name, manifest in finished.items():
        if manifest.stage == "competition.solve":
            records = read_merged([run.folder(name)], Generation, majority)
            answers = [record for record in records if record.mode == Mode.COMPETITION]
            if not answers:
                continue
            right = np.array([float(answer.correct) for answer in answers])
            low, high = share_interval(right)
            yield {
                "stage": name,
                "model": next(iter(run.recipe.stages[name].stage.engines()), answers[0].model),
                "problems": len(answers),
                "answered": sum(answer.predicted_answer is not None for answer in answers),
                "right": int(right.sum()),
                "value": float(right.mean()),
                "low": low,
                "high": high,
                "seconds": round(sum(Submission.of(answer).seconds for answer in answers), 1),
            }


def _kind(run: Run, name: str) -> str:
    return run.recipe.stages[name].stage.kind


def _standins(run: Run) -> Iterator[str]:
    """Yield a sentence for each part of the run that is no real model or no real data."""
    stages = [entry.stage for entry in run.recipe.stages.values()]
    if run.recipe.teacher.is_stand_in and any("teacher" in stage.engines() for stage in stages):
        yield run.recipe.teacher.program.disclosure
    yield from dict.fromkeys(stage.disclosure for stage in stages if stage.disclosure)


def _solution_funnels(run: Run, finished: dict[str, Manifest]) -> Iterator[Funnel]:
    """Yield how many solutions were generated and kept, for every filter of the recipe."""
    for name, manifest in finished.items():
        if manifest.stage in ("solutions.filter", "solutions.novelty"):
            counts = manifest.counts
            yield Funnel(
                f"Solutions before and after stage {name}",
                [("generated and graded", counts["units"]), ("kept", counts["records"])],
            )


def _answer_tables(finished: dict[str, Manifest]) -> Iterator[Funnel]:
    """Yield where the expected answers of each stage's problems are from, and what a model of the answers says."""
    for name, manifest in finished.items():
        metrics = manifest.metrics
        parts = [(text, int(metrics.get(f"answers_{key}", 0))) for key, text in _ORIGINS]
        if any(count for _, count in parts):
            note = [] if "wrong_answers_expected" not in metrics else [_noise_text(metrics)]
            if known := metrics.get("calibration"):
                error, brier = known["expected_calibration_error"], known["brier"]
                note.append(f"Calibration, by {known['answers']} known answers: error {error:.3f}, Brier {brier:.3f}")
            yield Funnel(f"Expected answers after stage {name}", parts, parts=True, note=". ".join(note))


def _noise_text(metrics: dict[str, Any]) -> str:
    low, high = metrics["wrong_answers_low"], metrics["wrong_answers_high"]
    return f"Wrong answers among these, as estimated: {metrics['wrong_answers_expected']} ({low:.0f} to {high:.0f})"


def _examples(run: Run, finished: dict[str, Manifest]) -> Iterator[Example]:
    """Yield a correct solution with code, by the last checkpoint that was evaluated."""
    graded = [n for n, m in finished.items() if m.stage == "solutions.grade"]
    for name in reversed(graded):
        tally = finished[name].metrics.get(TALLY)
        if tally is not None and not any(map(_is_shown, (counted for counted, _ in Tallied.read(tally)))):
            continue
        for generation in read_records(run.folder(name), Generation):
            if _is_shown(Tallied.of(generation)):
                yield Example.of(generation, f"A solution with code ({name}, {generation.model})")
                return


def _is_shown(counted: Tallied) -> bool:
    return counted.mode == Mode.TIR and counted.verdict == Verdict.EQUAL and counted.called
