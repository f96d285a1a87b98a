"""One way to open any checkpoint and one to write it: its format is found out, its tensors have Hugging Face names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from blake3 import blake3
from torch import Tensor

from nemo_openmath.checkpoints import names
from nemo_openmath.checkpoints.formats import classic, hf, safetensors, step_folders, torch_dist
from nemo_openmath.checkpoints.formats.protocol import Contents, Format
from nemo_openmath.checkpoints.lazy import LazyTensor, bytes_of
from nemo_openmath.checkpoints.model_files import changed_config, main_dtype, write_model_files
from nemo_openmath.checkpoints.streaming import Hashed
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.nearby import nearby
from nemo_openmath.core.records.lineage import BLAKE3, Lineage
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import once, quantization
from nemo_openmath.models.stop_tokens import StopTokens

Kind = Literal["hf", "torch_dist", "classic"]
FORMATS: dict[Kind, Format] = {"torch_dist": torch_dist, "classic": classic, "hf": hf}
"""In the order in which a folder is tried; each is a module that follows the protocol."""
_SAMPLE = 1000  # elements
_warn = once(logging.getLogger(__name__).warning)


@dataclass
class Checkpoint:
    """An opened checkpoint."""

    path: Path
    kind: Kind
    tensors: dict[str, LazyTensor]
    """HF name -> tensor."""
    model_files: Path
    """The folder of config.json and tokenizer."""
    config: dict[str, Any]
    """config.json as it is."""
    step: int | None = None
    layout: str = ""
    """How the tensors are cut on disk, in words."""
    stored: dict[str, Hashed] = field(default_factory=dict, repr=False)
    """The tensors under the names of the format, which the digest is taken of."""

    @cached_property
    def model(self) -> ModelConfig:
        """The model's configuration. Raises UserError where the architecture is not one that can be converted."""
        return ModelConfig.from_hf(self.model_files, quantized=True)

    @property
    def quantization(self) -> str | None:
        """What ``config.json`` or ``hf_quant_config.json`` says about quantized weights; None: they are plain."""
        return quantization(self.path, self.config)

    def read(self, name: str) -> Tensor:
        """Return one whole tensor, whose digest is not taken on the way. Raises KeyError where there is none."""
        tensor = self.tensors[name]
        return (tensor.source if isinstance(tensor, Hashed) else tensor).full()

    def sampled_digest(self) -> str:
        """Return the SHA-256 over names, dtypes, shapes and the first and last thousand elements of each tensor.

        Another model has another one, and it costs a few kilobytes of reading a tensor.
        """
        total = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            source = tensor.source if isinstance(tensor, Hashed) else tensor
            total.update(f"{name}\0{source.dtype}\0{source.shape}\n".encode())
            for start in (0, max(0, source.numel - _SAMPLE)):
                total.update(bytes_of(source.read(start, min(start + _SAMPLE, source.numel))))
        return total.hexdigest()

    def digest(self) -> str:
        """Return "blake3:" and the digest over names, dtypes, shapes and elements of the tensors, however sharded.

        Elements that were read while converting are not read again.
        """
        total = blake3()
        for name, tensor in sorted(self.stored.items()):
            total.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0{tensor.digest()}\n".encode())
        return f"{BLAKE3}{total.hexdigest()}"


def open_checkpoint(
    path: str | Path, model_files: str | Path | None = None, *, strict: bool = True, quiet: bool = False
) -> Checkpoint:
    """Open a checkpoint of any format:

    * a Hugging Face folder;
    * a checkpoint of ours, or the folder of several steps, of which the last is taken;
    * a bare ``torch_dist`` folder (NeMo's has it in ``weights``);
    * a classic Megatron folder.

    ``model_files``: where config.json and the tokenizer are, for Megatron folders that do not hold them. A Hugging Face
    folder is taken for a model to compute with: quantized weights, missing ones and ones without a place are refused.
    ``strict`` = False opens what is there, to look at it or to turn quantized weights into plain ones. What is left out
    of a folder is logged, once in a process, except with ``quiet``.

    Raises UserError or DamagedFile naming the file and what is wrong with it.
    """
    folder = step_folders.latest(Path(path))
    files = None if model_files is None else Path(model_files)
    for kind, format in FORMATS.items():
        if (contents := format.open_folder(folder, files, strict)) is not None:
            for line in () if quiet else contents.notes:
                _warn(line)
            return _opened(kind, contents)
    problem = "does not exist" if not folder.exists() else "is no checkpoint"
    near = nearby(folder, _looks_right, "checkpoints")
    remedy = f"give a Hugging Face folder, a torch_dist checkpoint or a classic Megatron folder{near}"
    raise UserError(problem, file=path if folder.exists() else folder, remedy=remedy)


def _looks_right(folder: Path) -> bool:
    """Whether a folder has the names of a model or a checkpoint in it, for a message."""
    return (folder / "config.json").is_file() or (folder / step_folders.STATE).is_dir()


def _opened(kind: Kind, contents: Contents) -> Checkpoint:
    folder, files = contents.folder, contents.model_files
    stored = {name: Hashed(tensor) for name, tensor in contents.tensors.items()}
    tensors: dict[str, LazyTensor] = dict(stored)
    if kind != "hf":
        tensors = names.to_hf(stored, ModelConfig.from_hf(files), folder)
    return Checkpoint(folder, kind, tensors, files, contents.config, contents.step, contents.layout, stored)


def write_checkpoint(
    folder: Path,
    kind: Kind,
    tensors: Mapping[str, LazyTensor],
    source: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    stops: StopTokens | None = None,
    rope_theta: float | None = None,
    max_positions: int | None = None,
    shard_bytes: int = safetensors.SHARD_BYTES,
    ranks: tuple[int, int] = (1, 1),
    vocabulary_multiple: int = 128,
) -> None:
    """Write HF-named ``tensors`` into ``folder``, with config.json and tokenizer of ``source``.

    ``dtype``: of the result, the tensors' own when None. ``stops``: see
    :func:`~nemo_openmath.checkpoints.model_files.write_model_files`. ``rope_theta``, ``max_positions``: changes of
    config.json. ``shard_bytes``: of a file of a Hugging Face folder. ``ranks`` (TP, PP) and ``vocabulary_multiple``:
    of a classic folder, whose vocabulary is padded to a multiple of ``vocabulary_multiple`` x TP.

    Raises UserError at the first NaN or infinity, and where the architecture has no place for a tensor.
    """
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    stored = tensors if kind == "hf" else names.to_stored(tensors, source.model)
    main = main_dtype(tensors)
    config = changed_config(source.config, rope_theta=rope_theta, max_positions=max_positions, dtype=main)
    files = folder if kind == "hf" else folder / step_folders.MODEL
    write_model_files(source.model_files, files, config, stops=stops)
    if kind == "hf":
        safetensors.write_folder(folder, stored, shard_bytes)
    elif kind == "torch_dist":
        torch_dist.write_step(folder, stored, source.model, source.step or 0)
    else:
        tp, pp = ranks
        step, multiple = source.step or 0, vocabulary_multiple
        classic.write(folder, stored, source.model, tp=tp, pp=pp, step=step, vocabulary_multiple=multiple)


def lineage(kind: str, sources: Mapping[str, Checkpoint], **config: Any) -> Lineage:
    """Return the lineage of something made of ``sources``; call it when their tensors have been read."""
    inputs = {name: {"path": str(source.path), "digest": source.digest()} for name, source in sources.items()}
    return Lineage(kind, inputs, config={key: value for key, value in config.items() if value is not None})
