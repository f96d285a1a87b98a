"""``openmath evaluate compare``: runs on the same problems, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, at_least, verb


def add(words: Any) -> None:
    """Add the word ``compare`` to the group ``evaluate``."""
    compare = verb(
        words, "compare", "runs on the same problems: curves, differences, a page", _compare, interrupted=AGAIN
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]DIR",
        help="of an evaluation, a run, rescored or solved problems, or a stage with graded solutions; of one run its "
        "checkpoints are compared",
    )
    compare.add_argument("--output", type=Path, required=True, metavar="DIR", help="the page, Markdown and JSON")
    compare.add_argument(
        "--mode", action="append", choices=("cot", "tir", "genselect", "competition"), help="repeat it (default: all)"
    )
    compare.add_argument(
        "--viewer",
        default="http://127.0.0.1:8800",
        metavar="URL",
        help='address of openmath view, to which problems are linked; "" for no links',
    )
    compare.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes that compare answers")
    compare.add_argument("--seed", type=int, default=0, help="of votes of more than 1000 samples")


def _compare(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.core.records import Mode
    from nemo_openmath.recipe.compare_runs import CompareRequest, compare

    register_all()
    modes = None if options.mode is None else [Mode(mode) for mode in options.mode]
    compare(CompareRequest(options.runs, options.output, modes, options.viewer, options.workers, options.seed))
