"""Commands and servers that ``served.py`` starts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def openmath(*words: object, python: str = sys.executable) -> list[str]:
    return [python, "-c", "from nemo_openmath.cli.main import main; main()", *map(str, words)]


def do(*words: object) -> None:
    print("$ openmath", *words, flush=True)
    subprocess.run(openmath(*words), check=True)


@contextmanager
def vllm(python: str, model: Path, *arguments: str) -> Iterator[str]:
    """The URL of a vLLM that ``openmath serve`` started."""
    with tempfile.TemporaryDirectory() as work:
        address, log = Path(work) / "address", Path(work) / "log"
        words = ["serve", model, "--engine", "vllm", "--port", 0, "--address-file", address, "--log", log, "--"]
        words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", *arguments]
        server = subprocess.Popen(openmath(*words, python=python), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            if not server.stdout.readline().startswith("serving "):
                sys.exit(server.wait())
            yield address.read_text().strip()
        finally:
            server.terminate()
            server.wait()
