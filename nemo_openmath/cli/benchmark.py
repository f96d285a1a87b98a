"""``openmath benchmark list|prepare``: the benchmarks that are known, and a file of one for ``openmath evaluate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, verb
from nemo_openmath.core.errors import UserError


def add(groups: Any) -> None:
    parser = groups.add_parser("benchmark", help="known benchmarks; make the file of one", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb(verbs, "list", "the benchmarks that are known: problems, parts, dataset", _list, interrupted=AGAIN)
    prepare = verb(verbs, "prepare", "read, check and write a benchmark", _prepare, interrupted=AGAIN)
    prepare.add_argument("name", metavar="NAME", help="of openmath benchmark list, or any other")
    prepare.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|datasets",
        help="file, folder, or the library datasets",
    )
    prepare.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON Lines for openmath evaluate")
    prepare.add_argument("--part", default="", metavar="NAME", help="a part of it, as aime24 of comp-math-24-25")
    prepare.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="WHAT=COLUMN",
        help="of problem, expected_answer, id, subset_for_metrics; solution: its last box is the answer; repeat it",
    )
    prepare.add_argument("--dataset", default="", metavar="NAME", help="of the Hub, or its folder (default: the known)")
    prepare.add_argument("--split", default="", help="of the dataset (default: the known one, else test)")
    prepare.add_argument("--config", metavar="NAME", help="of the dataset")
    prepare.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a training set: what it holds",
    )


def _list(_: argparse.Namespace) -> None:
    from nemo_openmath.evaluation.benchmarks.known import KNOWN

    for benchmark in KNOWN:
        dataset = f"; {benchmark.dataset} ({benchmark.split})" if benchmark.dataset else ""
        note = f"; {benchmark.note}" if benchmark.note else ""
        print(f"{benchmark.name:<16} {benchmark.problems:>4}  {benchmark.title}{dataset}{note}")
        for part in benchmark.parts:
            print(f"  {part.name:<14} {part.problems:>4}")
    print("any other: openmath benchmark prepare NAME --from FILE --columns problem=...,expected_answer=...")


def _prepare(options: argparse.Namespace) -> None:
    from nemo_openmath.evaluation.benchmarks.prepare import PrepareRequest, prepare

    request = PrepareRequest(
        options.name,
        options.source,
        options.output,
        options.dataset,
        options.split,
        options.config,
        options.part,
        _columns(options.columns),
        options.against,
    )
    prepared = prepare(request)
    for line in prepared.lines():
        print(line, file=sys.stderr if prepared.wrong_count else sys.stdout)
    print(f"next: openmath evaluate MODEL --benchmark {options.output} --output DIR")


def _columns(given: list[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for text in (part for words in given for part in words.split(",")):
        name, _, column = text.partition("=")
        if not name or not column:
            raise UserError(f"--columns {text!r} names no column", remedy="write problem=question,id=number")
        columns[name] = column
    return columns
