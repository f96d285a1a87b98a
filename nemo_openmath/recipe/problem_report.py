"""The problem set of a run for its report: what the manifests count, what two models said, what labels show; and the
page of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Manifest, Problem, Thread
from nemo_openmath.core.records.encoding import id_of_line, parse_record
from nemo_openmath.core.records.store import record_lines
from nemo_openmath.data.records.published import UNATTRIBUTED
from nemo_openmath.evaluation.controls import METRIC, score_text
from nemo_openmath.evaluation.reports.problem_set import ProblemSet, StageAgreement, StageBalance
from nemo_openmath.evaluation.reports.samples import SAMPLES_PAGE, StageSamples, write_samples_page
from nemo_openmath.evaluation.reports.view import Funnel
from nemo_openmath.evaluation.two_models import model_agreement
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe.runner import Run
from nemo_openmath.synthesis.problems.answers import ANOTHERS
from nemo_openmath.synthesis.problems.classify import DOUBTED
from nemo_openmath.synthesis.problems.decontaminate import DROPPED, Decontaminate
from nemo_openmath.synthesis.problems.exchanges import ACCEPTED, SECOND, read_samples, read_second
from nemo_openmath.synthesis.problems.prompted import PromptedConfig

# Stages of the problem set in the order of the paper's Table 1, and what the table calls what is left after each.
_FUNNEL = (
    ("problems.group_threads", "threads with different first posts"),
    ("problems.extract", "problems extracted"),
    ("problems.near_duplicates", "without near-duplicates"),
    ("problems.classify", "without multiple choice, yes/no and invalid"),
    ("problems.convert_proofs", "proofs converted or dropped"),
    ("problems.extract_answers", "answers looked for"),
    ("problems.decontaminate", "decontaminated"),
)
_TYPES = (
    ("converted_proof", "converted proofs"),
    ("has_answer_extracted", "with an extracted answer"),
    ("no_answer_extracted", "without an answer"),
)

_MARKED = {
    DOUBTED: "of no reply could it be read whether the problem is invalid; they go on",
    UNATTRIBUTED: "the post poses several problems, and nothing says to which of them the answer belongs; it is "
    "taken away, but where the stage has unattributed: keep",
    ANOTHERS: "the model gave the answer to another problem of the post, in all attempts; they go on without one",
}
"""Metrics of stages that mark problems, and what that means."""


def problem_funnels(run: Run, finished: Mapping[str, Manifest]) -> Iterator[Funnel]:
    """Yield the paper's Tables 1 and 2 with the counts of the run."""
    by_kind = {_stage(run, name).kind: name for name in finished}
    steps = []
    if threads := next((name for name in finished if _stage(run, name).record is Thread), None):
        steps.append(("forum threads", finished[threads].counts["records"]))
    steps += [(text, finished[by_kind[kind]].counts["records"]) for kind, text in _FUNNEL if kind in by_kind]
    if len(steps) > 1:
        yield Funnel("Problem set (paper Table 1)", steps, note=_merged(run, finished))
    if last := by_kind.get("problems.decontaminate"):
        types = Counter(p.problem_type for p in read_merged([run.folder(last)], Problem, majority))
        others = types.total() - sum(types[kind] for kind, _ in _TYPES)
        parts = [(text, types[kind]) for kind, text in _TYPES] + ([("of no such type", others)] if others else [])
        yield Funnel("Problems by type (paper Table 2)", parts, parts=True)


def decontamination_tables(run: Run, finished: Mapping[str, Manifest]) -> Iterator[Funnel]:
    """Yield, for each stage that decontaminates, how many problems went for which evidence. The note says what its
    controls say of problems that are in no benchmark."""
    for name, manifest in finished.items():
        if isinstance(stage := _stage(run, name), Decontaminate):
            parts = [(reason, manifest.drops[reason]) for reason in DROPPED if manifest.drops.get(reason)]
            scores = manifest.metrics.get(METRIC, {}).get("scores", ())
            measured = [score_text(row) for row in scores if row["measure"] == "specificity"]
            note = f"strictness: {stage.config.strictness}. "
            note += f"Specificity by controls: {measured[0]}" if measured else "Its specificity was not measured"
            if parts:
                yield Funnel(f"Dropped by {name}", parts, parts=True, note=note)


def _merged(run: Run, finished: Mapping[str, Manifest]) -> str:
    """How many problems were merged with an equal one on the way. They are no drops, and are no longer counted."""
    known = {kind for kind, _ in _FUNNEL}
    merged = {
        n: m.counts["merged"] for n, m in finished.items() if _stage(run, n).kind in known and m.counts.get("merged")
    }
    if not merged:
        return ""
    return "Equal problems count once; merged: " + ", ".join(f"{count:,} in {name}" for name, count in merged.items())


def problem_set(run: Run, finished: Mapping[str, Manifest], *, samples: bool) -> ProblemSet:
    """Return the problem set of a run, of its finished stages. ``samples``: whether the page of samples is there."""
    notes: list[str] = []
    names = [name for name in finished if _is_of_problem_set(run, name)]
    return ProblemSet(
        balances=[stage_balance(name, finished[name]) for name in names],
        agreements=list(_agreements(run, finished, notes)),
        truth=[{"of": name, **row} for name, m in finished.items() for row in m.metrics.get("truth", ())],
        samples=samples and bool(list(_sampled(run, finished))),
        notes=[*notes, *_marks(names, finished)],
    )


def _marks(names: Iterable[str], finished: Mapping[str, Manifest]) -> Iterator[str]:
    """Yield how many problems stages have marked, and with what."""
    for name in names:
        for key, meaning in _MARKED.items():
            if count := finished[name].metrics.get(key):
                yield f"{name}: {count:,} marked {key}: {meaning}"


def _is_of_problem_set(run: Run, name: str) -> bool:
    stage = _stage(run, name)
    return stage.kind.startswith("problems.") or stage.record is Thread


def stage_balance(name: str, manifest: Manifest) -> StageBalance:
    """Return what came of what a finished stage read."""
    counts, drops = manifest.counts, manifest.drops
    kept, merged = counts["records"], counts.get("merged", 0)
    further = kept + merged + sum(drops.values()) - counts["units"]
    return StageBalance(name, manifest.stage, counts["units"], further, kept, merged, drops)


def _agreements(run: Run, finished: Mapping[str, Manifest], notes: list[str]) -> Iterator[StageAgreement]:
    for name in finished:
        config = _stage(run, name).config
        if not isinstance(config, PromptedConfig) or config.second_engine is None:
            continue
        if not list(run.folder(name).glob(f"{SECOND}-*")):
            notes.append(f"{name}: there is no file of what {config.second_engine} said")
        elif (agreement := model_agreement(read_second(run.folder(name)).values())) is not None:
            yield StageAgreement(name, config.engine, config.second_engine, agreement)


def _sampled(run: Run, finished: Mapping[str, Manifest]) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """Yield each stage that asked a model with its sample."""
    for name in finished:
        entry = run.recipe.stages[name]
        config = entry.stage.config
        if isinstance(config, PromptedConfig) and config.examples:
            rows = read_samples(run.folder(name), config.examples, entry.seed)
            if rows:
                yield name, rows


def write_samples(run: Run, finished: Mapping[str, Manifest]) -> Path | None:
    """Write the page of samples beside the report, and return its path; None where no stage has any."""
    sampled = list(_sampled(run, finished))
    if not sampled:
        return None
    wanted = {name for _, rows in sampled for of in rows.values() for row in of for name in row["sources"]}
    threads = [run.folder(name) for name in finished if _stage(run, name).record is Thread]
    stages = [
        StageSamples(name, finished[name].stage, dict(_in_order(rows)), _counts(finished[name]))
        for name, rows in sampled
    ]
    page = run.output / SAMPLES_PAGE
    write_samples_page(page, run.recipe.name, stages, _posts(threads, wanted))
    return page


def _in_order(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield what was accepted first, then the others by name."""
    yield from sorted(rows.items(), key=lambda item: (item[0] != ACCEPTED, item[0]))


def _counts(manifest: Manifest) -> dict[str, int]:
    return {ACCEPTED: manifest.counts["records"] + manifest.counts.get("merged", 0), **manifest.drops}


def _posts(folders: Iterable[Path], wanted: set[str]) -> dict[str, str]:
    """Return id -> first post of the threads that are wanted: lines are compared by id before they are read."""
    posts: dict[str, str] = {}
    for file, row, line in record_lines(folders):
        if (name := id_of_line(line)) in wanted and name not in posts:
            posts[name] = parse_record(line, Thread, file, row).forum_post
    return posts


def _stage(run: Run, name: str) -> Any:
    return run.recipe.stages[name].stage
