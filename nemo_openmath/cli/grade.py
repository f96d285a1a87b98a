"""``openmath grade``: answers held against the expected ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import at_least, seconds, verb

_ANSWERS = "JSON Lines, JSON, CSV or Parquet with expected_answer and predicted_answer, generation, output, ..."
_RESUMED = "the rows that were graded are kept beside the output, the same command goes on from there"


def add(groups: Any) -> None:
    grade = verb(
        groups,
        "grade",
        "compare the answers of solutions with the expected ones, row by row",
        _grade,
        interrupted=_RESUMED,
    )
    grade.add_argument("file", type=Path, metavar="FILE", help=f"file or folder: what generate wrote, or {_ANSWERS}")
    grade.add_argument("--output", type=Path, required=True, help="JSON Lines: the same rows with verdict and reason")
    grade.add_argument("--skip-broken", action="store_true", help="leave out rows that cannot be read, counted")
    grade.add_argument("--workers", type=at_least(1), default=1, help="processes")
    grade.add_argument("--time-limit", type=seconds(), default=1.0, metavar="SECONDS", help="of one pair")
    grade.add_argument("--memory-mb", type=at_least(256), default=1024, metavar="MIB", help="of one worker")
    grade.add_argument("--take-modulo", type=at_least(1), metavar="N", help="answers count modulo N")
    grade.add_argument("--fallback", action="store_true", help='accept "the final answer is ..." where there is no box')
    grade.add_argument("--show-disagreements", action="store_true", help="print rows where another opinion differs")
    grade.add_argument("--other", metavar="COLUMN", help="the other opinion; default: judgement, else is_correct")


def _grade(options: argparse.Namespace) -> None:
    from nemo_openmath.core.grader import Verdict
    from nemo_openmath.evaluation.share import ShareOfRight
    from nemo_openmath.grading import grade_file, show_disagreements

    share = ShareOfRight()
    counts = grade_file(
        options.file,
        options.output,
        workers=options.workers,
        time_limit=options.time_limit,
        memory_mb=options.memory_mb,
        fallback=options.fallback,
        take_modulo=options.take_modulo,
        skip_broken=options.skip_broken,
        on_row=lambda row: share.add(_problem_of(row), row["verdict"] == Verdict.EQUAL),
    )
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    interval = f" ({share.text()})" if share.tried else ""
    print(f"right: {share.right} of {share.tried}{interval}; with verdicts and reasons: {options.output}")
    if counts["no_answer"] == counts["total"]:
        print(f"NO ANSWER was found in any of the {counts['total']} rows: {_LOOK}", file=sys.stderr)
    if options.show_disagreements:
        show_disagreements(options.output, other=options.other)


def _problem_of(row: Mapping[str, Any]) -> str | None:
    """What tells the problem of a row: its id or its text; None where it has neither."""
    known = (str(row[column]) for column in ("problem_id", "problem") if row.get(column) is not None)
    return next(known, None)


_LOOK = "look whether the solutions end with \\boxed{...}, were cut by max_tokens, or stand in another column"
