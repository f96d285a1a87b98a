"""What a server process prints: kept in part, logged whole, and read for the reason when the server ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError
from nemo_openmath.inference.free_memory import free_memory, show
from nemo_openmath.inference.serving.launch import ServerConfig

KEPT_LINES, KEPT_CHARS = 40, 1000  # of a server's last output

_ERROR = re.compile(r"\b(\w*(Error|Exception)|error): ")
# what vLLM and SGLang say of a model that is neither a folder nor to be had from the Hub
_NO_MODEL = re.compile(
    r"huggingface\.co|valid model identifier|Repository Not Found|Repo id must|gated repo", re.IGNORECASE
)
# a setting that a server refuses, in pydantic's words
_SETTING = re.compile(
    r"(\(\w+ pid=\d+\) +)?((Value error, )?(?P<reason>.+?) \[type=\w+, input_value=|Value error, (?P<cut>.+))"
)


class ServerOutput:
    """The last lines that a server printed, and the errors that they explain."""

    def __init__(self, config: ServerConfig):
        self._config = config
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    async def read(self, stream: asyncio.StreamReader, log: BinaryIO | None) -> None:
        """Keep the last lines of ``stream`` until its end, and write all of it to ``log``, which is closed then."""
        unended = b""  # line
        try:
            while data := await stream.read(1 << 16):
                if log is not None:
                    with contextlib.suppress(OSError):  # a full disk must not end the server
                        log.write(data)
                        log.flush()
                *lines, unended = (unended + data).replace(b"\r", b"\n").split(b"\n")
                unended = unended[-KEPT_CHARS:]
                self._keep(lines)
        finally:
            self._keep([unended])
            if log is not None:
                with contextlib.suppress(OSError):
                    log.close()

    def _keep(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := line.decode(errors="replace").strip()[:KEPT_CHARS]:
                self.lines.append(text)

    def last_words(self) -> str:
        """Return the last error among the lines, the last line where none names an error, or "" without any line."""
        for line in reversed(self.lines):
            if line.startswith("openmath: "):
                return line.removeprefix("openmath: ")
            if _ERROR.search(line) and "root cause" not in line:
                return line
        return self.lines[-1] if self.lines else ""

    def death(self, code: int, when: str) -> OpenMathError:
        """Return the error for a server that ended by itself with ``code``. It is a UserError, in the server's words,
        where the server calls its end a mistake of the user."""
        engine, words = self._config.engine, self.last_words()
        if code == ExitCode.USER_ERROR and words:
            return UserError(words if engine == "embedded" else f"{engine}: {words}")
        for line in self.lines:
            if code == ExitCode.FAILURE and (match := _SETTING.match(line)):
                return UserError(f"{engine}: {match['reason'] or match['cut']}")
        if not Path(self._config.model).exists() and _NO_MODEL.search(words):
            return UserError(
                f"no such model folder, and {engine} does not get it from the Hub ({words})",
                file=self._config.model,
                remedy="give a Hugging Face folder, or check the name and the network",
            )
        return self.error(f"{exit_words(code)} {when}")

    def error(self, problem: str) -> EngineError:
        """Return an EngineError that says which server has which problem, and the server's last words."""
        words = self.last_words()
        reason = f": {words}" if words and not problem.startswith("was killed") else ""
        log = f" (all of its output: {self._config.log})" if self._config.log is not None else ""
        server = f"the {self._config.engine} server of {self._config.model}"
        return EngineError(f"{server} {problem}{reason}{log}", retryable=False)


def exit_words(code: int) -> str:
    """Say how a process ended whose exit status is ``code``, below 0 for a signal."""
    if code >= 0:
        return f"exited with {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    if code != -signal.SIGKILL:
        return f"was killed by {name}"
    free = free_memory()
    return f"was killed by {name} (out of memory? {show(free.available)} {free.where} is free now)"
