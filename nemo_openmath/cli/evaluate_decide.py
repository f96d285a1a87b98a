"""``openmath evaluate plan`` and ``openmath evaluate decide``: what a comparison needs, and sampling until it is
decided."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, at_least, overrides, verb
from nemo_openmath.cli.streams import run_async

_DECIDE = """a CONFIG.yaml (paths are relative to it):

  problems: ./benchmark.jsonl
  a: {label: before, engine: {kind: embedded, model: ./before}}
  b: {label: after, engine: {kind: embedded, model: ./after}}
  delta: 0.02            # the smallest difference that matters
  samples: 64            # of a problem and model, at most
  generate: {mode: cot, temperature: 0.7, max_tokens: 16384}

or a replay of stored solutions: a: {generations: FOLDER}, b: {generations: FOLDER}, and neither problems nor generate
"""


def add(words: Any) -> None:
    """Add the words ``plan`` and ``decide`` to the group ``evaluate``."""
    _add_plan(words)
    _add_decide(words)


def _add_plan(words: Any) -> None:
    plan = verb(
        words,
        "plan",
        "how many problems and samples a difference needs, and what a benchmark detects at all",
        _plan,
        interrupted=AGAIN,
    )
    which = plan.add_mutually_exclusive_group(required=True)
    which.add_argument("--benchmark", type=Path, metavar="FILE", help="file of problems, or the folder of a stage")
    which.add_argument("--problems", type=at_least(1), metavar="N", help="number of problems of the benchmark")
    plan.add_argument("--difference", type=float, required=True, metavar="D", help="such as 0.05: five points")
    plan.add_argument(
        "--pass-rates",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of solutions of a similar model, or of two: how hard problems are; default: assumed",
    )
    plan.add_argument("--mode", choices=("cot", "tir"), help="with --pass-rates: which solutions")
    plan.add_argument("--accuracy", type=float, metavar="P", help="assumed mean pass rate (default 0.6)")
    plan.add_argument("--spread", type=float, metavar="S", help="assumed standard deviation of it (default 0.35)")
    plan.add_argument(
        "--disagreement", type=float, metavar="T", help="standard deviation over problems of B minus A (default 0.1)"
    )
    plan.add_argument("--alpha", type=float, default=0.05, metavar="A", help="error of the decision")
    plan.add_argument("--power", type=float, default=0.8, metavar="P", help="chance to find the difference")
    plan.add_argument("--samples", type=at_least(1), default=64, metavar="N", help="of a problem and model, at most")
    plan.add_argument("--runs", type=at_least(10), default=200, metavar="N", help="comparisons that are simulated")
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulation")
    plan.add_argument("--json", action="store_true", help="print JSON")


def _add_decide(words: Any) -> None:
    decide = verb(words, "decide", "sample two models until it is decided which is better; run again to go on", _decide)
    decide.epilog = f"{decide.epilog}\n{_DECIDE}"
    decide.add_argument("job", type=Path, metavar="CONFIG.yaml", help="problems, a, b, delta, samples: see below")
    overrides(decide, "delta=0.03 samples=32")
    decide.add_argument("--output", type=Path, required=True, metavar="DIR", help="records, rounds and result.json")


def _plan(options: argparse.Namespace) -> None:
    import orjson

    from nemo_openmath.core.errors import UserError
    from nemo_openmath.evaluation.sequential.planning import PowerRequest, make_plan, plan_lines
    from nemo_openmath.evaluation.sequential.rates import ACCURACY, DISAGREEMENT, SPREAD, assumed

    disagreement = DISAGREEMENT if options.disagreement is None else options.disagreement
    if options.pass_rates is not None:
        if len(options.pass_rates) > 2:
            raise UserError("--pass-rates: more than two runs", remedy="give those of A, or of A and B")
        for name in ("accuracy", "spread", *(["disagreement"] if len(options.pass_rates) == 2 else [])):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is measured by --pass-rates", remedy="leave one of the two out")
        rates = _measured(options, disagreement)
    else:
        accuracy = ACCURACY if options.accuracy is None else options.accuracy
        rates = assumed(accuracy, SPREAD if options.spread is None else options.spread, disagreement)
    number = options.problems
    if options.benchmark is not None:
        from nemo_openmath.recipe.decide_file import read_benchmark

        number = len(read_benchmark(options.benchmark))
    plan = make_plan(
        PowerRequest(
            number,
            options.difference,
            rates,
            alpha=options.alpha,
            power=options.power,
            samples=options.samples,
            runs=options.runs,
            seed=options.seed,
        )
    )
    if options.json:
        print(orjson.dumps(plan.to_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(plan_lines(plan)))


def _measured(options: argparse.Namespace, disagreement: float) -> Any:
    from nemo_openmath.core.records import Mode
    from nemo_openmath.evaluation.sequential.rates import measured
    from nemo_openmath.evaluation.sequential.stored import rates_of
    from nemo_openmath.grading import GradingPool

    mode = None if options.mode is None else Mode(options.mode)
    with GradingPool() as pool:
        right, counts = rates_of(options.pass_rates, mode, pool)
    return measured([str(folder) for folder in options.pass_rates], right, counts, disagreement)


def _decide(options: argparse.Namespace) -> None:
    from nemo_openmath.recipe.decide import decide

    run_async(decide(options.job, options.overrides, options.output))
