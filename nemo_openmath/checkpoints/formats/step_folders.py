"""The folders that a training saves, one a step: their names, and the manifest that says what is in them.

    OUTPUT/checkpoints/
        step-00000400/
            manifest.json      what this is: format, step, every file below with its size and digest, training facts
            model/             config.json and the tokenizer's files: the checkpoint can be exported alone
            state/             megatron-core ``torch_dist`` (PyTorch distributed checkpoint: .metadata, *.distcp,
                               common.pt)
        .step-00000800.partial/    being written; never read, removed by the next save

A folder is written under its ``.partial`` name, flushed to disk and renamed, so ``step-*`` is whole or absent. The
manifest's digests find what the disk broke later: :func:`newest_valid` skips such a folder and says why.

Model tensors in ``state/`` are stored under the *stored* names of :mod:`nemo_openmath.models.hf_mapping`: full tensors,
global layer numbers, no prefix (``decoder.layers.3.mlp.linear_fc1.weight``). Everything else (``optimizer.*`` and other
keys) is training state; a folder without it is a model alone, from which a training can start but not resume.

Only names, manifest and checksums are known here. The tensors are read and written by
:mod:`nemo_openmath.checkpoints.formats.torch_dist`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records.lineage import digest_data, digest_file

FORMAT, VERSION = "nemo-openmath-checkpoint", 2
_SHA256 = "sha256:"  # how the digests of version 1 begin here
MANIFEST, STATE, MODEL = "manifest.json", "state", "model"
_ANOTHER = "use another checkpoint"
_READERS = 16  # files read at once: a network file system gives each reader a share of what it can


@dataclass(frozen=True)
class StepManifest:
    """What ``manifest.json`` says."""

    step: int
    """Optimizer steps done."""
    files: dict[str, dict[str, Any]]
    """Relative path -> {"bytes": int, "digest": "blake3:..."}; "sha256:..." where version 1 was read."""
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


def spaced_steps(last: int, count: int) -> tuple[int, ...]:
    """Return ``count`` equally spaced steps up to ``last``: those that a training keeps to be averaged, and that an
    average looks for."""
    return tuple(round(last * i / count) for i in range(1, count + 1))


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
    """Flush a file to disk and return its size and BLAKE3 digest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "digest": digest_data(path)}


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
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise DamagedFile(path, "no manifest: this is not a finished checkpoint", _ANOTHER) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(path, f"not JSON ({error})", _ANOTHER) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DamagedFile(path, f"not a {FORMAT} manifest", _ANOTHER)
    if (version := raw.get("version")) not in (1, VERSION):
        raise DamagedFile(path, f"checkpoint version {version}, this program reads 1 and {VERSION}", _ANOTHER)
    try:
        files = {
            name: {
                "bytes": int(entry["bytes"]),
                "digest": f"{_SHA256}{entry['sha256']}" if version == 1 else str(entry["digest"]),
            }
            for name, entry in raw["files"].items()
        }
        return StepManifest(**{**raw, "files": files, "version": VERSION})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DamagedFile(path, f"manifest fields are wrong ({error})", _ANOTHER) from None


def check_sizes(folder: str | Path) -> StepManifest:
    """Check that every file of the manifest is there and has its size; :class:`DamagedFile` names the first wrong
    one."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise DamagedFile(folder / name, _unreadable(error), _ANOTHER) from None
        if size != entry["bytes"]:
            raise DamagedFile(folder / name, f"{size} bytes, the manifest says {entry['bytes']}", _ANOTHER)
    return manifest


def verify(folder: str | Path, names: Collection[str] | None = None) -> StepManifest:
    """Check the sizes of all files, and the digests of those in ``names`` (None: of all); :class:`DamagedFile` names
    the first wrong one."""
    folder = Path(folder)
    manifest = check_sizes(folder)
    for name, text in _problems(folder, manifest, manifest.files if names is None else names):
        raise DamagedFile(folder / name, text, _ANOTHER)
    return manifest


def wrong_files(folder: Path, part: int, parts: int) -> list[str]:
    """Return the files of one of ``parts`` equal shares of a folder's bytes whose digests are wrong here. Those of a
    folder without a readable manifest are none: :func:`verify` says why."""
    try:
        manifest = read_manifest(folder)
    except DamagedFile:
        return []
    largest_first = sorted(manifest.files, key=lambda name: (-manifest.files[name]["bytes"], name))
    return [name for name, _ in _problems(folder, manifest, largest_first[part::parts])]


def _problems(folder: Path, manifest: StepManifest, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the files whose digests are wrong, in the order of ``names``, each with what is wrong."""

    def problem(name: str) -> str | None:
        expected = manifest.files[name]["digest"]
        try:
            sha256 = expected.startswith(_SHA256)
            actual = f"{_SHA256}{digest_file(folder / name)}" if sha256 else digest_data(folder / name)
        except OSError as error:
            return _unreadable(error)
        return None if actual == expected else "its checksum differs from the manifest"

    with ThreadPoolExecutor(_READERS) as pool:
        for name, text in zip(names, pool.map(problem, names), strict=True):
            if text is not None:
                yield name, text


def _unreadable(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})"


def newest_valid(
    folders: Sequence[Path], check: Callable[[Path], object] = verify
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the last of the folders whose checksums hold, or None, and the skipped newer ones with their reasons.

    ``check`` raises DamagedFile for a folder that is not whole.
    """
    skipped = []
    for folder in reversed(folders):
        try:
            check(folder)
        except DamagedFile as error:
            skipped.append((folder, str(error)))
        else:
            return folder, skipped
    return None, skipped
