"""The folders that a training saves, one a step: their names, and the manifest that says what is in them.

    OUTPUT/checkpoints/
        step-00000400/
            manifest.json      what this is: format, step, every file below with its size and SHA-256, training facts
            model/             config.json and the tokenizer's files: the checkpoint can be exported alone
            state/             megatron-core ``torch_dist`` (PyTorch distributed checkpoint: .metadata, *.distcp,
                               common.pt)
        .step-00000800.partial/    being written; never read, removed by the next save

A folder is written under its ``.partial`` name, flushed to disk and renamed, so ``step-*`` is whole or absent. The
manifest's checksums find what the disk broke later: :func:`newest_valid` skips such a folder and says why.

Model tensors in ``state/`` are stored under the *stored* names of :mod:`nemo_openmath.models.hf_mapping`: full tensors,
global layer numbers, no prefix (``decoder.layers.3.mlp.linear_fc1.weight``). Everything else (``optimizer.*`` and other
keys) is training state; a folder without it is a model alone, from which a training can start but not resume.

Only names, manifest and checksums are known here. The tensors are read and written by
:mod:`nemo_openmath.checkpoints.formats.torch_dist`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import DamagedFile, UserError

FORMAT, VERSION = "nemo-openmath-checkpoint", 1
MANIFEST, STATE, MODEL = "manifest.json", "state", "model"


@dataclass(frozen=True)
class StepManifest:
    """What ``manifest.json`` says."""

    step: int
    """Optimizer steps done."""
    files: dict[str, dict[str, Any]]
    """Relative path -> {"bytes": int, "sha256": str}."""
    training: dict[str, Any] = field(default_factory=dict)
    """Layout, position in the data, fingerprint and the like; empty for a model alone."""
    format: str = FORMAT
    version: int = VERSION


def step_folder(root: str | Path, step: int) -> Path:
    """Return ``root/step-00000400`` for step 400."""
    return Path(root) / f"step-{step:08d}"


def partial_folder(root: str | Path, step: int) -> Path:
    """Return the name under which :func:`step_folder` is written."""
    return Path(root) / f".step-{step:08d}.partial"


def model_files_of(model: Path) -> Path:
    """Return the folder of config.json and tokenizer of a model: of a step folder its ``model``, else the folder."""
    return model / MODEL if (model / STATE).is_dir() else model


def model_files_beside(folder: Path) -> Path:
    """Return where a Megatron folder's config.json is: in its ``model`` folder, in it, or in the folder above.

    Raises UserError where there is none.
    """
    for candidate in (folder / MODEL, folder, folder.parent / MODEL, folder.parent):
        if (candidate / "config.json").is_file():
            return candidate
    remedy = "copy those of its Hugging Face model into it, or name that folder: megatron-to-hf --model-files"
    raise UserError("no config.json and tokenizer belong to it", file=folder, remedy=remedy)


def list_checkpoints(root: str | Path) -> list[Path]:
    """Return the finished checkpoint folders of ``root``, oldest step first; validity is not checked."""
    root = Path(root)
    folders = (p for p in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name) and p.is_dir())
    return sorted(folders, key=lambda p: int(p.name[5:]))


def latest(root: Path) -> Path:
    """Return the folder of the last step where ``root`` holds several, ours or Megatron-LM's; else ``root``."""
    marker = root / "latest_checkpointed_iteration.txt"
    if not marker.is_file():
        steps = list_checkpoints(root)
        return steps[-1] if steps else root
    text = marker.read_text().strip()
    if text == "release":
        return root / text
    if not text.isdigit():
        raise DamagedFile(marker, f"holds {text[:20]!r}, not the number of a step", "write the number into it")
    return root / f"iter_{int(text):07d}"


def checksum(path: Path) -> dict[str, Any]:
    """Flush a file to disk and return its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def files_of(folder: Path) -> list[Path]:
    """Return all files of a checkpoint folder but its manifest."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def finish(partial: Path, manifest: StepManifest, final: Path) -> None:
    """Write the manifest and give the folder its final name. After it the checkpoint exists, whole."""
    path = partial / MANIFEST
    with path.open("w") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # the same step saved again, where the first was damaged
        replaced = final.with_name(f".{final.name}.replaced.partial")  # at no moment a half-removed one has the name
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_manifest(folder: str | Path) -> StepManifest:
    """Read the manifest. Raises DamagedFile with the reason where there is none that this program can read."""
    path = Path(folder) / MANIFEST
    remedy = "use another checkpoint"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise DamagedFile(path, "no manifest: this is not a finished checkpoint", remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(path, f"not JSON ({error})", remedy) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DamagedFile(path, f"not a {FORMAT} manifest", remedy)
    if raw.get("version") != VERSION:
        raise DamagedFile(path, f"checkpoint version {raw.get('version')}, this program reads {VERSION}", remedy)
    try:
        manifest = StepManifest(**raw)
        for entry in manifest.files.values():
            int(entry["bytes"]), str(entry["sha256"])
        return manifest
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DamagedFile(path, f"manifest fields are wrong ({error})", remedy) from None


def verify(folder: str | Path, *, checksums: bool = True, threads: int = 4) -> StepManifest:
    """Check sizes and (unless told not to) SHA-256 of every file; :class:`DamagedFile` names the first wrong one."""
    folder = Path(folder)
    manifest = read_manifest(folder)

    def wrong(item: tuple[str, dict[str, Any]]) -> tuple[Path, str] | None:
        path, expected = folder / item[0], item[1]
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                return path, f"{size} bytes, the manifest says {expected['bytes']}"
            if checksums and checksum(path)["sha256"] != expected["sha256"]:
                return path, "its checksum differs from the manifest"
        except FileNotFoundError:
            return path, "missing"
        except OSError as error:
            return path, f"unreadable ({error.strerror})"
        return None

    with ThreadPoolExecutor(threads) as pool:
        for problem in pool.map(wrong, manifest.files.items()):
            if problem:
                raise DamagedFile(*problem, "use another checkpoint")
    return manifest


def newest_valid(root: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint whose checksums hold, or None, and the skipped newer ones with their reasons."""
    skipped = []
    for folder in reversed(list_checkpoints(root)):
        try:
            verify(folder)
        except DamagedFile as error:
            skipped.append((folder, str(error)))
        else:
            return folder, skipped
    return None, skipped
