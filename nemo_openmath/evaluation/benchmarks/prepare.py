"""A benchmark's file: rows are read, checked and written as JSON Lines that ``openmath evaluate`` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import partial_file, refuse_foreign_file, refuse_unwritable_file
from nemo_openmath.core.records import exact_json
from nemo_openmath.evaluation.benchmarks.checks import CONTRADICTION, BenchmarkFinding, findings, repeated
from nemo_openmath.evaluation.benchmarks.columns import BenchmarkColumns
from nemo_openmath.evaluation.benchmarks.known import KnownBenchmark, Part, known, part_of
from nemo_openmath.evaluation.benchmarks.overlap import Overlap, overlaps, training_problems
from nemo_openmath.evaluation.benchmarks.sources import dataset_rows, file_rows
from nemo_openmath.grading import GradingPool

DATASETS = "datasets"
SHOWN = 5
"""Most findings of a kind that are printed."""


@dataclass(frozen=True)
class PrepareRequest:
    """What the command line says."""

    name: str
    source: str
    """A file, a folder, or ``datasets``."""
    output: Path
    dataset: str = ""
    """Name or folder of the dataset, in place of the known one."""
    split: str = ""
    config: str | None = None
    part: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    against: Sequence[Path] = ()


@dataclass
class Prepared:
    """The rows of a benchmark, and what is to be said of them."""

    rows: list[dict[str, Any]]
    left_out: Counter[str] = field(default_factory=Counter)
    findings: list[BenchmarkFinding] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    expected: int | None = None
    """How many problems a known benchmark has."""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Part -> problems that are there, and that should be."""

    def lines(self) -> list[str]:
        """Return the report for a reader."""
        lines = [f"{len(self.rows)} problems" + (f"; {self.expected} are known of it" if self.expected else "")]
        lines += [f"  {name}: {there} of {wanted}" for name, (there, wanted) in self.parts.items()]
        lines += [f"left out, {reason}: {count}" for reason, count in self.left_out.most_common()]
        kinds = Counter(finding.kind for finding in self.findings)
        for kind, count in kinds.most_common():
            lines.append(f"{kind}: {count}")
            shown = [finding for finding in self.findings if finding.kind == kind][:SHOWN]
            lines += [f"  {finding.line().partition(': ')[2]}" for finding in shown]
        if self.overlaps:
            exact = sum(overlap.exact for overlap in self.overlaps)
            lines.append(
                f"in the training set: {exact} word for word, {len(self.overlaps) - exact} similar (for somebody to "
                "look at; problems.decontaminate asks a model)"
            )
            ranked = sorted(self.overlaps, key=lambda overlap: (-overlap.exact, -overlap.similarity))
            lines += [f"  {overlap.line()}" for overlap in ranked[:SHOWN]]
        if self.wrong_count:
            lines.append("that is another number than is known: is the file whole, and of this benchmark?")
        return lines

    @property
    def wrong_count(self) -> bool:
        """Whether a known benchmark, or a part of it, has another number of problems than is known."""
        counts = [] if self.expected is None else [(len(self.rows), self.expected)]
        return any(there != wanted for there, wanted in [*counts, *self.parts.values()])


def prepare(request: PrepareRequest) -> Prepared:
    """Read a benchmark, check it, and write its file, which appears whole or not at all.

    Raises UserError where a row holds no problem or no answer, where two rows state the same and expect different
    answers, and where the output would replace something else.
    """
    refuse_unwritable_file(request.output, "--output")
    refuse_foreign_file(request.output, "a benchmark's file", _is_ours)
    benchmark = known(request.name)
    part = part_of(benchmark, request.part) if request.part else None
    rows = _rows(request, benchmark)
    prepared = _selected(rows, request, benchmark, part)
    _make_ids_differ(prepared.rows)
    with GradingPool() as pool:
        prepared.findings = list(findings(prepared.rows, pool.compare))
    if wrong := next((f for f in prepared.findings if f.kind == CONTRADICTION), None):
        raise UserError(
            f"problems {' and '.join(wrong.ids)} state the same and expect different answers ({wrong.detail})",
            file=request.source,
            remedy="correct one of them, or take it out",
        )
    _drop_duplicates(prepared)
    for path in request.against:
        prepared.overlaps += overlaps(prepared.rows, training_problems(path))
    partial = partial_file(request.output)
    partial.write_bytes(b"".join(exact_json.dumps(row) + b"\n" for row in prepared.rows))
    partial.replace(request.output)
    return prepared


def _is_ours(line: bytes) -> bool:
    try:
        row = exact_json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() >= {"id", "problem", "expected_answer"}


def _rows(request: PrepareRequest, benchmark: KnownBenchmark | None) -> list[dict[str, Any]]:
    if request.source != DATASETS:
        return file_rows(Path(request.source))
    name = request.dataset or (benchmark.dataset if benchmark is not None else "")
    if not name:
        remedy = "give --dataset NAME, or --from FILE"
        raise UserError(f"no dataset of {request.name!r} is known", remedy=remedy)
    split = request.split or (benchmark.split if benchmark is not None else "test")
    return dataset_rows(name, split, request.config)


def _selected(
    rows: list[dict[str, Any]], request: PrepareRequest, benchmark: KnownBenchmark | None, part: Part | None
) -> Prepared:
    """Return the rows of the benchmark, or of the part, in its columns. Rows of other kinds are left out and
    counted."""
    given = dict(request.columns)
    names = rows[0].keys()
    if benchmark is not None:
        given = {k: v for k, v in benchmark.columns.items() if v in names} | given
    columns = BenchmarkColumns.of(rows, given)
    prepared = Prepared([])
    for number, fields in enumerate(rows, 1):
        if benchmark is not None and (why := _other_kind(fields, benchmark)):
            prepared.left_out[why] += 1
            continue
        row = columns.row(fields, number)
        if isinstance(row, str):
            raise UserError(row, file=request.source, row=number, remedy="correct it, or change --columns")
        if part is not None and not part.holds(row):
            prepared.left_out["of another part"] += 1
            continue
        prepared.rows.append(row)
    if not prepared.rows:
        raise UserError("no problem is left", file=request.source, remedy="check --part and the columns of the file")
    if part is not None:
        prepared.expected = part.problems
    elif benchmark is not None:
        prepared.expected = benchmark.problems
        for piece in benchmark.parts:
            prepared.parts[piece.name] = sum(map(piece.holds, prepared.rows)), piece.problems
    return prepared


def _other_kind(fields: Mapping[str, Any], benchmark: KnownBenchmark) -> str:
    """Return why a row is none of the benchmark; "" where it is one. A column that is not there says nothing."""
    for column, values in benchmark.only.items():
        if column in fields and fields[column] not in values:
            return f"{column} is another" if column != "image" else "it has an image"
    return ""


def _drop_duplicates(prepared: Prepared) -> None:
    """Keep the first of rows that state the same. That their answers are equal was checked."""
    again = {number for _, number in repeated(prepared.rows)}
    if again:
        prepared.left_out["the same problem again"] += len(again)
        prepared.rows = [row for number, row in enumerate(prepared.rows) if number not in again]


def _make_ids_differ(rows: list[dict[str, Any]]) -> None:
    """Add the row's number to the ids where two rows have one: contests of two days count from 1 twice."""
    if len({row["id"] for row in rows}) < len(rows):
        for number, row in enumerate(rows, 1):
            row["id"] = f"{row['id']}-{number}"
