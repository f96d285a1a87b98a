"""Where models are served: the file of ``recipe run --servers``, which a launcher writes. What is made does not depend
on it, so it is in no fingerprint.

    {"teacher": {"addresses": "/shared/run/sbatch/servers/teacher", "name": "Qwen2.5-32B-Instruct", "wait_s": 3600}}
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.open import EngineConfig

_JOB = "${SLURM_JOB_ID}"


@dataclass(frozen=True)
class ServerAddress:
    """Where a model is served."""

    folder: Path
    """Files ``*.url``, one for each server."""
    name: str
    """What the servers call it."""
    wait_s: float
    """For how long no server may be there, in seconds."""

    def over(self, engine: EngineConfig) -> EngineConfig:
        """Return the settings of an engine that asks these servers, with what else ``engine`` says."""
        patience_s = max(self.wait_s, engine.patience_s)
        return replace(engine, kind="http", urls=(), urls_file=self.folder, model=self.name, patience_s=patience_s)


def read_servers(file: Path) -> dict[str, ServerAddress]:
    """Return the addresses by the name under which stages ask for the model: ``teacher``, a stage, or a folder as the
    recipe has it. ``${SLURM_JOB_ID}`` in a folder is replaced. Raises UserError for a file that says something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        addresses = {
            name: ServerAddress(_folder(entry["addresses"]), str(entry["name"]), float(entry["wait_s"]))
            for name, entry in data.items()
        }
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=file, remedy="check --servers") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = 'write {"MODEL": {"addresses": "FOLDER", "name": "...", "wait_s": 3600}}'
        raise UserError("no file of servers", file=file, remedy=remedy) from error
    for address in addresses.values():
        address.folder.mkdir(parents=True, exist_ok=True)  # empty until the first server is healthy
    return addresses


def _folder(text: str) -> Path:
    if _JOB in text and "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"{text}: SLURM_JOB_ID is not set", remedy="this file is for the jobs of a launched run")
    return Path(text.replace(_JOB, os.environ.get("SLURM_JOB_ID", "")))
