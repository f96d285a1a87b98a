"""``openmath evaluate MODEL`` and its words ``plan``, ``decide``, ``compare``, ``rescore`` and ``table``.

A first word that is none of these is a model: its folder called ``plan`` is written ``./plan``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli import evaluate_compare, evaluate_decide
from nemo_openmath.cli.common import AGAIN, REPLACE, CommandParser, at_least, seconds, verb
from nemo_openmath.cli.streams import run_async

MODEL = "MODEL"
"""The verb of this group that is not written."""


def add(groups: Any) -> None:
    words = words_of(groups)
    _add_model(words)
    _add_rescore(words)
    _add_table(words)
    evaluate_compare.add(words)
    evaluate_decide.add(words)


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


# -- a model ----------------------------------------------------------------------------------------------------------

_WORDS = """other words: openmath evaluate plan (what a difference needs), decide (two models, until it is decided),
compare (runs on the same problems, as a page), rescore (stored solutions under another grader, limit, judge), table
(the paper's tables); a model folder called so is written ./rescore"""


class _OwnName:
    """Adds a parser that goes by the group's own name."""

    def __init__(self, words: Any, name: str):
        self._words, self._name = words, name

    def add_parser(self, name: str, **settings: Any) -> Any:
        return self._words.add_parser(name, prog=self._name, **settings)


def _add_model(words: Any) -> None:
    model = verb(_OwnName(words, "openmath evaluate"), MODEL, "a model on benchmarks; run again to go on", _evaluate)
    model.epilog = f"{model.epilog}\n{_WORDS}\n"
    model.add_argument(
        "model", type=Path, metavar="MODEL", help="a Hugging Face folder; with --server the folder of its tokenizer"
    )
    model.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="problems with answers; repeat it",
    )
    model.add_argument("--output", type=Path, required=True, metavar="DIR", help="solutions, verdicts and results")
    model.add_argument(
        "--mode",
        action="append",
        choices=("cot", "tir", "genselect"),
        help="repeat it; genselect chooses among the solutions of each other mode (default: cot)",
    )
    drawn = model.add_argument_group("how solutions are drawn (defaults: section 5.2 of the paper)")
    drawn.add_argument("--samples", type=at_least(1), default=64, metavar="N", help="solutions of a problem")
    drawn.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="so many problems (default: all)")
    drawn.add_argument("--seed", type=int, default=0, help="of all draws")
    drawn.add_argument("--tokens", type=at_least(1), default=32768, metavar="N", help="of a solution, at most")
    drawn.add_argument("--temperature", type=float, default=0.6, help="0 is greedy")
    drawn.add_argument("--top-p", type=float, default=0.95, help="share of the probability that is drawn from")
    drawn.add_argument("--code-calls", type=at_least(1), default=8, metavar="N", help="in tir: programs of a solution")
    drawn.add_argument(
        "--tool-format",
        choices=("tags", "fences", "tool_calls"),
        default="tags",
        help="in tir: tags of the released models, fences of Markdown, or a chat server's tools",
    )
    drawn.add_argument(
        "--prompt", action="append", default=[], metavar="MODE=FILE", help="a prompt of your own, as tir=my-prompt.txt"
    )
    chosen = model.add_argument_group("genselect (defaults: Table 7)")
    chosen.add_argument("--candidates", type=at_least(2), default=16, metavar="N", help="solutions of one choice")
    chosen.add_argument("--rounds", type=at_least(1), default=64, metavar="N", help="choices of a problem")
    chosen.add_argument("--select-tokens", type=at_least(1), default=2048, metavar="N", help="of a choice, at most")
    chosen.add_argument(
        "--solutions",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="of another model's evaluation",
    )
    engine = model.add_argument_group("what generates")
    engine.add_argument("--server", action="append", default=[], metavar="URL", help="of the model; repeat it")
    engine.add_argument("--model", dest="served", metavar="NAME", help="under which the server knows the model")
    engine.add_argument("--api", choices=("completions", "chat"), default="completions", help="of the server")
    engine.add_argument(
        "--wait",
        type=seconds(zero=True),
        default=60.0,
        metavar="SECONDS",
        help="wait so long for servers at the beginning",
    )
    engine.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (auto: a GPU where there is one)")
    engine.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32 on a CPU")
    engine.add_argument("--slots", type=at_least(1), metavar="N", help="decoded at once (default: 64, or what fits)")
    engine.add_argument("--drafter", metavar="DIR|ngram|none", help="what guesses tokens (the results stay the same)")
    engine.add_argument("--sandbox-workers", type=at_least(1), metavar="N", help="programs at once (default: cores)")
    judge = model.add_argument_group("verdicts")
    judge.add_argument("--judge", default="", metavar="DIR|URL", help="model that decides what the grader leaves open")
    judge.add_argument("--judge-model", metavar="NAME", help="under which its server knows it")
    judge.add_argument("--judge-tokenizer", type=Path, metavar="DIR", help="of a judge on a server")
    judge.add_argument("--judge-votes", type=at_least(1), default=1, metavar="N", help="of the judge on an answer")
    judge.add_argument(
        "--judge-attempts", type=at_least(1), default=3, metavar="N", help="at a vote, until a reply can be read"
    )
    judge.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes that compare answers")
    model.add_argument("--replace", action="store_true", help=REPLACE)


def _evaluate(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.evaluate import EvaluateRequest, Sampled, evaluate
    from nemo_openmath.recipe.evaluation_engines import engine_settings, judge_settings, prompt_files

    register_all()
    request = EvaluateRequest(
        model=options.model,
        benchmarks=options.benchmark,
        output=options.output,
        modes=options.mode or ["cot"],
        sampled=Sampled(
            samples=options.samples,
            temperature=options.temperature,
            top_p=options.top_p,
            tokens=options.tokens,
            code_calls=options.code_calls,
            tool_format=options.tool_format,
            prompts=prompt_files(options.prompt),
            candidates=options.candidates,
            rounds=options.rounds,
            select_tokens=options.select_tokens,
        ),
        limit=options.limit,
        seed=options.seed,
        engine=engine_settings(
            options.model,
            options.server,
            options.served,
            api=options.api,
            device=options.device,
            dtype=options.dtype,
            slots=options.slots,
            drafter=options.drafter,
        ),
        judge=options.judge,
        judge_server=judge_settings(options.judge, options.judge_model, options.judge_tokenizer, options.server),
        judge_votes=options.judge_votes,
        judge_attempts=options.judge_attempts,
        wait_s=options.wait,
        solutions=options.solutions,
        workers=options.workers,
        sandbox={} if options.sandbox_workers is None else {"workers": options.sandbox_workers},
        replace=options.replace,
    )
    run_async(evaluate(request))


# -- the paper's tables ------------------------------------------------------------------------------------------------


def _add_table(words: Any) -> None:
    table = verb(words, "table", "the shapes of the paper's tables, from evaluations", _table, interrupted=AGAIN)
    table.add_argument("folders", nargs="+", metavar="[NAME=]DIR", help="--output of openmath evaluate, one a model")
    table.add_argument("--table", type=int, choices=(4, 6, 7, 8, 9), required=True, help="number of the paper's table")


def _table(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.evaluation.paper_tables import EvaluatedModel, paper_table

    made = paper_table(options.table, [EvaluatedModel.read(text) for text in options.folders])
    console = Console()
    console.print(made.table)
    for line in made.missing:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


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
