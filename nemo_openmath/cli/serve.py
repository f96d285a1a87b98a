"""``openmath serve``: a model over the OpenAI-compatible protocol."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any, get_args

from nemo_openmath.cli.common import at_least, verb
from nemo_openmath.inference.serving.options import ServedEngine, add_embedded_options, server_arguments

_SERVE = """\
options of another engine go behind --, unchanged:
  openmath serve MODEL --engine vllm --port 8001 -- --tensor-parallel-size 2
"""


def add(groups: Any) -> None:
    serve = verb(groups, "serve", "serve a model over the OpenAI-compatible protocol, watched and restarted", _serve)
    serve.epilog = f"{serve.epilog}\n{_SERVE}"
    serve.add_argument("model", metavar="MODEL", help="Hugging Face folder")
    serve.add_argument("--engine", choices=get_args(ServedEngine), default="embedded", help="default: %(default)s")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: a free one, which is said")
    serve.add_argument("--name", help="name it is served under; default: the folder's")
    serve.add_argument("--address-file", type=Path, help="write the URL there whenever the server has (re)started")
    serve.add_argument("--log", type=Path, help="keep all that the server prints there; its last words are said anyway")
    patience = "how long loading may take; default: %(default)s"
    serve.add_argument("--start-seconds", type=at_least(1), default=1800, metavar="N", help=patience)
    add_embedded_options(serve.add_argument_group("options of the embedded engine"))
    serve.set_defaults(behind=(), unknown=())


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
