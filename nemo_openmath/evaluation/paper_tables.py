"""The shapes of the paper's Tables 4, 6, 7, 8 and 9, filled from folders of ``openmath evaluate``.

4   what a benchmark holds: problems of each part
6   maj@k of CoT and TIR, a row for each model (of two rounds of training)
7   pass@1 and maj@k on each benchmark in CoT and TIR, and GenSelect among them
8   unfinished solutions in CoT and TIR
9   tokens a second and maj@k, a row for each form of a model (formats, drafters)

What a shape needs and the folders do not hold is named, and its cell is empty. Every share has a 95% interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem, read_manifest, read_records
from nemo_openmath.evaluation.benchmarks.known import KNOWN, SUBSET, known
from nemo_openmath.evaluation.intervals import share_interval
from nemo_openmath.evaluation.metrics import ProblemScores, split_name
from nemo_openmath.evaluation.stage import PER_PROBLEM, read_scores

TABLES = (4, 6, 7, 8, 9)
_RESULTS = "_results"
_TITLES = {"aime24": "AIME24", "aime25": "AIME25", "hmmt-24-25": "HMMT-24-25", "hle-math": "HLE-Math"}
"""Columns of Table 7, in its order."""
_MODES = {"cot": "CoT", "tir": "TIR"}
_NONE = "–"


@dataclass(frozen=True, slots=True)
class MeasuredMode:
    """What was measured of one benchmark in one mode."""

    benchmark: str
    mode: str
    """The mode of the solutions."""
    own: bool
    """Whether the solutions are the model's own."""
    scores: list[ProblemScores]
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """What lies in the folder of an evaluation."""

    name: str
    folder: Path
    measured: list[MeasuredMode]
    columns: dict[str, str]
    """Problem -> the column in which it counts: its part of the benchmark, else the benchmark."""
    ids: dict[str, str]
    """Problem -> its id in the benchmark's file."""

    @classmethod
    def read(cls, text: str) -> EvaluatedModel:
        """Read ``DIR`` or ``NAME=DIR``. Raises UserError where it is no folder of an evaluation that has finished."""
        name, _, path = text.rpartition("=")
        folder = Path(path)
        stages = sorted(child for child in folder.glob(f"*{_RESULTS}") if (child / PER_PROBLEM).is_file())
        if not stages:
            remedy = "name the --output of openmath evaluate, once it has finished"
            raise UserError("holds no results of an evaluation", file=folder, remedy=remedy)
        measured, columns, ids = [], {}, {}
        for stage in stages:
            benchmark, scores = read_scores(stage)
            mode = stage.name.removeprefix(f"{benchmark}_").removesuffix(_RESULTS)
            own = not mode.endswith("_others")
            speed = _speed(folder / f"{benchmark}_{mode}")
            measured.append(MeasuredMode(benchmark, mode.removesuffix("_others"), own, scores, speed))
            for problem in _problems(folder, benchmark):
                columns[problem.id] = str(problem.extra.get(SUBSET) or benchmark)
                ids[problem.id] = str(problem.extra.get("id", ""))
        return cls(name or folder.resolve().name, folder, measured, columns, ids)

    def values(self, mode: str, metric: str, column: str | None = None, *, of: str | None = None) -> Values:
        """Return the values of a metric by problem, of one mode (``of``: of the solutions that were selected among), in
        one column or in all. ``maj@k`` is that of the largest k."""
        values: list[float] = []
        name = ""
        for measured in self.measured:
            if (of or mode) != measured.mode:
                continue
            for problem in measured.scores:
                if problem.mode != mode or (column is not None and self.columns.get(problem.problem_id) != column):
                    continue
                if (key := _key(problem, metric)) is not None:
                    name = key
                    values.append(problem.values[key])
        return Values(name, np.asarray(values))


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one metric, one a problem."""

    metric: str
    """With its k; empty where there is no value."""
    values: np.ndarray

    def cell(self) -> tuple[str, str]:
        """Return the mean in percent, and its interval; dashes where there is none."""
        if not len(self.values):
            return _NONE, ""
        low, high = share_interval(self.values)
        return f"{100 * self.values.mean():.1f}", f"{100 * low:.1f}–{100 * high:.1f}"


@dataclass
class PaperTable:
    """A table, and what it lacks."""

    table: Table
    missing: list[str] = field(default_factory=list)


def _key(problem: ProblemScores, metric: str) -> str | None:
    """Return the name of a metric among the values of a problem, at its largest k."""
    names = [name for name in problem.values if split_name(name)[0] == metric]
    return max(names, key=lambda name: split_name(name)[1] or 0, default=None)


def _problems(folder: Path, benchmark: str) -> Iterator[Problem]:
    for name in (f"{benchmark}_chosen", f"{benchmark}_problems"):
        if (folder / name).is_dir():
            yield from read_records(folder / name, Problem)
            return


def _speed(folder: Path) -> float | None:
    manifest = read_manifest(folder) if folder.is_dir() else None
    value = None if manifest is None else manifest.metrics.get("tokens_per_second")
    return float(value) if isinstance(value, int | float) else None


def paper_table(number: int, models: Sequence[EvaluatedModel]) -> PaperTable:
    """Return one of the paper's tables."""
    made: dict[int, Callable[[Sequence[EvaluatedModel]], PaperTable]] = {
        4: _contents,
        6: _rounds,
        7: _results,
        8: _unfinished,
        9: _speeds,
    }
    return made[number](models)


def _contents(models: Sequence[EvaluatedModel]) -> PaperTable:
    out = PaperTable(_titled("Table 4: problems of the benchmark", "part", "problems"))
    first = models[0]
    counts = Counter(first.columns.values())
    parts = [part for benchmark in KNOWN for part in benchmark.parts if part.ids]
    for column, count in counts.items():
        out.table.add_row(_title(column), str(count))
        for part in (part for part in parts if part.subset == column):
            there = sum(first.columns[i] == column and first.ids[i].startswith(part.ids) for i in first.columns)
            out.table.add_row(f"  {part.name}", str(there))
            if there != part.problems:
                out.missing.append(f"{first.name}: {part.name} has {there} problems, {part.problems} in the paper")
    out.table.add_row("all", str(len(first.columns)))
    whole = known("comp-math-24-25")
    if whole is not None and len(first.columns) != whole.problems:
        out.missing.append(f"{first.name}: {len(first.columns)} problems; Table 4 has {whole.problems}")
    return out


def _rounds(models: Sequence[EvaluatedModel]) -> PaperTable:
    return _by_mode("Table 6: majority vote", models, "maj@k")


def _unfinished(models: Sequence[EvaluatedModel]) -> PaperTable:
    return _by_mode("Table 8: unfinished solutions, %", models, "unfinished")


def _by_mode(title: str, models: Sequence[EvaluatedModel], metric: str) -> PaperTable:
    """A row for each model, a column for each mode."""
    cells = {(model.name, mode): model.values(mode, metric) for model in models for mode in _MODES}
    names = sorted({values.metric for values in cells.values() if values.metric})
    title = title if metric == "unfinished" else f"{title} ({', '.join(names) or metric}), %"
    out = PaperTable(_titled(title, "model", *_MODES.values()))
    for model in models:
        row = [model.name]
        for mode, shown in _MODES.items():
            value, interval = cells[model.name, mode].cell()
            row.append(f"{value}\n{interval}" if interval else value)
            if not interval:
                out.missing.append(f"{model.name}: no {shown} (--mode {mode})")
        out.table.add_row(*row)
    return out


def _results(models: Sequence[EvaluatedModel]) -> PaperTable:
    present = {column for model in models for column in model.columns.values()}
    columns = [*_TITLES, *sorted(present - _TITLES.keys())]
    out = PaperTable(_titled("Table 7: pass@1 (maj@k), %", "model", *map(_title, columns)))
    for column in _TITLES:
        if column not in present:
            out.missing.append(f"no {_title(column)}: evaluate with a benchmark of it")
    for model in models:
        for mode, shown in _MODES.items():
            if model.values(mode, "pass@1").metric:
                out.table.add_row(f"{model.name} {shown}", *(_two(model, mode, column) for column in columns))
            selected = [model.values("genselect", "genselect@k", column, of=mode) for column in columns]
            if any(values.metric for values in selected):
                own = all(m.own for m in model.measured if m.mode == mode)
                name = "+ GenSelect" if own else f"GenSelect among {shown} of another model"
                out.table.add_row(f"  {name}", *("\n".join(filter(None, values.cell())) for values in selected))
            else:
                out.missing.append(f"{model.name} {shown}: no GenSelect (--mode {mode} --mode genselect)")
    return out


def _two(model: EvaluatedModel, mode: str, column: str) -> str:
    (one, one_interval), (vote, vote_interval) = (
        model.values(mode, metric, column).cell() for metric in ("pass@1", "maj@k")
    )
    return f"{one} ({vote})\n{one_interval} ({vote_interval})" if one_interval else _NONE


def _speeds(models: Sequence[EvaluatedModel]) -> PaperTable:
    out = PaperTable(_titled("Table 9: speed and votes", "model", "mode", "tokens/s", "maj@k", "%"))
    for model in models:
        for measured in model.measured:
            if not measured.own:
                continue
            values = model.values(measured.mode, "maj@k")
            value, interval = values.cell()
            speed = _NONE if measured.tokens_per_second is None else f"{measured.tokens_per_second:,.0f}"
            shown = _MODES.get(measured.mode, measured.mode)
            out.table.add_row(model.name, shown, speed, values.metric or _NONE, f"{value} {interval}".strip())
            if measured.tokens_per_second is None:
                out.missing.append(f"{model.name} {shown}: no speed (its generation has not finished)")
    out.missing.append("speeds are those of the last run of each generation, on the machine that ran it")
    return out


def _title(column: str) -> str:
    return _TITLES.get(column, column)


def _titled(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table
