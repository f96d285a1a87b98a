"""What server to start: its settings, the checks that need no server, and the command line that starts it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.listening import check_address
from nemo_openmath.core.outputs import refuse_foreign_file, refuse_unwritable_file
from nemo_openmath.inference.open import check_drafter
from nemo_openmath.inference.serving.options import NO_CHAT, ServedEngine, drafter_of


@dataclass(frozen=True)
class ServerConfig:
    """A model server to start."""

    model: str
    """Hugging Face folder, or a name that vLLM, SGLang or TensorRT-LLM gets from the Hub."""
    engine: ServedEngine = "embedded"
    """Program that serves the model."""
    host: str = "127.0.0.1"
    """Address on which the server listens; 0.0.0.0 means all addresses of this machine."""
    port: int = 0
    """Port on which the server listens; 0 means a free one."""
    name: str | None = None
    """Name under which the model is served; null means the name of its folder."""
    arguments: tuple[str, ...] = ()
    """Arguments that are passed on to the server unchanged."""
    log: Path | None = None
    """File to which all output of the server is appended."""
    address_file: Path | None = None
    """File into which the server's URL is written whenever it has started, for clients on other nodes."""
    start_s: float = 1800.0
    """Seconds that a start may take until the server is healthy."""
    silent_s: float = 60.0
    """Seconds for which ``/health`` may go unanswered before the server is started again."""
    restarts: int = 5
    """Restarts in a row, without ten healthy minutes in between, after which the server is given up."""
    check_s: float = 2.0
    """Seconds between two questions to ``/health``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the server besides those of this process."""

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).resolve().name

    def check(self) -> None:
        """Raise UserError for whatever can be known to be wrong before anything is started."""
        check_address(self.host, self.port)
        self._check_files()
        self._check_model()
        if asked := {"--help", "-h"} & set(self.arguments):
            raise UserError(
                f"{asked.pop()} is not passed on: the server would print its help and end",
                remedy="ask the server's own command for it",
            )
        server_command(self, self.port)

    def _check_files(self) -> None:
        if self.log is not None and not self.log.parent.is_dir():
            raise UserError("no such folder for the log", file=self.log.parent, remedy="make it, or change --log")
        if self.address_file is None:
            return
        refuse_unwritable_file(self.address_file, "--address-file")
        refuse_foreign_file(self.address_file, "the address of a server", lambda line: line.startswith(b"http"))

    def _check_model(self) -> None:
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
            check_drafter(drafter_of(self.arguments), folder)


def server_command(config: ServerConfig, port: int) -> list[str]:
    """Return the command line that starts the server on ``port``. Raises MissingExtra where its program is missing."""
    address = ["--host", config.host, "--port", str(port)]
    match config.engine:
        case "vllm":
            command = _vllm_command(config)
        case "sglang":
            _need("sglang", "sglang")
            command = [sys.executable, "-P", "-m", "sglang.launch_server", "--model-path", config.model]
            command += ["--served-model-name", config.served_name]
        case "trtllm":
            if (program := shutil.which("trtllm-serve")) is None:
                raise MissingExtra("trtllm-serve", "trtllm", "serving with TensorRT-LLM")
            command = [program, config.model]
        case "embedded":
            module = "nemo_openmath.inference.serving.embedded_server"
            command = [sys.executable, "-P", "-m", module, config.model, "--name", config.served_name]
    return [*command, *address, *config.arguments]


def _vllm_command(config: ServerConfig) -> list[str]:
    _need("vllm", "vllm")
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", config.model]
    command += ["--served-model-name", config.served_name, "--enable-prompt-tokens-details"]
    if not any(argument.split("=")[0] == "--generation-config" for argument in config.arguments):
        command += ["--generation-config", "vllm"]  # no sampling defaults of the model's own
    return command


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtra(package, extra, f"serving with {package}")
