"""``openmath generate``, ``grade``, ``sandbox``, ``serve``, ``sft``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import orjson

from nemo_openmath.cli.common import at_least, overrides, shard_of, verb
from nemo_openmath.cli.streams import run_async
from nemo_openmath.inference.serving.options import ServedEngine, add_embedded_options, server_arguments

_ANSWERS = "JSON Lines, JSON, CSV or Parquet with expected_answer and predicted_answer, generation, output, ..."


GENERATE_EXAMPLE = """\
problems: ./problems.jsonl   # JSON Lines, JSON, CSV or Parquet: `problem`, and where known `expected_answer`
engine: {kind: embedded, model: ./my-model}   # a Hugging Face folder; or a server:
# engine: {kind: http, urls: [http://127.0.0.1:8000/v1], model: my-model, tokenizer: ./my-model}
generate: {mode: cot, samples: 4, temperature: 0.6, top_p: 0.95, max_tokens: 32768}
seed: 1
"""
SFT_EXAMPLE = """\
model: ./my-model            # a Hugging Face folder
output: ./my-training        # checkpoints/step-*, metrics.jsonl
data: {folder: ./packs, batch_samples: 1024, epochs: 6}   # packed by a sft.pack stage
training: {lr: 1e-4, warmup: 0.1, checkpoints: {every: 500, average_k: 4}}
"""
_GENERATE = f"a CONFIG.yaml (paths are relative to it):\n\n{textwrap.indent(GENERATE_EXAMPLE, '  ')}\n" + (
    "every setting of `generate`: openmath recipe stages rollout.generate; commented: examples/generate.yaml"
)
_SERVE = """\
options of another engine go behind --, unchanged:
  openmath serve MODEL --engine vllm --port 8001 -- --tensor-parallel-size 2
"""
_SFT = f"a JOB.yaml (paths are relative to it):\n\n{textwrap.indent(SFT_EXAMPLE, '  ')}\n" + (
    "every setting of `training`: openmath recipe stages training.sft; commented: examples/sft-job.yaml"
)


_SAVED = "what was saved is kept, the same command goes on from there"
_RESUMED = "the rows that were graded are kept beside the output, the same command goes on from there"
_ENDED = "the program was ended"


def add(groups: Any) -> None:
    sft = verb(
        groups, "sft", "train on packed data with this machine's processes (a job file, YAML)", _sft, interrupted=_SAVED
    )
    sft.epilog = f"{sft.epilog}\n\n{_SFT}"
    sft.add_argument("job", type=Path, metavar="JOB.yaml", help="model, data, output, training: see below")
    overrides(sft, "training.lr=1e-4 training.parallel.tp=2")
    sft.add_argument("--processes", type=at_least(1), default=1, help="ranks; tp x pp x cp of them form a replica")
    sft.add_argument("--threads", type=at_least(1), default=1, help="of each process, on CPU")

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
    grade.add_argument("--time-limit", type=float, default=1.0, metavar="SECONDS", help="of one pair")
    grade.add_argument("--memory-mb", type=at_least(256), default=1024, metavar="MIB", help="of one worker")
    grade.add_argument("--take-modulo", type=at_least(1), metavar="N", help="answers count modulo N")
    grade.add_argument("--fallback", action="store_true", help='accept "the final answer is ..." where there is no box')
    grade.add_argument("--show-disagreements", action="store_true", help="print rows where another opinion differs")
    grade.add_argument("--other", metavar="COLUMN", help="the other opinion; default: judgement, else is_correct")

    serve = verb(groups, "serve", "serve a model over the OpenAI-compatible protocol, watched and restarted", _serve)
    serve.epilog = f"{serve.epilog}\n{_SERVE}"
    serve.add_argument("model", metavar="MODEL", help="Hugging Face folder")
    serve.add_argument("--engine", choices=get_args(ServedEngine), default="embedded", help="default: %(default)s")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: a free one, which is said")
    serve.add_argument("--name", help="name it is served under; default: the folder's")
    serve.add_argument("--address-file", type=Path, help="write the URL there whenever the server has (re)started")
    serve.add_argument("--log", type=Path, help="keep all that the server prints there; its last words are said anyway")
    serve.add_argument("--start-seconds", type=at_least(1), default=1800, metavar="N",
                       help="how long loading may take; default: %(default)s")  # fmt: skip
    add_embedded_options(serve.add_argument_group("options of the embedded engine"))
    serve.set_defaults(behind=(), unknown=())

    generate = verb(groups, "generate", "sample solutions of a file of problems; run again to go on", _generate)
    generate.epilog = f"{generate.epilog}\n\n{_GENERATE}"
    generate.add_argument("job", type=Path, metavar="CONFIG.yaml", help="problems, engine, generate: see below")
    overrides(generate, "generate.samples=8")
    generate.add_argument("--output", type=Path, required=True, metavar="DIR", help="solutions/ in it holds the result")
    generate.add_argument("--shard", metavar="I/N", default="0/1", help="job I (from 0) of an array of N")
    prepare = "before an array of jobs: read the problems, keep what there is of fewer samples"
    generate.add_argument("--prepare", action="store_true", help=prepare)
    again = "make changed stages anew even where that throws long work away"
    generate.add_argument("--replace", action="store_true", help=again)

    sandbox = groups.add_parser("sandbox", help="run a model's Python", description="Isolated Python sessions.")
    verbs = sandbox.add_subparsers(title="verbs", metavar="VERB", required=True)
    run = verb(verbs, "exec", "run one program and print the result as a JSON object", _exec, interrupted=_ENDED)
    run.epilog = f"{run.epilog}\nexit code 0 whatever became of the program: `status` in the object says it"
    run.add_argument("file", type=Path, metavar="FILE.py")
    run.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="of the program")
    run.add_argument("--memory", type=int, default=1024, metavar="MB", help="of the program")
    run.add_argument("--unsafe", action="store_true", help="run even where a protection is missing on this system")
    service = verb(verbs, "serve", "serve one sandbox to all processes of a node, until SIGTERM", _serve_sandbox)
    service.add_argument("--host", default="127.0.0.1", help="another than loopback needs a token")
    service.add_argument("--port", type=int, default=8700, help="0: a free one, named in the log")
    service.add_argument("--socket", type=Path, metavar="PATH", help="a unix socket instead of host and port")
    service.add_argument(
        "--token-env", default="OPENMATH_SANDBOX_TOKEN", metavar="NAME", help="variable with the token"
    )
    service.add_argument("--workers", type=int, help="executions at the same time; default: the processors")
    service.add_argument("--queue", type=int, default=1024, help="executions that may wait; more are refused (429)")
    service.add_argument("--sessions", type=int, default=1024, help="live sessions")
    service.add_argument("--idle", type=float, default=600.0, metavar="SECONDS", help="end sessions unused for so long")
    service.add_argument("--drain", type=float, default=30.0, metavar="SECONDS", help="for what runs at SIGTERM")
    service.add_argument(
        "--unsafe", action="store_true", help="serve even where a protection is missing on this system"
    )


def _sft(options: argparse.Namespace) -> None:
    from nemo_openmath.core.progress import Progress
    from nemo_openmath.core.records.manifest import refuse_inside_stage
    from nemo_openmath.training.job import read_job
    from nemo_openmath.training.launch import launch
    from nemo_openmath.training.metrics import show

    output = read_job(options.job, options.overrides).output
    if output.resolve() != options.job.resolve().parent:  # not the training of a stage, that goes on
        refuse_inside_stage(output)

    def run(on_line: Callable[[str], None]) -> None:
        launch(options.processes, options.job, overrides=options.overrides, threads=options.threads, on_line=on_line)

    if not sys.stdout.isatty():  # a log: every line
        run(print)
    else:
        with Progress("sft") as progress:
            run(lambda line: show(line, progress))
    last = max(output.glob("checkpoints/step-*"))
    print(f"trained: {last}\nnext: openmath convert megatron-to-hf {last} {output}-hf")


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


def _serve(options: argparse.Namespace) -> None:
    from nemo_openmath.inference.serving.launch import ServerConfig
    from nemo_openmath.inference.serving.supervise import serve

    config = ServerConfig(
        model=options.model,
        engine=options.engine,
        host=options.host,
        port=options.port,
        name=options.name,
        arguments=server_arguments(options, options.behind, options.unknown),
        log=options.log,
        address_file=options.address_file,
        start_s=options.start_seconds,
    )
    asyncio.run(serve(config))


def _generate(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.generate import generate
    from nemo_openmath.recipe.selection import StageSelection

    register_all()
    shard, shards = shard_of(options.shard)
    asked = StageSelection(shard=shard, shards=shards, prepare=options.prepare, replace=options.replace)
    run_async(generate(options.job, options.overrides, options.output, asked))


def _exec(options: argparse.Namespace) -> None:
    from nemo_openmath.sandbox import Limits, exec_file

    limits = Limits(wall_s=options.timeout, cpu_s=options.timeout, memory_mb=options.memory)
    result = exec_file(options.file, limits, unsafe=options.unsafe)
    print(orjson.dumps(asdict(result)).decode())


def _serve_sandbox(options: argparse.Namespace) -> None:
    from nemo_openmath.sandbox.service import ServiceSettings, serve

    settings = ServiceSettings(
        host=options.host,
        port=options.port,
        socket=options.socket,
        token_env=options.token_env,
        workers=options.workers,
        queue=options.queue,
        sessions=options.sessions,
        idle_s=options.idle,
        drain_s=options.drain,
        unsafe=options.unsafe,
    )
    asyncio.run(serve(settings))
