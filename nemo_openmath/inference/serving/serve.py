"""Starting model servers and keeping them alive: vLLM, SGLang, TensorRT-LLM, or the embedded engine.

``python -m nemo_openmath.inference.serving.serve MODEL`` serves the embedded engine; :func:`start_server` starts any of
them as a child process, waits until it is healthy, and restarts it when it dies or stops answering. What can be known
to be wrong is refused before a server is started; what a server says last when it dies is part of the error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import aiohttp

from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.errors import ExitCode, MissingExtra, OpenMathError, UserError, of_the_system, refuse_special
from nemo_openmath.core.listening import check_address, free_port
from nemo_openmath.core.processes import child_environment, die_with_parent
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.free_memory import free_memory, show
from nemo_openmath.inference.serving.serving_options import DEVICE, DTYPE, NO_CHAT, ServedEngine, add_embedded_options

TERMINATE_S = 10.0
_ERROR = re.compile(r"\b(\w*(Error|Exception)|error): ")
# what vLLM and SGLang say of a model that is neither a folder nor to be had from the Hub
_NO_MODEL = re.compile(
    r"huggingface\.co|valid model identifier|Repository Not Found|Repo id must|gated repo", re.IGNORECASE
)
# a setting that a server refuses, in pydantic's words
_SETTING = re.compile(
    r"(\(\w+ pid=\d+\) +)?((Value error, )?(?P<reason>.+?) \[type=\w+, input_value=|Value error, (?P<cut>.+))"
)
KEPT_LINES, KEPT_CHARS = 40, 1000  # of a server's last output
SAY_S = 30.0  # how often a long start is mentioned
MEMORY = "memory: "  # what the embedded server's line about its memory begins with
LASTED_S = 600.0  # a server that was healthy for so long starts with a clean slate


def _partial(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


@dataclass(frozen=True)
class ServerConfig:
    """A server to start. ``arguments``: passed on to it unchanged. ``address_file``: its URL is written there whenever
    it has (re)started, for clients on other nodes. ``start_s``: how long loading may take; ``silent_s``: how long
    /health may go unanswered; ``restarts``: in a row without ten healthy minutes in between."""

    model: str
    engine: ServedEngine = "embedded"
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
        return self.name or Path(self.model).resolve().name

    def check(self) -> None:
        """Raise UserError for whatever can be known to be wrong before anything is started."""
        check_address(self.host, self.port)
        if self.log is not None and not self.log.parent.is_dir():
            raise UserError("no such folder for the log", file=self.log.parent, remedy="make it, or change --log")
        if self.address_file is not None:
            if not self.address_file.parent.is_dir():
                folder = self.address_file.parent
                raise UserError("no such folder", file=folder, remedy="make it, or change --address-file")
            refuse_special(self.address_file, "change --address-file")
            try:
                _partial(self.address_file).touch()
                _partial(self.address_file).unlink()
            except OSError as error:
                raise of_the_system(error, self.address_file) or error from error
        folder = Path(self.model)
        local = self.engine == "embedded" or folder.exists() or self.model.startswith(("/", "./", "../", "~"))
        if local and not folder.is_dir():
            raise UserError("no such model folder", file=self.model, remedy="give a Hugging Face folder")
        if local and not (folder / "config.json").is_file():
            raise UserError("no model here (config.json is missing)", file=folder, remedy="give a Hugging Face folder")
        if self.engine == "embedded":
            from nemo_openmath.chat.tokenizer import ChatTokenizer

            if ChatTokenizer.load(folder, chat=False).chat is None and NO_CHAT not in self.arguments:
                raise UserError(
                    "no chat template",
                    file=folder,
                    remedy=f"add chat_template.jinja of the model's instruct version, or serve with {NO_CHAT}",
                )
        if asked := {"--help", "-h"} & set(self.arguments):
            raise UserError(f"{asked.pop()} is not passed on: the server would print its help and end",
                            remedy="ask the server's own command for it")  # fmt: skip
        server_command(self, self.port)


def server_command(config: ServerConfig, port: int) -> list[str]:
    """The command line that starts the server on ``port``."""
    python, where = sys.executable, ["--host", config.host, "--port", str(port)]
    if config.engine == "vllm":
        _need("vllm", "vllm")
        named = ["--model", config.model, "--served-model-name", config.served_name, "--enable-prompt-tokens-details"]
        if not any(a.split("=")[0] == "--generation-config" for a in config.arguments):
            named += ["--generation-config", "vllm"]  # no sampling defaults of the model's own
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
        command = [
            python,
            "-m",
            "nemo_openmath.inference.serving.serve",
            config.model,
            "--name",
            config.served_name,
            *where,
        ]
    return [*command, *config.arguments]


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtra(package, extra, f"serving with {package}")


class ServerProcess:
    """A running server, watched. ``async with start_server(config) as server: .. server.url``.

    ``say``: is told, a line each, when a long start goes on, when the server died, and when it serves again.
    """

    def __init__(self, config: ServerConfig, say: Callable[[str], None] = lambda line: None):
        self.config = config
        self.starts = 0
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines that the server printed."""
        self._say = say
        self._started_at = 0.0
        self._port = config.port
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.failure: OpenMathError | None = None

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self._port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> Self:
        """Return when the server is healthy. Raises OpenMathError, with the server's own reason, where it does not
        become so."""
        self.config.check()
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
        self._port = self.config.port or self._port or free_port(self.config.host)
        check_address(self.config.host, self._port)  # else another program's answers could be taken for the server's
        command = server_command(self.config, self._port)
        log: BinaryIO | None = None
        try:
            log = self.config.log.open("ab") if self.config.log is not None else None
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror})", file=self.config.log, remedy="change --log"
            ) from error
        self.lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child_environment(**self.config.environment),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout, log))
        self.starts += 1
        began, waiting = time.monotonic(), Waiting(say=self._say, first_s=SAY_S, every_s=SAY_S)
        while not await self._healthy():
            now = time.monotonic()
            if self._process.returncode is not None:
                await self._end()
                raise self._death("while starting")
            if now - began > self.config.start_s:
                await self._end()
                raise self._error(f"was not healthy within {self.config.start_s:g} s")
            last = f" (it said last: {self.lines[-1]})" if self.lines else ""
            waiting.still(f"{self.url}/health{last}", self.config.start_s, "--start-seconds")
            await asyncio.sleep(min(0.2, self.config.check_s))
        self._started_at = time.monotonic()
        if (file := self.config.address_file) is not None:
            _partial(file).write_text(self.url + "\n")
            _partial(file).replace(file)

    async def _read(self, stream: asyncio.StreamReader, log: BinaryIO | None) -> None:
        """Keep the server's last lines, and all of them in the log."""
        rest = b""
        try:
            while piece := await stream.read(1 << 16):
                if log is not None:
                    with contextlib.suppress(OSError):  # a full disk must not end the server
                        log.write(piece)
                        log.flush()
                *whole, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
                rest = rest[-KEPT_CHARS:]
                self._keep(whole)
        finally:
            self._keep([rest])
            if log is not None:
                with contextlib.suppress(OSError):
                    log.close()

    def _keep(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := line.decode(errors="replace").strip()[:KEPT_CHARS]:
                self.lines.append(text)

    def last_words(self) -> str:
        """The reason in the server's last lines: its last error, or its last line where it names none; "" where it said
        nothing."""
        for line in reversed(self.lines):
            if line.startswith("openmath: "):
                return line.removeprefix("openmath: ")
            if _ERROR.search(line) and "root cause" not in line:
                return line
        return self.lines[-1] if self.lines else ""

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
            code = self._process.returncode
            silent = f"did not answer /health for {self.config.silent_s:g} s"
            what = silent if code is None else _exit_words(code)
            in_a_row = 1 if healthy_at - self._started_at > LASTED_S else in_a_row + 1
            await self._end()
            if in_a_row > self.config.restarts:
                self.failure = self._error(f"{what}, for the {in_a_row}th time")
                return
            self._say(f"{self._error(what)}; starting it again ({in_a_row} of {self.config.restarts})")
            await asyncio.sleep(min(60.0, 0.5 * 2**in_a_row))
            try:
                await self._launch()
                healthy_at = time.monotonic()
                self.failure = None
                self._say(f"serving {self.config.served_name} again at {self.url}, {healthy_at - now:.0f} s later")
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
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=TERMINATE_S)
            self._reading.cancel()

    def _death(self, when: str) -> OpenMathError:
        """The error for a server that ended by itself: a mistake where it calls it one (exit code 2), in its words."""
        assert self._process is not None
        code = self._process.returncode or 0
        if code == ExitCode.USER_ERROR and (words := self.last_words()):
            return UserError(words if self.config.engine == "embedded" else f"{self.config.engine}: {words}")
        for line in self.lines:
            if code == ExitCode.FAILURE and (said := _SETTING.match(line)):
                return UserError(f"{self.config.engine}: {said['reason'] or said['cut']}")
        if not Path(self.config.model).exists() and _NO_MODEL.search(words := self.last_words()):
            return UserError(
                f"no such model folder, and {self.config.engine} does not get it from the Hub ({words})",
                file=self.config.model,
                remedy="give a Hugging Face folder, or check the name and the network",
            )
        return self._error(f"{_exit_words(code)} {when}")

    def _error(self, what: str) -> EngineError:
        words = self.last_words()
        said = f": {words}" if words and not what.startswith("was killed") else ""
        log = f" (all of its output: {self.config.log})" if self.config.log is not None else ""
        return EngineError(f"the {self.config.engine} server of {self.config.model} {what}{said}{log}", retryable=False)


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    if code != -signal.SIGKILL:
        return f"was killed by {name}"
    free = free_memory()
    return f"was killed by {name} (out of memory? {show(free.available)} {free.where} is free now)"


def start_server(config: ServerConfig, say: Callable[[str], None] = lambda line: None) -> ServerProcess:
    """A server to be started: use it with ``async with``, or ``await server.start()``."""
    return ServerProcess(config, say)


async def serve(config: ServerConfig) -> None:
    """Start a server, keep it alive, and end it at SIGTERM or SIGINT. Raises what ended it for good."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = start_server(config, lambda line: print(line, file=sys.stderr, flush=True))

    async def run() -> None:
        try:
            await server.start()
        except EngineError:  # what a mistake is, is in the error's own line
            if config.engine != "embedded" and config.log is None:  # the cause may be some lines further up
                print("\n".join(server.lines), file=sys.stderr)
            raise
        for line in server.lines:
            if line.startswith(MEMORY):
                print(line, flush=True)
        print(f"serving {config.served_name} at {server.url}", flush=True)
        await server.wait()

    tasks = [asyncio.create_task(run()), asyncio.create_task(stop.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()


async def _serve_embedded(arguments: argparse.Namespace) -> None:
    from nemo_openmath.inference.embedded import EmbeddedEngine
    from nemo_openmath.inference.serving.server import OpenAIServer

    check_address(arguments.host, arguments.port)
    key = None
    if arguments.api_key_env and not (key := os.environ.get(arguments.api_key_env)):
        raise UserError(f"the environment variable {arguments.api_key_env} is empty", remedy="set it to the API key")
    engine = EmbeddedEngine.load(
        arguments.model,
        slots=arguments.slots,
        max_context=arguments.max_context,
        cache_mib=arguments.cache_mib,
        threads=arguments.threads,
        dtype=arguments.dtype or DTYPE,
        device=arguments.device or DEVICE,
        name=arguments.name,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if engine.memory:
        print(MEMORY + engine.memory, flush=True)
    async with OpenAIServer(engine, host=arguments.host, port=arguments.port, api_key=key) as server:
        print(server.url, flush=True)
        await stop.wait()
    await engine.close()


def main(argv: Sequence[str] | None = None) -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(
        prog="nemo_openmath.inference.serving.serve", description="Serve the embedded engine."
    )
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name")
    add_embedded_options(parser)
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(_serve_embedded(arguments))
    except OpenMathError as error:
        print(f"openmath: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except Exception as error:  # the last line is what the parent shows
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
