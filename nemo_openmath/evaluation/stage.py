"""Evaluate as stages: rows with intervals from graded generations, and paired differences of two such folders."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson

from nemo_openmath.core.bounds import Length, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem, write_json
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.evaluation.metrics import SUBSETS, ProblemScores, Scores, score, summarise
from nemo_openmath.evaluation.paired import Pair, paired_difference

RESULTS, PER_PROBLEM, PAIRED = "results.json", "per_problem.jsonl", "paired.json"


@dataclass(frozen=True)
class MetricsConfig:
    """Settings of ``evaluation.metrics``."""

    checkpoint: str = "model"
    """Label of the rows, such as base or iteration1."""
    ks: Annotated[list[PositiveInt], Length()] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    """Numbers of samples for maj@k and pass@k. Those above the samples of a mode are skipped, and a line says so."""
    subsets: PositiveInt = SUBSETS
    """Random subsets per k where votes are not counted exactly, above 1000 samples a problem."""


class ComputeMetrics(Stage[MetricsConfig]):
    """Measure accuracy, votes, selection and cost of one checkpoint by mode, each with a 95% interval over problems."""

    kind = "evaluation.metrics"
    version = 3  # 3: how many solutions called code; 2: intervals of more than 30,000 problems were wrong
    Config = MetricsConfig
    makes = "metrics"
    ports = {
        "generations": "graded generations of the benchmark, of one or several modes",
        "problems?": "the benchmark: every problem of it must have been tried in every mode",
    }
    takes = {"generations": "Generation", "problems": "Problem"}

    async def run(self, context: StageContext) -> None:
        if not self.config.ks or min(self.config.ks) < 1 or self.config.subsets < 1:
            raise UserError(f"{context.name}: ks and subsets must be at least 1", remedy="write ks: [1, 4, 16]")
        grader = await context.services.grading()

        def work() -> Scores:
            expected = [p.id for p in context.read("problems", Problem)] if context.paths("problems") else None
            return score(
                context.read("generations", Generation),
                ks=self.config.ks,
                seed=context.seed,
                subsets=self.config.subsets,
                compare=grader.compare,
                expected=expected,
            )

        scores = await asyncio.to_thread(work)
        if not scores.problems:
            raise UserError(f"{context.name}: there are no generations", remedy="check the stage that feeds it")
        if not any(problem.values for problem in scores.problems):
            raise UserError(f"{context.name}: no problem could be tried", remedy="see `finish` of the generations")
        rows = [{"checkpoint": self.config.checkpoint, **asdict(row)} for row in summarise(scores.problems)]
        write_scores(context.output, self.config.checkpoint, scores.problems)
        write_json(context.output / RESULTS, rows)
        context.metrics |= {
            "results": rows,
            "undecided": scores.undecided,
            "skipped_ks": scores.skipped,
            "cut_votes": scores.cut_votes,
            "apart": [{"checkpoint": self.config.checkpoint, **row} for row in scores.apart()],
        }
        for row in scores.apart():
            context.progress.log(
                f"{row['mode']}: {row['problems']} of {row['of']} problems are in no mean, for the model could not be "
                f"asked (longer than its context, or refused), for example {row['example']}"
            )
        for mode, ks in scores.skipped.items():
            context.progress.log(f"{mode}: no metrics for k = {', '.join(map(str, ks))}: fewer samples than that")


@dataclass(frozen=True)
class CompareConfig:
    """Settings of ``evaluation.compare``."""

    pairs: list[str] = field(default_factory=lambda: ["cot pass@1", "tir pass@1"])
    """What is compared. ``tir pass@1`` compares this metric before and after. ``cot pass@1 -> tir pass@1`` compares
    across modes or metrics; to do so within one checkpoint, give the same folder as ``before`` and ``after``."""


class CompareScores(Stage[CompareConfig]):
    """Compare two checkpoints, or two modes of one, by paired differences over the same problems."""

    kind = "evaluation.compare"
    version = 2  # intervals of more than 30,000 problems were wrong
    Config = CompareConfig
    makes = "metrics"
    ports = {"before": "folder of evaluation.metrics", "after": "folder of evaluation.metrics"}
    takes = {"before": "metrics", "after": "metrics"}

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for folder in (*inputs.get("before", ()), *inputs.get("after", ())):
            read_scores(folder)

    async def run(self, context: StageContext) -> None:
        (label_before, before), (label_after, after) = (read_scores(context.only(p)) for p in ("before", "after"))
        rows: list[dict[str, Any]] = []
        for text in self.config.pairs:
            row = paired_difference(
                before, after, Pair.parse(text), checkpoint_before=label_before, checkpoint_after=label_after
            )
            rows.append(asdict(row))
        write_json(context.output / PAIRED, rows)
        context.metrics["paired"] = rows


def write_scores(folder: Path, checkpoint: str, scores: list[ProblemScores]) -> None:
    """Write ``per_problem.jsonl``, one line a problem and mode. The file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PER_PROBLEM
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        for row in scores:
            file.write(orjson.dumps({"checkpoint": checkpoint, **asdict(row)}) + b"\n")
    temporary.replace(path)


def read_scores(folder: Path) -> tuple[str, list[ProblemScores]]:
    """Return the checkpoint's label and the scores of a folder of evaluation.metrics.

    Raises UserError naming file and row of what is none.
    """
    path = folder / PER_PROBLEM
    if not path.is_file():
        raise UserError(f"no {PER_PROBLEM}", file=folder, remedy="give the folder of an evaluation.metrics stage")
    labels: set[str] = set()
    scores = [_read_row(path, row, line, labels) for row, line in _lines(path)]
    if len(labels) != 1:
        raise UserError("scores of exactly one checkpoint are wanted", file=path)
    return labels.pop(), scores


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, 1)


def _read_row(path: Path, row: int, line: bytes, labels: set[str]) -> ProblemScores:
    try:
        values = orjson.loads(line)
        labels.add(values.pop("checkpoint"))
        return ProblemScores(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a row of scores ({error})", file=path, row=row, remedy="run its stage again") from error
