"""``openmath contest``: rehearse contests with stored solutions, search for a policy, see where points are lost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_openmath.cli.common import AGAIN, at_least, verb
from nemo_openmath.core.errors import UserError

if TYPE_CHECKING:
    from nemo_openmath.competition.answers import AnswerRule
    from nemo_openmath.competition.lab.command import Asked

_POLICY = "YAML with settings of a policy; default: the paper's"


def add(groups: Any) -> None:
    contest = groups.add_parser(
        "contest", help="rehearse contests with stored solutions, search for a policy", description=__doc__
    )
    verbs = contest.add_subparsers(title="verbs", metavar="VERB", required=True)
    replay = verb(
        verbs, "replay", "score policies on contests of stored solutions, at any speed", _replay, interrupted=AGAIN
    )
    _add_common(replay)
    replay.add_argument("--policy", type=Path, action="append", default=[], metavar="FILE.yaml", help=_POLICY)
    search = verb(
        verbs, "search", "find a policy on half of the problems, judge it on the others", _search, interrupted=AGAIN
    )
    _add_common(search)
    search.add_argument("--choices", type=Path, required=True, metavar="FILE.yaml", help="settings and their values")
    loss = verb(verbs, "loss", "divide the lost points into coverage, selection and time", _loss, interrupted=AGAIN)
    _add_common(loss)
    loss.add_argument("--policy", type=Path, metavar="FILE.yaml", help=_POLICY)
    calibrate = verb(
        verbs,
        "calibrate",
        "fit the rule bayes on half of the problems, judge it on the others",
        _calibrate,
        interrupted=AGAIN,
    )
    _add_common(calibrate)
    calibrate.add_argument("--policy", type=Path, metavar="FILE.yaml", help=_POLICY)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rollouts",
        type=Path,
        nargs="+",
        metavar="ROLLOUTS",
        help="folders of graded solutions; or tables with problem_id, answer, right, tokens (seconds, entropy, whole)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the numbers and a page there")
    parser.add_argument(
        "--speed",
        default="stored",
        metavar="CURVE",
        help="solutions at once:tokens/s of each, such as 1:110,8:72,16:51; stored: the times that they took",
    )
    parser.add_argument("--mode", choices=["cot", "tir"], help="only solutions of this mode")
    parser.add_argument(
        "--selections", type=Path, nargs="+", default=[], metavar="DIR", help="folders of genselect.select"
    )
    parser.add_argument(
        "--code-seconds", type=_seconds, default=0.0, metavar="S", help="of a run of code whose time was not kept"
    )
    parser.add_argument("--problems", type=at_least(0), default=0, metavar="N", help="of a contest; 0: all, at most 50")
    parser.add_argument("--base-seconds", type=_above_zero, default=350.0, metavar="S", help="of every problem")
    parser.add_argument("--bank-seconds", type=_seconds, default=210.0, metavar="S", help="from the bank, at most")
    parser.add_argument("--total-seconds", type=_above_zero, metavar="S", help="of a whole contest")
    parser.add_argument("--reserve-seconds", type=_seconds, default=10.0, metavar="S", help="that each problem keeps")
    parser.add_argument(
        "--modulo", type=at_least(1), metavar="N", help="answers: whole numbers, taken modulo N (AIMO-2)"
    )
    parser.add_argument("--most", type=at_least(0), metavar="N", help="answers: whole numbers from 0 to N (AIMO-3)")
    parser.add_argument("--contests", type=at_least(1), default=200, metavar="N", help="contests that are rehearsed")
    parser.add_argument("--draws", type=at_least(1), default=32, metavar="N", help="draws of each problem's solutions")
    parser.add_argument("--twice", action="store_true", help="run each problem twice, for half a point each (AIMO-3)")
    parser.add_argument("--seed", type=int, default=0, help="of contests and draws")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}") from None
    if not 0 <= seconds < 1e8:
        raise argparse.ArgumentTypeError(f"{text} is out of range; choose 0 or more")
    return seconds


def _above_zero(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise argparse.ArgumentTypeError("choose more than 0 seconds")
    return seconds


def _asked(options: argparse.Namespace) -> Asked:
    from nemo_openmath.competition.lab.command import Asked
    from nemo_openmath.competition.lab.contest import ContestSettings
    from nemo_openmath.core.records import Mode

    settings = ContestSettings(
        options.problems,
        options.base_seconds,
        options.bank_seconds,
        options.total_seconds,
        options.reserve_seconds,
        options.contests,
        options.draws,
        options.twice,
        options.seed,
    )
    return Asked(
        tuple(options.rollouts),
        options.speed,
        settings,
        options.output,
        None if options.mode is None else Mode(options.mode),
        tuple(options.selections),
        options.code_seconds,
        _rule(options),
    )


def _rule(options: argparse.Namespace) -> AnswerRule:
    """Return which answers the contest takes. Raises UserError."""
    from nemo_openmath.competition.answers import AnswerRule

    if options.modulo is None and options.most is None:
        return AnswerRule()
    most = options.modulo - 1 if options.most is None else options.most
    try:
        return AnswerRule(integers=True, most=most, modulo=options.modulo)
    except ValueError as error:
        raise UserError(f"--most {most} and --modulo {options.modulo}: {error}") from error


def _replay(options: argparse.Namespace) -> None:
    from nemo_openmath.competition.lab.command import replay_policies

    print(*replay_policies(_asked(options), options.policy), sep="\n")


def _search(options: argparse.Namespace) -> None:
    from nemo_openmath.competition.lab.command import search_policies

    print(*search_policies(_asked(options), options.choices), sep="\n")


def _loss(options: argparse.Namespace) -> None:
    from nemo_openmath.competition.lab.command import divide_loss

    print(*divide_loss(_asked(options), options.policy), sep="\n")


def _calibrate(options: argparse.Namespace) -> None:
    from nemo_openmath.competition.lab.command import calibrate_prior

    print(*calibrate_prior(_asked(options), options.policy), sep="\n")
