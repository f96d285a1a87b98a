"""``openmath view``: a browser of the solutions of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_openmath.cli.common import AGAIN, ALLOW_HOST, verb
from nemo_openmath.cli.streams import run_async


def add(groups: object) -> None:
    view = verb(groups, "view", "look at solutions in a web browser: filter, read, compare", _view, interrupted=AGAIN)
    view.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="of a run, or of one of its stages; nothing is written there",
    )
    view.add_argument("--host", default="127.0.0.1", help="address to listen on")
    view.add_argument("--port", type=int, default=0, help="0: a free one, which is said")
    view.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=ALLOW_HOST)
    view.add_argument(
        "--no-token", action="store_true", help="show the pages to whoever asks, without the token of the address"
    )


def _view(options: argparse.Namespace) -> None:
    from nemo_openmath.core.listening import HostNames, check_address

    check_address(options.host, options.port)  # before the records are read
    HostNames.of(options.host, options.allow_host)
    run_async(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    import asyncio

    from nemo_openmath.core.progress import Progress
    from nemo_openmath.evaluation.viewer.building import build_index
    from nemo_openmath.evaluation.viewer.index import SolutionIndex
    from nemo_openmath.evaluation.viewer.server import ViewerServer
    from nemo_openmath.evaluation.viewer.sources import find_sources

    def index() -> SolutionIndex:
        with Progress("index") as progress:
            return build_index(find_sources(options.folders), progress)

    made = await asyncio.to_thread(index)
    title = ", ".join(folder.resolve().name for folder in options.folders)
    token = "" if options.no_token else None
    browser = ViewerServer(made, title, host=options.host, port=options.port, token=token, allowed=options.allow_host)
    async with browser as server:
        print(f"{len(made):,} solutions at {server.url} (Ctrl-C ends it)", flush=True)
        await asyncio.Event().wait()
