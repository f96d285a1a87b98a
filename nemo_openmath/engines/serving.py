"""Starting model servers and keeping them alive: vLLM, SGLang, TensorRT-LLM, or the embedded engine.

``python -m nemo_openmath.engines.serving MODEL`` serves the embedded engine; :func:`start_server` starts any of them as
a child process, waits until it is healthy, and restarts it when it dies or stops answering.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import aiohttp

from nemo_openmath.engines.protocol import EngineError
from nemo_openmath.errors import MissingExtra, OpenMathError, UserError
from nemo_openmath.pipeline.processes import child_environment, die_with_parent

ServerKind = Literal["vllm", "sglang", "trtllm", "embedded"]
TERMINATE_S = 10.0
LASTED_S = 600.0  # a server that was healthy for so long starts with a clean slate


@dataclass(frozen=True)
class ServerConfig:
    """A server to start. ``arguments``: passed on to it unchanged. ``address_file``: its URL is written there whenever
    it has (re)started, for clients on other nodes. ``start_s``: how long loading may take; ``silent_s``: how long
    /health may go unanswered; ``restarts``: in a row without ten healthy minutes in between."""

    model: str
    engine: ServerKind = "embedded"
    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    name: str | None = None  # served under; default: the directory's name
    arguments: tuple[str, ...] = ()
    log: Path | None = None
    address_file: Path | None = None
    start_s: float = 1800.0
    silent_s: float = 60.0
    restarts: int = 5
    check_s: float = 2.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).name


def server_command(config: ServerConfig, port: int) -> list[str]:
    """The command line that starts the server on ``port``."""
    python, where = sys.executable, ["--host", config.host, "--port", str(port)]
    if config.engine == "vllm":
        _need("vllm", "vllm")
        named = ["--model", config.model, "--served-model-name", config.served_name, "--enable-prompt-tokens-details"]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *named, *where]
    elif config.engine == "sglang":
        _need("sglang", "sglang")
        named = ["--model-path", config.model, "--served-model-name", config.served_name]
        command = [python, "-m", "sglang.launch_server", *named, *where]
    elif config.engine == "trtllm":
        if (program := shutil.which("trtllm-serve")) is None:
            raise MissingExtra("trtllm-serve", "trtllm", "serving with TensorRT-LLM")
        command = [program, config.model, *where]
    else:
        command = [python, "-m", "nemo_openmath.engines.serving", config.model, "--name", config.served_name, *where]
    return [*command, *config.arguments]


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtra(package, extra, f"serving with {package}")


class ServerProcess:
    """A running server, watched. ``async with start_server(config) as server: .. server.url``."""

    def __init__(self, config: ServerConfig):
        self.config = config
        self.starts = 0
        self._started_at = 0.0
        self._port = config.port
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self.failure: OpenMathError | None = None

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> Self:
        """Return when the server is healthy. Raises OpenMathError, naming the log, where it does not become so."""
        await self._launch()
        self._watch = asyncio.create_task(self._keep_alive())
        return self

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._end()

    async def wait(self) -> None:
        """Return when the server has been closed; raise what ended it for good."""
        if self._watch is not None:
            await asyncio.wait([self._watch])
        if self.failure is not None:
            raise self.failure

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _launch(self) -> None:
        self._port = self.config.port or self._port or _free_port(self.config.host)
        command = server_command(self.config, self._port)
        log = self.config.log.open("ab") if self.config.log is not None else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdout=log or asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.STDOUT,
                env=child_environment(**self.config.environment),
                start_new_session=True,
            )
        finally:
            if log is not None:
                log.close()
        self.starts += 1
        deadline = time.monotonic() + self.config.start_s
        while not await self._healthy():
            if self._process.returncode is not None:
                raise self._error(f"exited with {self._process.returncode} while starting")
            if time.monotonic() > deadline:
                await self._end()
                raise self._error(f"was not healthy within {self.config.start_s:g} s")
            await asyncio.sleep(min(0.2, self.config.check_s))
        self._started_at = time.monotonic()
        if (file := self.config.address_file) is not None:
            partial = file.with_name(file.name + ".partial")
            partial.write_text(self.url + "\n")
            partial.replace(file)

    async def _keep_alive(self) -> None:
        in_a_row, healthy_at = 0, time.monotonic()
        while True:
            await asyncio.sleep(self.config.check_s)
            now = time.monotonic()
            assert self._process is not None
            if self._process.returncode is None:
                if await self._healthy():
                    healthy_at = time.monotonic()
                    continue
                if now - healthy_at < self.config.silent_s:
                    continue
            in_a_row = 1 if healthy_at - self._started_at > LASTED_S else in_a_row + 1
            if in_a_row > self.config.restarts:
                self.failure = self._error(f"died {in_a_row} times")
                return
            await self._end()
            await asyncio.sleep(min(60.0, 0.5 * 2**in_a_row))
            try:
                await self._launch()
                healthy_at = time.monotonic()
            except OpenMathError as error:
                self.failure = error
                if isinstance(error, UserError):
                    return

    async def _healthy(self) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.url + "/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _end(self) -> None:
        """Terminate the server and the processes it started."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # its own session: the group holds it and its workers only
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERMINATE_S):
                    await process.wait()

    def _error(self, what: str) -> EngineError:
        log = f"; see {self.config.log}" if self.config.log is not None else ""
        return EngineError(f"the {self.config.engine} server of {self.config.model} {what}{log}", retryable=False)


def start_server(config: ServerConfig) -> ServerProcess:
    """A server to be started: use it with ``async with``, or ``await server.start()``."""
    return ServerProcess(config)


async def serve(config: ServerConfig) -> None:
    """Start a server, keep it alive, and end it at SIGTERM or SIGINT. Raises what ended it for good."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with start_server(config) as server:
        print(f"serving {config.served_name} at {server.url}", flush=True)
        waits = [asyncio.create_task(server.wait()), asyncio.create_task(stop.wait())]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        for task in done:
            task.result()


def _free_port(host: str) -> int:
    with socket.socket() as s:
        s.bind((host, 0))
        return int(s.getsockname()[1])


async def _serve_embedded(arguments: argparse.Namespace) -> None:
    from nemo_openmath.engines.embedded import EmbeddedEngine
    from nemo_openmath.engines.server import OpenAIServer

    engine = EmbeddedEngine.load(
        arguments.model,
        slots=arguments.slots,
        max_context=arguments.max_context,
        threads=arguments.threads,
        dtype=arguments.dtype,
        device=arguments.device,
        name=arguments.name,
    )
    key = os.environ.get(arguments.api_key_env) if arguments.api_key_env else None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with OpenAIServer(engine, host=arguments.host, port=arguments.port, api_key=key) as server:
        print(server.url, flush=True)
        await stop.wait()
    await engine.close()


def main(argv: Sequence[str] | None = None) -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="nemo_openmath.engines.serving", description="Serve the embedded engine.")
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--api-key-env", help="environment variable that holds the required bearer token")
    asyncio.run(_serve_embedded(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
