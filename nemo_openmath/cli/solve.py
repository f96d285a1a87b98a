"""``openmath solve``: problems under a clock, as in the competition; from a file, one question, or over HTTP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import ALLOW_HOST, REPLACE, at_least, verb
from nemo_openmath.cli.streams import run_async
from nemo_openmath.core.errors import UserError


def add(groups: Any) -> None:
    solve = verb(groups, "solve", "solve problems under a clock, as in the competition; run again to go on", _solve)
    text = "problems: JSON Lines, JSON, CSV, Parquet, or the folder of a stage; -: one question on standard input"
    solve.add_argument("file", nargs="?", metavar="FILE", help=text)
    solve.add_argument("--problem", metavar="TEXT", help="one question, instead of a file")
    solve.add_argument("--output", type=Path, metavar="DIR", help="answers and attempts; needed with a file")
    solve.add_argument("--replace", action="store_true", help=REPLACE)
    _add_server(solve.add_argument_group("over HTTP"))
    _add_engine(solve.add_argument_group("what generates"))
    _add_time(solve.add_argument_group("the clock (defaults: section 6.3.4 of the paper)"))
    _add_batch(solve.add_argument_group("the batch and its vote (defaults: section 6.3.3)"))
    _add_solutions(solve.add_argument_group("how solutions are drawn"))


def _add_server(group: Any) -> None:
    group.add_argument(
        "--serve", action="store_true", help="answer POST /solve, one question at a time; GET / shows it"
    )
    group.add_argument("--host", default="127.0.0.1", help="whoever reaches it may ask")
    group.add_argument("--port", type=int, default=8500, help="0: a free one, which is said")
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=ALLOW_HOST)
    group.add_argument("--waiting", type=at_least(0), default=16, metavar="N", help="questions that may wait")


def _add_engine(group: Any) -> None:
    group.add_argument("--model", required=True, metavar="DIR|NAME", help="model folder; with --server its name there")
    group.add_argument("--server", action="append", default=[], metavar="URL", help="of the model; repeat it")
    group.add_argument("--tokenizer", type=Path, metavar="DIR", help="of a model on a server: its tokenizer's folder")
    group.add_argument("--api", choices=("completions", "chat"), default="completions", help="of the server")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (auto: a GPU where there is one)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32 on a CPU")
    group.add_argument("--slots", type=at_least(1), metavar="N", help="decoded at once (default: 64, or what fits)")
    group.add_argument("--drafter", metavar="DIR|ngram|none", help="what guesses tokens (the results stay the same)")
    group.add_argument("--sandbox-workers", type=at_least(1), metavar="N", help="programs at once (default: cores)")
    group.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes that compare answers")


def _add_time(group: Any) -> None:
    group.add_argument("--base-seconds", type=seconds, default=350.0, metavar="S", help="of every problem")
    group.add_argument("--bank-seconds", type=seconds, default=210.0, metavar="S", help="more, from what others left")
    total = "of the whole contest (default: the base time of all problems)"
    group.add_argument("--total-seconds", type=seconds, metavar="S", help=total)


def seconds(text: str) -> float:
    """Read a number of seconds: an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def _add_batch(group: Any) -> None:
    group.add_argument("--batch", type=at_least(1), metavar="N", help="solutions begun together (default: 16)")
    agree = "end when the first N that finish agree, or later N + 1 (default: 4)"
    group.add_argument("--agree", type=at_least(1), metavar="N", help=agree)
    group.add_argument("--modulo", type=at_least(1), metavar="N", help="answers: whole numbers, taken modulo N")
    policy = "YAML with more settings of the solver, as contest search writes it"
    group.add_argument("--policy", type=Path, metavar="FILE.yaml", help=policy)


def _add_solutions(group: Any) -> None:
    group.add_argument("--mode", choices=("cot", "tir"), default="tir", help="text, or text with code")
    temperature = "0 is greedy, as in the paper, whose engine left something to chance (default: 0.7)"
    group.add_argument("--temperature", type=float, metavar="T", help=temperature)
    group.add_argument("--top-p", type=float, metavar="P", help="share of the probability (default: 0.95)")
    group.add_argument("--tokens", type=at_least(1), metavar="N", help="of a solution, at most (default: 16384)")
    calls = "in tir: programs of a solution (default: 6)"
    group.add_argument("--code-calls", type=at_least(1), metavar="N", help=calls)
    group.add_argument("--tool-format", choices=("tags", "fences", "tool_calls"), help="in tir (default: tags)")
    group.add_argument("--prompt", type=Path, metavar="FILE", help="a prompt of your own")
    group.add_argument("--seed", type=int, default=0, help="of all draws")


def _solve(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.solve import SolveRequest, solve

    if options.serve:
        _serve(options)
        return
    problems = _problems(options)
    folder, engine = _engine(options)
    register_all()
    contest: dict[str, Any] = {
        "mode": options.mode,
        "base_seconds": options.base_seconds,
        "bank_seconds": options.bank_seconds,
        "total_seconds": options.total_seconds,
        "solver": _choices(options).content(),
    }
    if options.prompt is not None:
        contest["prompt"] = str(options.prompt.resolve())
    request = SolveRequest(
        folder,
        problems,
        options.output,
        contest,
        engine,
        {} if options.sandbox_workers is None else {"workers": options.sandbox_workers},
        options.workers,
        options.seed,
        options.replace,
    )
    run_async(solve(request))


def _serve(options: argparse.Namespace) -> None:
    from nemo_openmath.competition.serving.opening import SolveServiceSettings
    from nemo_openmath.competition.serving.server import serve
    from nemo_openmath.core.listening import HostNames, check_address
    from nemo_openmath.core.records import Mode
    from nemo_openmath.inference.open import EngineConfig

    if options.file is not None or options.problem is not None or options.output is not None:
        raise UserError("--serve answers what is posted", remedy="leave out FILE, --problem and --output")
    check_address(options.host, options.port)
    HostNames.of(options.host, options.allow_host)
    if options.base_seconds <= 0 or options.total_seconds == 0:
        raise UserError("--base-seconds and --total-seconds have to be above 0", remedy="choose more")
    folder, engine = _engine(options)
    engine = {"model": str(folder.resolve())} | engine
    if "tokenizer" in engine:
        engine |= {"tokenizer": Path(engine["tokenizer"]), "urls": tuple(engine["urls"])}
    settings = SolveServiceSettings(
        EngineConfig(**engine),
        folder,
        _choices(options).settings(),
        Mode.TIR if options.mode == "tir" else Mode.COT,
        options.prompt,
        options.base_seconds,
        options.bank_seconds,
        options.total_seconds,
        sandbox_workers=options.sandbox_workers,
        workers=options.workers,
        seed=options.seed,
        waiting_most=options.waiting,
    )
    run_async(serve(settings, options.host, options.port, options.allow_host))


def _problems(options: argparse.Namespace) -> Path | str:
    """Return the file of problems, or the text of one question."""
    if (options.file is None) == (options.problem is None):
        raise UserError("solve what?", remedy="give FILE, or - for standard input, or --problem TEXT, or --serve")
    if options.problem is not None:
        return str(options.problem)
    return sys.stdin.read() if options.file == "-" else Path(options.file)


def _engine(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the model, or of its tokenizer, and how the model generates."""
    from nemo_openmath.recipe.evaluation_engines import engine_settings

    if not options.server:
        if options.tokenizer is not None:
            raise UserError("--tokenizer is of a model on a server", remedy="give --server URL, or leave it out")
        model, name = Path(options.model), None
    elif options.tokenizer is None:
        raise UserError("--server is given, and --tokenizer is not", remedy="give the folder of the model's tokenizer")
    else:
        model, name = options.tokenizer, options.model
    return model, engine_settings(
        model,
        options.server,
        name,
        api=options.api,
        device=options.device,
        dtype=options.dtype,
        slots=options.slots,
        drafter=options.drafter,
    )


def _choices(options: argparse.Namespace) -> Any:
    from nemo_openmath.competition.serving.settings import SolverChoices

    calls = options.code_calls
    given = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.tokens,
        "budgets": None if calls is None else [calls, calls],
        "tool_format": options.tool_format,
    }
    rollout = {name: value for name, value in given.items() if value is not None}
    return SolverChoices(options.policy, options.batch, options.agree, options.modulo, rollout)
