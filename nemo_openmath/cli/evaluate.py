"""``openmath evaluate MODEL`` and its words ``plan``, ``decide``, ``rescore`` and ``table``.

A first word that is none of these is a model: its folder called ``plan`` is written ``./plan``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import REPLACE, CommandParser, at_least, verb
from nemo_openmath.cli.streams import run_async

MODEL = "MODEL"
"""The verb of this group that is not written."""


def add(groups: Any) -> None:
    words = words_of(groups)
    _add_rescore(words)


def words_of(groups: Any) -> Any:
    """Add the group and return that to which its words are added, each as a verb (:func:`cli.common.verb`)."""
    parser: CommandParser = groups.add_parser(
        "evaluate", help="measure a model on benchmarks; plan, decide and score again", description=__doc__
    )
    parser.otherwise = MODEL
    return parser.add_subparsers(title="verbs", metavar="VERB", required=True)


def counts(text: str) -> list[int]:
    """Read ``1,4,16`` as a list of whole numbers from 1 on: an argparse type."""
    number = at_least(1)
    return [number(part) for part in text.replace(",", " ").split()]


# -- rescore -----------------------------------------------------------------------------------------------------------


def _add_rescore(words: Any) -> None:
    rescore = verb(words, "rescore", "stored generations under another grader, judge, token limit or subset", _rescore)
    rescore.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="of a run (each of its evaluations), of a stage with generations, or a file of the reference's rows",
    )
    rescore.add_argument("--output", type=Path, required=True, metavar="DIR", help="rescored generations and changes")
    grader = rescore.add_argument_group("what grades")
    grader.add_argument(
        "--grader", choices=("openmath", "exact"), default="openmath", help="exact: equal texts alone are equal"
    )
    grader.add_argument("--modulo", type=at_least(1), metavar="N", help="answers count modulo N")
    grader.add_argument("--stored-answers", action="store_true", help="grade stored answers, extract none again")
    grader.add_argument(
        "--fallback", action="store_true", help='accept "the final answer is ..." where there is no box'
    )
    grader.add_argument(
        "--judge", type=Path, action="append", default=[], metavar="FOLDER", help="verdicts of this judging stage"
    )
    grader.add_argument(
        "--judged",
        choices=("undecided", "all", "none"),
        default="undecided",
        help="where judges' verdicts count: where the grader leaves it open, everywhere, nowhere",
    )
    grader.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes that compare answers")
    grader.add_argument("--time-limit", type=float, default=2.0, metavar="SECONDS", help="of one comparison")
    limit = rescore.add_argument_group("which tokens")
    limit.add_argument("--tokens", type=at_least(1), metavar="N", help="longer solutions are unfinished")
    limit.add_argument("--unfinished-answers", action="store_true", help="look for answers in unfinished ones, too")
    limit.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's, to cut texts at the limit")
    subset = rescore.add_argument_group("which generations")
    subset.add_argument("--samples", type=at_least(1), metavar="N", help="the first N of each problem")
    subset.add_argument("--mode", action="append", choices=("cot", "tir", "genselect", "competition"), help="repeat it")
    subset.add_argument("--problems", type=Path, metavar="FILE", help="these alone, with the answers that they have")
    subset.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="as extra.subset_for_metrics=aime24"
    )
    subset.add_argument("--k", type=counts, metavar="1,4,16", help="numbers of samples of maj@k and pass@k")
    subset.add_argument("--model", default="", metavar="NAME", help="that wrote rows which do not say it")
    rescore.add_argument("--replace", action="store_true", help=REPLACE)


def _rescore(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.rescore import RescoreRequest, rescore

    register_all()
    settings: dict[str, Any] = {
        "grader": options.grader,
        "take_modulo": options.modulo,
        "answers": "stored" if options.stored_answers else "text",
        "fallback": options.fallback,
        "judged": options.judged,
        "max_tokens": options.tokens or 0,
        "unfinished_answers": options.unfinished_answers,
        "tokenizer": None if options.tokenizer is None else str(options.tokenizer.resolve()),
        "samples": options.samples or 0,
        "modes": options.mode,
        "where": options.where,
    }
    request = RescoreRequest(
        options.folders,
        options.output,
        settings,
        options.problems,
        options.judge,
        options.k,
        options.model,
        {"workers": options.workers, "time_limit": options.time_limit},
        options.replace,
    )
    run_async(rescore(request))
