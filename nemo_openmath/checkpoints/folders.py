"""What surrounds the tensors: the files of a model folder, and output folders that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints.lazy import LazyTensor
from nemo_openmath.checkpoints.safetensors_files import SHARD_BYTES, write_folder
from nemo_openmath.core.errors import OpenMathError, UserError, no_space
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.models.hf_config import read_config, rope_of
from nemo_openmath.models.stop_tokens import StopTokens
from nemo_openmath.models.torch_dist import TOKENIZER_FILES

_HOST = socket.gethostname()
log = logging.getLogger(__name__)


@contextmanager
def building(destination: Path, *, into_existing: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``destination``: flushed to disk and renamed when the block ends well, removed when it
    does not. ``into_existing``: the folder exists and its owner marks it as finished (a stage's output): the files
    are moved into it. Raises UserError where the folder exists, cannot be written, or the disk is full."""
    destination = Path(os.path.realpath(destination))  # a link to an empty folder stays one
    if not into_existing:
        refuse_inside_stage(destination)
        _refuse_taken(destination)
    parent = destination if into_existing else destination.parent
    partial = parent / f".{destination.name}.{_HOST}-{os.getpid()}.partial"
    _remove_remains(parent, destination.name, everyones=into_existing)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if into_existing:
            for path in partial.iterdir():
                _replace(path, destination / path.name)
            partial.rmdir()
        else:
            _refuse_taken(destination)  # by another process, in the meantime
            partial.rename(destination)
        _flush(parent)
    except OSError as error:
        if (ours := _of_the_disk(error, destination, partial)) is not None:
            raise ours from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if os.path.exists(partial):
            log.warning("%s could not be removed: remove it", partial)


def _refuse_taken(destination: Path) -> None:
    """UserError where a finished folder cannot get the name ``destination``."""
    if os.path.exists(destination) and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError("exists already", file=destination, remedy="remove it or choose another name")
    if destination.is_dir() and os.path.ismount(destination):
        raise UserError("is a mount point, which cannot be renamed", file=destination, remedy="name a folder inside it")


def _of_the_disk(error: OSError, destination: Path, partial: Path) -> OpenMathError | None:
    """The error of a full disk, or of a folder that cannot be written; None for what else the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return no_space(destination, error.strerror or str(error), "nothing was left behind")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = any(name.startswith(str(partial)) or partial.is_relative_to(name) for name in names)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG) and ours:
        remedy = "choose a folder that can be written"
        return UserError(f"cannot be written ({error.strerror})", file=destination, remedy=remedy)
    return None


def _remove_remains(parent: Path, name: str, *, everyones: bool) -> None:
    """What killed writers of ``name`` left: those of this machine whose process is gone, or everyone's."""
    for path in parent.glob(f".{glob.escape(name)}.*.partial"):
        host, _, pid = path.name.removeprefix(f".{name}.").removesuffix(".partial").rpartition("-")
        ours = host == _HOST and pid.isdigit()
        if everyones or (ours and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists())):
            shutil.rmtree(path, ignore_errors=True)


def _replace(path: Path, destination: Path) -> None:
    if destination.is_dir():
        shutil.rmtree(destination)
    path.rename(destination)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def changed_config(
    raw: Mapping[str, Any],
    *,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """``raw`` with changes. The RoPE base is always written in both forms, ``rope_theta`` and ``rope_parameters``:
    readers that miss theirs fall back to base 10000 without a word."""
    if rope_theta is not None and not (math.isfinite(rope_theta) and rope_theta > 1):
        raise UserError(f"a RoPE base of {rope_theta:g}", remedy="the recipe's is 500000")
    if max_positions is not None and max_positions < 1:
        raise UserError(f"{max_positions} positions", remedy="the recipe has 131072")
    config = dict(raw)
    rope = rope_of(config)
    theta = rope_theta if rope_theta is not None else rope.theta
    if theta is not None:
        config["rope_theta"] = float(theta)
        config["rope_parameters"] = {**rope.settings, "rope_type": rope.kind, "rope_theta": float(theta)}
        if config.get("rope_scaling"):  # the older name of the same; loaders that know both prefer it
            config["rope_scaling"] = None if rope.kind == "default" else {**rope.settings, "rope_type": rope.kind}
    if max_positions is not None:
        config["max_position_embeddings"] = max_positions
        if "max_window_layers" in config and not config.get("use_sliding_window"):
            config["sliding_window"] = None
    if dtype is not None:
        config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    return config


def copy_model_files(source: Path, target: Path, config: Mapping[str, Any], *, stops: StopTokens | None = None) -> None:
    """``config`` as config.json, the tokenizer's files of ``source``, and generation_config.json (made from the
    configuration's special tokens where ``source`` has none). ``stops``: what the files are to name as the end of a
    text instead; without it they stay as they are, sampling defaults included: the same model has the same files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (target / "generation_config.json").is_file():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {key: config[key] for key in keys if config.get(key) is not None}
        (target / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    if stops is not None:
        stops.write(target)


def write_hf(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    model_files: Path,
    *,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    stops: StopTokens | None = None,
) -> None:
    """A Hugging Face folder; config.json and tokenizer from ``model_files``, with the tensors' dtype. ``stops``: see
    :func:`copy_model_files`."""
    dtype = main_dtype(tensors)
    config = changed_config(read_config(model_files), rope_theta=rope_theta, max_positions=max_positions, dtype=dtype)
    copy_model_files(model_files, folder, config, stops=stops)
    write_folder(folder, tensors, shard_bytes)


def main_dtype(tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """The dtype of most elements."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel
    if not sizes:
        raise UserError("the weights hold no tensor", remedy="give a model")
    return max(sizes, key=lambda dtype: sizes[dtype])
