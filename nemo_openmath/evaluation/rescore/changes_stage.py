"""What scoring again changed, as a stage."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from nemo_openmath.core.bounds import Length, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, write_json
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.evaluation.metrics import SUBSETS, Scores, score, summarise
from nemo_openmath.evaluation.rescore.changes import (
    VerdictChanges,
    metric_changes,
    turn_rows,
    turns,
    without_unknown,
)
from nemo_openmath.evaluation.rescore.note import before
from nemo_openmath.evaluation.stage import RESULTS, write_scores

CHANGES, BEFORE, AFTER = "changes.json", "before", "after"


@dataclass(frozen=True)
class ChangesConfig:
    """Settings of ``evaluation.changes``."""

    checkpoint: str = "model"
    """Label of the rows, as of ``evaluation.metrics``."""
    ks: Annotated[list[PositiveInt], Length()] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    """Numbers of samples for maj@k and pass@k. Those above the samples of a mode are skipped, and a line says so."""
    subsets: PositiveInt = SUBSETS
    """Random subsets per k where votes are not counted exactly, above 1000 samples a problem."""


class MeasureChanges(Stage[ChangesConfig]):
    """Tell what scoring again changed: verdicts by pair of reasons, every metric with a paired interval, and the
    problems that turn.

    ``before`` and ``after`` are folders like those of ``evaluation.metrics``. Generations that had no verdict before
    leave no ``before``.
    """

    kind = "evaluation.changes"
    Config = ChangesConfig
    makes = "metrics"
    ports = {"generations": "the folder of an evaluation.rescore stage"}
    takes = {"generations": "Generation"}

    async def run(self, context: StageContext) -> None:
        grader = await context.services.grading()
        changes = VerdictChanges()

        def scores(generations: Any) -> Scores:
            return score(
                generations,
                ks=self.config.ks,
                seed=context.seed,
                subsets=self.config.subsets,
                compare=grader.compare,
            )

        new = await asyncio.to_thread(lambda: scores(changes.watch(context.read("generations", Generation))))
        if not new.problems:
            raise UserError(f"{context.name}: nothing is left to score", remedy="ask for more samples, modes, problems")
        old = None
        if not changes.not_graded:
            old = await asyncio.to_thread(lambda: scores(map(before, context.read("generations", Generation))))
        else:
            context.progress.log(f"{changes.not_graded} generations had no verdict before: there is nothing to compare")
        hidden = list(changes.unknown_counts)
        new = replace(new, problems=without_unknown(new.problems, hidden))
        for mode, (number, first) in changes.unknown_counts.items():
            context.progress.log(
                f"{mode}: tokens and code calls under the limit are not known: {number} solutions with code have no "
                f"token ids of their own, for example {first}; its verdicts are exact"
            )
        for mode, ks in new.skipped.items():
            context.progress.log(f"{mode}: no metrics for k = {', '.join(map(str, ks))}: fewer samples than that")
        context.metrics |= self._write(context, changes, old, new)

    def _write(self, context: StageContext, changes: VerdictChanges, old: Scores | None, new: Scores) -> dict[str, Any]:
        label = self.config.checkpoint
        for name, scores in ((BEFORE, old), (AFTER, new)):
            if scores is not None:
                rows = [{"checkpoint": label, **asdict(row)} for row in summarise(scores.problems)]
                write_scores(context.output / name, label, scores.problems)
                write_json(context.output / name / RESULTS, rows)
        paired = [] if old is None else metric_changes(old.problems, new.problems, changes.unknown_counts)
        turned = [] if old is None else turns(old.problems, new.problems)
        counts = {
            "generations": changes.total,
            "changed": changes.changed,
            "other_reason": changes.other_reason,
            "other_answer": changes.other_answer,
            "not_graded_before": changes.not_graded,
        }
        told = counts | {
            "verdicts": changes.table(),
            "metrics": [asdict(row) for row in paired],
            "problems": turn_rows(turned),
            "unknown_counts": {mode: number for mode, (number, _) in changes.unknown_counts.items()},
            "undecided": new.undecided,
        }
        write_json(context.output / CHANGES, told)
        return counts | {"problems_turned": len({(turn.problem, turn.mode) for turn in turned})}
