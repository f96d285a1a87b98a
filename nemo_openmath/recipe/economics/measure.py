"""The economics of a run, for its report."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.evaluation.reports.economics import Economics, LossRow, SpentRow, YieldRow
from nemo_openmath.recipe.economics.counting import ALL, Class, Counts, Tally
from nemo_openmath.recipe.economics.samples import (
    BINS,
    CLASSES,
    GENERATE,
    OTHER,
    UNKNOWN,
    Outcomes,
    ProblemClasses,
    SampleStage,
    read_samples,
    sample_stages,
)
from nemo_openmath.recipe.economics.suggestions import suggestions
from nemo_openmath.recipe.lineage.run_stages import RunStages

_MILLION = 1e6
SHOWN = 20
"""Values of a class that have a row of their own, those with the most tokens."""


def measure(stages: RunStages) -> Economics:
    """Count what the tokens of a run bought, as far as it has got. A folder that cannot be read is said in a note."""
    used = list(sample_stages(stages))
    try:
        counts = count_samples(stages, used)
    except OpenMathError as error:
        return Economics(notes=[f"not counted: {error}"])
    return Economics(
        models=[_row(name, (ALL, ""), of[ALL, ""]) for name, of in sorted(counts.models.items()) if of],
        classes=list(_classes(counts)),
        spent=list(_spent(counts, used)),
        losses=list(_losses(counts)),
        suggestions=suggestions(counts, used),
        notes=list(_notes(stages, used, counts)),
    )


def count_samples(stages: RunStages, used: list[SampleStage]) -> Counts:
    """Read all samples of a run. Raises UserError for a line that cannot be read."""
    outcomes = Outcomes(used)
    counts = Counts(outcomes, ProblemClasses(stages, used), [sample.quota for sample in used])
    for samples in read_samples(used, outcomes):
        counts.add(samples)
    return counts


def _row(name: tuple[str, str], of: Class, tally: Tally) -> YieldRow:
    low, high = tally.rate.interval() or (None, None)
    return YieldRow(
        model=name[0],
        mode=name[1],
        kind=of[0],
        value=of[1],
        problems=tally.problems,
        solved=tally.solved,
        samples=tally.samples,
        tokens=tally.tokens,
        accepted=tally.accepted,
        per_million=_MILLION * tally.rate.value,
        low=None if low is None else _MILLION * low,
        high=None if high is None else _MILLION * high,
    )


def _classes(counts: Counts) -> Iterator[YieldRow]:
    """Yield the rows of each class, where it divides the problems: the pass rate by its bins, others by tokens."""
    tokens: dict[Class, int] = {}
    for of_model in counts.models.values():
        for of, tally in of_model.items():
            if of[0] != ALL:
                tokens[of] = tokens.get(of, 0) + tally.tokens
    for kind in CLASSES:
        values = [value for k, value in tokens if k == kind]
        if len(values) < 2:
            continue
        if kind == "pass rate":
            values.sort(key=lambda value: BINS.index(value) if value in BINS else len(BINS))
        else:
            values.sort(key=lambda value: (value in (UNKNOWN, OTHER), -tokens[kind, value], value))
        for value in values[:SHOWN]:
            for name, of_model in sorted(counts.models.items()):
                if (kind, value) in of_model:
                    yield _row(name, (kind, value), of_model[kind, value])


def _spent(counts: Counts, used: list[SampleStage]) -> Iterator[SpentRow]:
    for (stage, model, mode), of in sorted(counts.stages.items()):
        if not of:
            continue
        tally = of[ALL, ""]
        low, high = tally.beyond.interval() or (None, None)
        yield SpentRow(
            stage=used[stage].stage.name,
            model=model,
            mode=mode,
            wanted=used[stage].quota,
            kept_all=not used[stage].limited,
            tokens=tally.tokens,
            beyond=int(tally.beyond.over),
            share=tally.beyond.value,
            low=low,
            high=high,
        )


def _losses(counts: Counts) -> Iterator[LossRow]:
    ranked = sorted(counts.losses.items(), key=lambda item: (item[0][:2], -item[1].tokens.over, item[0][2]))
    for (model, mode, reason), loss in ranked:
        if loss.samples:
            low, high = loss.tokens.interval() or (None, None)
            share = loss.tokens.value
            yield LossRow(model, mode, reason, loss.samples, int(loss.tokens.over), share, low, high)


def _notes(stages: RunStages, used: list[SampleStage], counts: Counts) -> Iterator[str]:
    """Yield what is not counted."""
    if counts.undecided[0]:
        yield f"{counts.undecided[0]:,} samples ({counts.undecided[1]:,} tokens) wait for a filter and are in no table."
    if used and any(stage.kind == "solutions.hardness" and stage.begun for stage in stages):
        yield "Pass rates are measured by samples of the run itself: a class by pass rate chooses by what it counts."
    names = {sample.stage.folder for sample in used}
    if others := [s.name for s in stages if s.kind == GENERATE and s.begun and s.own and s.folder not in names]:
        yield f"No filter reads {', '.join(others)}, so nothing of them is counted: they evaluate, or go on unfiltered."
