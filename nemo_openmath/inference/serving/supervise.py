"""Starting a model server and keeping it alive.

:class:`ServerProcess` starts a server as a child process, waits until it is healthy, and starts it again when it dies
or stops answering. What a server printed last when it died is part of the error. :func:`serve` is ``openmath serve``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from typing import BinaryIO, Self

import aiohttp

from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.listening import check_address, free_port, in_url
from nemo_openmath.core.outputs import partial_file
from nemo_openmath.core.processes import child_environment
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.serving.embedded_server import SAID
from nemo_openmath.inference.serving.launch import ServerConfig, server_command
from nemo_openmath.inference.serving.server_output import ServerOutput, exit_words

TERMINATE_S = 10.0
HEALTH_S = 5.0  # for one answer of /health
MENTION_S = 30.0  # how often a long start is mentioned
LASTED_S = 600.0  # a server that was healthy for so long starts with a clean slate

log = logging.getLogger(__name__)


class ServerProcess:
    """A running server, watched: ``async with ServerProcess(config) as server: .. server.url``.

    The log says when a long start goes on, when the server died, and when it serves again.
    """

    def __init__(self, config: ServerConfig):
        self.config = config
        self.starts = 0
        self.output = ServerOutput(config)
        self.failure: OpenMathError | None = None
        """What ended the server for good."""
        self._started_at = 0.0
        self._port = config.port
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{in_url(self.config.host)}:{self._port}"

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
        """Stop watching and end the server."""
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

    # -- one start -------------------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        self._port = self.config.port or self._port or free_port(self.config.host)
        check_address(self.config.host, self._port)  # else another program's answers could be taken for the server's
        command = server_command(self.config, self._port)
        log_file = self._open_log()
        self.output.lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child_environment(**self.config.environment),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self.output.read(self._process.stdout, log_file))
        self.starts += 1
        await self._until_healthy(self._process)
        self._started_at = time.monotonic()
        if (file := self.config.address_file) is not None:
            partial_file(file).write_text(self.url + "\n")
            partial_file(file).replace(file)

    def _open_log(self) -> BinaryIO | None:
        if self.config.log is None:
            return None
        try:
            return self.config.log.open("ab")
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise UserError(problem, file=self.config.log, remedy="change --log") from error

    async def _until_healthy(self, process: asyncio.subprocess.Process) -> None:
        began, waiting = time.monotonic(), Waiting(say=log.warning, first_s=MENTION_S, every_s=MENTION_S)
        while not await self._healthy():
            if process.returncode is not None:
                await self._end()
                raise self.output.death(process.returncode, "while starting")
            if time.monotonic() - began > self.config.start_s:
                await self._end()
                raise self.output.error(f"was not healthy within {self.config.start_s:g} s")
            lines = self.output.lines
            last_line = f" (it said last: {lines[-1]})" if lines else ""
            waiting.still(f"{self.url}/health{last_line}", self.config.start_s, "--start-seconds")
            await asyncio.sleep(min(0.2, self.config.check_s))

    async def _healthy(self) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_S)
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

    # -- all starts ------------------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Watch the server and start it again whenever it has failed, until it has failed too often."""
        failures_in_a_row, healthy_at = 0, time.monotonic()
        while True:
            problem, healthy_at = await self._until_failed(healthy_at)
            failed_at = time.monotonic()
            failures_in_a_row = 1 if healthy_at - self._started_at > LASTED_S else failures_in_a_row + 1
            await self._end()
            if failures_in_a_row > self.config.restarts:
                self.failure = self.output.error(f"{problem}, for the {failures_in_a_row}th time")
                return
            retry = f"starting it again ({failures_in_a_row} of {self.config.restarts})"
            log.warning("%s; %s", self.output.error(problem), retry)
            await asyncio.sleep(min(60.0, 0.5 * 2**failures_in_a_row))
            try:
                await self._launch()
                healthy_at = time.monotonic()
                self.failure = None
                seconds = healthy_at - failed_at
                log.warning("serving %s again at %s, %.0f s later", self.config.served_name, self.url, seconds)
            except OpenMathError as error:
                self.failure = error
                if isinstance(error, UserError):
                    return

    async def _until_failed(self, healthy_at: float) -> tuple[str, float]:
        """Return what is wrong with the server once it has ended or been silent for too long, and the time at which it
        was last healthy: ``healthy_at``, or a later one."""
        assert self._process is not None
        while True:
            await asyncio.sleep(self.config.check_s)
            now = time.monotonic()
            if self._process.returncode is not None:
                return exit_words(self._process.returncode), healthy_at
            if await self._healthy():
                healthy_at = time.monotonic()
            elif now - healthy_at >= self.config.silent_s:
                if self._process.returncode is not None:
                    return exit_words(self._process.returncode), healthy_at
                return f"did not answer /health for {self.config.silent_s:g} s", healthy_at


async def serve(config: ServerConfig) -> None:
    """Start a server, keep it alive, and end it at SIGTERM or SIGINT. Raises what ended it for good."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = ServerProcess(config)

    async def run() -> None:
        try:
            await server.start()
        except EngineError:  # what a mistake is, is in the error's own line
            if config.engine != "embedded" and config.log is None:  # the cause may be some lines further up
                print("\n".join(server.output.lines), file=sys.stderr)
            raise
        for line in server.output.lines:
            if line.startswith(SAID):
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
