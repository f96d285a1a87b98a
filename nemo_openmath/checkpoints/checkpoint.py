"""One way to open any checkpoint: its kind is found out, its tensors appear lazily under Hugging Face names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from nemo_openmath.checkpoints import names
from nemo_openmath.checkpoints.formats import classic, hf, safetensors, step_folders, torch_dist
from nemo_openmath.checkpoints.lazy import LazyTensor, bytes_of
from nemo_openmath.checkpoints.streaming import Hashed
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records.lineage import Lineage
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import quantization, read_config

Kind = Literal["hf", "torch_dist", "classic"]
_SAMPLE = 1000  # elements
_NEMO = "weights"  # beside it is context/, which says how the training was configured


@dataclass
class Checkpoint:
    """An opened checkpoint. ``tensors``: HF name -> tensor. ``model_files``: the folder of config.json and tokenizer.
    ``layout``: how it is cut on disk, in words."""

    path: Path
    kind: Kind
    tensors: dict[str, LazyTensor]
    model_files: Path
    step: int | None = None
    layout: str = ""
    _hashed: dict[str, Hashed] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it is."""
        return read_config(self.model_files)

    @property
    def model(self) -> ModelConfig:
        """Raises UserError where the architecture is not one that can be converted."""
        return ModelConfig.from_hf(self.model_files, quantized=True)

    @property
    def quantization(self) -> str | None:
        """What ``config.json`` or ``hf_quant_config.json`` says about quantized weights; None: they are plain."""
        return quantization(self.path, self.config)

    def read(self, name: str) -> Tensor:
        """One whole tensor, whose digest is not taken on the way. KeyError where there is none of this name."""
        tensor = self.tensors[name]
        return (tensor.source if isinstance(tensor, Hashed) else tensor).full()

    def sampled_digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and the first and last thousand elements of each tensor: another model has
        another one, and it costs a few kilobytes of reading a tensor."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            source = tensor.source if isinstance(tensor, Hashed) else tensor
            total.update(f"{name}\0{source.dtype}\0{source.shape}\n".encode())
            for start in (0, max(0, source.numel - _SAMPLE)):
                total.update(bytes_of(source.read(start, min(start + _SAMPLE, source.numel))))
        return total.hexdigest()

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and elements of the tensors, however they are sharded. Elements that were
        read while converting are not read again."""
        total = hashlib.sha256()
        for name, tensor in sorted(self._hashed.items()):
            total.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0{tensor.digest()}\n".encode())
        return total.hexdigest()


def open_checkpoint(
    path: str | Path,
    model_files: str | Path | None = None,
    *,
    strict: bool = True,
    say: Callable[[str], None] = hf.warn,
) -> Checkpoint:
    """Open a Hugging Face folder, a checkpoint of ours, a bare ``torch_dist`` folder (NeMo's has it in ``weights``), or
    a classic Megatron folder.

    ``model_files``: where config.json and the tokenizer are, for Megatron folders that do not hold them. A folder of
    several steps means its last. Raises UserError or DamagedFile naming the file and what is wrong with it.

    A Hugging Face folder is taken for a model to compute with: quantized weights, missing ones and ones without a place
    are refused. ``strict`` = False opens what is there, to look at it or to turn quantized weights into plain ones.
    ``say`` is told what is left out.
    """
    path = Path(path)
    folder = _latest(path)
    around = None if model_files is None else Path(model_files)
    state = folder / step_folders.STATE
    if (state / torch_dist.METADATA).is_file() or (state.is_dir() and (folder / step_folders.MANIFEST).is_file()):
        manifest = step_folders.verify(folder, checksums=False)
        return _torch_dist(folder, state, around or folder / step_folders.MODEL, manifest.step)
    if (folder / _NEMO / torch_dist.METADATA).is_file():
        folder = folder / _NEMO
    if (folder / torch_dist.METADATA).is_file():
        return _torch_dist(folder, folder, around or _beside(folder), _iteration(folder))
    if any(folder.glob("mp_rank_*")):
        around = around or _beside(folder)
        stored, facts = classic.read(folder, ModelConfig.from_hf(around))
        layout = f"tp {facts['tp']} x pp {facts['pp']}"
        return _opened(folder, "classic", stored, around, step=facts["step"], layout=layout)
    if (folder / "config.json").is_file():
        tensors = hf.open_tensors(folder, around, strict=strict, say=say)
        return _opened(folder, "hf", tensors, around or folder, layout=_shards(folder))
    problem = "does not exist" if not folder.exists() else "is no checkpoint"
    remedy = "give a Hugging Face folder, a torch_dist checkpoint or a classic Megatron folder"
    raise UserError(problem, file=path if folder.exists() else folder, remedy=remedy)


def _torch_dist(folder: Path, state: Path, model_files: Path, step: int | None) -> Checkpoint:
    found = torch_dist.read(state)
    stored = {name: tensor for name, tensor in found.items() if name.startswith(names.MODEL)}
    files = len(list(state.glob("*.distcp")))
    return _opened(folder, "torch_dist", stored, model_files, step=step, layout=f"{files} files, loads at any layout")


def _opened(
    folder: Path,
    kind: Kind,
    found: Mapping[str, LazyTensor],
    model_files: Path,
    *,
    step: int | None = None,
    layout: str,
) -> Checkpoint:
    read_config(model_files)
    hashed = {name: Hashed(tensor) for name, tensor in found.items()}
    tensors: dict[str, LazyTensor] = dict(hashed)
    if kind != "hf":
        hf.refuse_payloads(folder, found)
        tensors = names.to_hf(hashed, ModelConfig.from_hf(model_files), folder)
    return Checkpoint(folder, kind, tensors, model_files, step, layout, hashed)


def _latest(path: Path) -> Path:
    """The folder of the last step where ``path`` holds several; else ``path``."""
    marker = path / "latest_checkpointed_iteration.txt"
    if marker.is_file():
        text = marker.read_text().strip()
        if text != "release" and not text.isdigit():
            raise DamagedFile(marker, f"holds {text[:20]!r}, not the number of a step", "write the number into it")
        return path / ("release" if text == "release" else f"iter_{int(text):07d}")
    steps = step_folders.list_checkpoints(path)
    return steps[-1] if steps else path


def _beside(folder: Path) -> Path:
    """Where a Megatron folder's config.json may be: in it, in its ``model`` folder, or in the folder above."""
    candidates = (folder / "model", folder, folder.parent / "model", folder.parent)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    remedy = "copy those of its Hugging Face model into it, or name that folder: megatron-to-hf --model-files"
    raise UserError("no config.json and tokenizer belong to it", file=folder, remedy=remedy)


def _iteration(folder: Path) -> int | None:
    name = folder.name.removeprefix("iter_")
    return int(name) if name.isdigit() else None


def _shards(folder: Path) -> str:
    index = folder / safetensors.INDEX
    count = len(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else 1
    return f"{count} file" + ("s" if count > 1 else "")


def lineage(kind: str, sources: Mapping[str, Checkpoint], **config: Any) -> Lineage:
    """The lineage of something made of ``sources``; call it when their tensors have been read."""
    inputs = {name: {"path": str(source.path), "digest": source.digest()} for name, source in sources.items()}
    return Lineage(kind, inputs, config={key: value for key, value in config.items() if value is not None})
