"""The process that serves the embedded engine: ``python -m nemo_openmath.inference.serving.embedded_server MODEL``.

``openmath serve`` starts it as it starts vLLM, and starts it again when it dies.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.listening import check_address
from nemo_openmath.core.processes import die_with_parent
from nemo_openmath.inference.serving.options import DEVICE, DTYPE, add_embedded_options

SAID = ("memory: ", "guessed tokens: ")
"""What the lines begin with that the server prints of itself."""


async def _serve_embedded(options: argparse.Namespace) -> None:
    from nemo_openmath.inference.embedded import EmbeddedEngine
    from nemo_openmath.inference.serving.openai_server import OpenAIServer

    check_address(options.host, options.port)
    key = None
    if options.api_key_env and not (key := os.environ.get(options.api_key_env)):
        raise UserError(f"the environment variable {options.api_key_env} is empty", remedy="set it to the API key")
    engine = EmbeddedEngine.load(
        options.model,
        slots=options.slots,
        max_context=options.max_context,
        cache_mib=options.cache_mib,
        threads=options.threads,
        dtype=options.dtype or DTYPE,
        device=options.device or DEVICE,
        drafter=options.drafter,
        name=options.name,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for begins, says in zip(SAID, (engine.memory, engine.guesses), strict=True):
        if says:
            print(begins + says, flush=True)
    async with OpenAIServer(engine, host=options.host, port=options.port, api_key=key) as server:
        print(server.url, flush=True)
        await stop.wait()
    await engine.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. The last line that is printed says why the process failed."""
    die_with_parent()
    module = "nemo_openmath.inference.serving.embedded_server"
    parser = argparse.ArgumentParser(prog=module, description="Serve the embedded engine.")
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name")
    add_embedded_options(parser)
    try:
        asyncio.run(_serve_embedded(parser.parse_args(argv)))
    except OpenMathError as error:
        print(f"openmath: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except Exception as error:  # the last line is what the parent shows
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
