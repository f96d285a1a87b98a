"""``openmath sandbox exec|serve``: a model's Python, isolated."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.cli.common import seconds, verb

_ENDED = "the program was ended"


def add(groups: Any) -> None:
    sandbox = groups.add_parser("sandbox", help="run a model's Python", description="Isolated Python sessions.")
    verbs = sandbox.add_subparsers(title="verbs", metavar="VERB", required=True)
    run = verb(verbs, "exec", "run one program and print the result as a JSON object", _exec, interrupted=_ENDED)
    run.epilog = f"{run.epilog}\nexit code 0 whatever became of the program: `status` in the object says it"
    run.add_argument("file", type=Path, metavar="FILE.py")
    run.add_argument("--timeout", type=seconds(), default=10.0, metavar="SECONDS", help="of the program")
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
    service.add_argument(
        "--idle", type=seconds(), default=600.0, metavar="SECONDS", help="end sessions unused for so long"
    )
    service.add_argument(
        "--drain", type=seconds(zero=True), default=30.0, metavar="SECONDS", help="for what runs at SIGTERM"
    )
    service.add_argument(
        "--unsafe", action="store_true", help="serve even where a protection is missing on this system"
    )


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
