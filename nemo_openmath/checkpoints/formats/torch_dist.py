"""megatron-core's ``torch_dist`` checkpoints (PyTorch distributed checkpoint), without processes and without a GPU.

    .metadata        pickle: every tensor's dtype, shape and blocks, and in which file, where, each block lies
    __R_N.distcp     the blocks, one ``torch.save`` after another
    common.pt        what is not sharded          metadata.json    that this is torch_dist

Reading resolves every tensor to regions of files; the ``module.`` that NeMo puts before every name is taken off.
Writing streams tensor after tensor; any layout loads the result.
The folder around it (manifest, model files) is :mod:`nemo_openmath.checkpoints.formats.step_folders`'s.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from nemo_openmath.checkpoints.formats import step_folders, torch_file
from nemo_openmath.checkpoints.formats.protocol import Contents
from nemo_openmath.checkpoints.lazy import Blocks, LazyTensor, StackedRows, Window, refuse_payloads
from nemo_openmath.checkpoints.streaming import OutputFile, stream
from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.core.records.lineage import BLAKE3
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import read_config

METADATA = ".metadata"
MODEL_NAMES = ("embedding.", "decoder.", "output_layer.")
"""How the names of a model's tensors begin; all others are training state."""
_NEMO = "weights"  # beside it is context/, which says how the training was configured
DESCRIPTION = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""metadata.json as megatron-core's dist_checkpointing writes it."""
FILE_BYTES = 5_000_000_000
_AGAIN = "use another checkpoint"
_WRAPPERS = re.compile(r"^(module\.)+")  # NeMo's megatron_parallel saves the model as an attribute of its wrapper


def _memory_format(kind: Any, name: str) -> Any:
    """Return a member of the one enum that ``.metadata`` holds. Python 3.11.0 to 3.11.3 write it as a ``getattr``."""
    return kind[name] if kind is dcp._MEM_FORMAT_ENCODING else torch_file.Opaque()


_KNOWN: dict[tuple[str, str], Any] = {
    **{(dcp.__name__, name): value for name, value in vars(dcp).items() if isinstance(value, type)},
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,
    ("builtins", "getattr"): _memory_format,
}
"""The classes that describe tensors; whatever else is in ``.metadata`` (save plans) is not needed."""


def _metadata(folder: Path) -> Any:
    try:
        metadata = torch_file.RestrictedUnpickler((folder / METADATA).read_bytes(), _KNOWN).load()
        return metadata.state_dict_metadata, metadata.storage_data
    except Exception as error:  # a pickle that is cut or altered fails in any way
        raise DamagedFile(folder / METADATA, f"unreadable ({type(error).__name__}: {error})", _AGAIN) from None


def open_folder(folder: Path, model_files: Path | None = None, strict: bool = True) -> Contents | None:
    """Open a checkpoint of ours, or a bare ``torch_dist`` folder (NeMo's has it in ``weights``); None for others.

    Raises DamagedFile where a file has not the size that the manifest says.
    """
    state = folder / step_folders.STATE
    if (state / METADATA).is_file() or (state.is_dir() and (folder / step_folders.MANIFEST).is_file()):
        step: int | None = step_folders.check_sizes(folder).step
        files = model_files or folder / step_folders.MODEL
    else:
        if (folder / _NEMO / METADATA).is_file():
            folder = folder / _NEMO
        if not (folder / METADATA).is_file():
            return None
        state, files = folder, model_files or step_folders.model_files_beside(folder)
        number = folder.name.removeprefix("iter_")
        step = int(number) if number.isdigit() else None
    tensors = {name: tensor for name, tensor in read(state).items() if name.startswith(MODEL_NAMES)}
    refuse_payloads(folder, tensors)
    layout = f"{len(list(state.glob('*.distcp')))} files, loads at any layout"
    return Contents(folder, tensors, files, read_config(files), layout, step)


def tensor_names(folder: Path) -> list[str]:
    """Return the names of all stored tensors, optimizer state included. Only ``.metadata`` is read."""
    state, _ = _metadata(folder)
    return [name for name, entry in state.items() if isinstance(entry, dcp.TensorStorageMetadata)]


def read(folder: Path, names: Iterable[str] | None = None) -> dict[str, LazyTensor]:
    """Return tensors by stored name: all, or those of ``names`` that are there.

    Layers stored as one stack (``decoder.layers.mlp...`` of [layers, ...]) appear one by one. Raises DamagedFile naming
    a damaged or missing file.
    """
    try:
        state, storage = _metadata(folder)
        return _tensors(folder, state, storage, names)
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:  # other than it describes
        raise DamagedFile(folder / METADATA, f"unreadable ({type(error).__name__}: {error})", _AGAIN) from None


def _tensors(
    folder: Path, state: Mapping[str, Any], storage: Mapping[Any, Any], names: Iterable[str] | None
) -> dict[str, LazyTensor]:
    wanted = None if names is None else set(names)
    tensors: dict[str, LazyTensor] = {}
    for name, entry in state.items():
        if not isinstance(entry, dcp.TensorStorageMetadata):
            continue
        plain = _WRAPPERS.sub("", name)
        stacked = plain.startswith("decoder.layers.") and not plain.split(".")[2].isdigit()
        layers = [plain]
        if stacked:
            layers = [plain.replace("layers.", f"layers.{number}.", 1) for number in range(entry.size[0])]
        if wanted is not None and wanted.isdisjoint(layers):
            continue
        if twice := tensors.keys() & set(layers):
            raise DamagedFile(folder / METADATA, f"{min(twice)} is in it twice", _AGAIN)
        tensor = _tensor(folder, name, entry, storage)
        if stacked:
            for number, layer in enumerate(layers):
                tensors[layer] = Window(tensor, number * tensor.row, tensor.shape[1:])
        else:
            tensors[plain] = tensor
    return tensors if wanted is None else {name: tensors[name] for name in tensors if name in wanted}


def _tensor(folder: Path, name: str, entry: Any, storage: Mapping[Any, Any]) -> LazyTensor:
    blocks: list[tuple[tuple[int, ...], LazyTensor]] = []
    for chunk in entry.chunks:
        where = storage.get(dcp.MetadataIndex(name, chunk.offsets))
        if where is None:
            raise DamagedFile(folder / METADATA, f"no file holds the block at {tuple(chunk.offsets)} of {name}", _AGAIN)
        path = folder / where.relative_path
        if not path.is_file():
            raise DamagedFile(path, f"missing; it holds a part of {name}", _AGAIN)
        if where.offset + where.length > path.stat().st_size:
            raise DamagedFile(path, f"truncated; it holds a part of {name}", _AGAIN)
        block = torch_file.load(path, where.offset, where.length)
        if not isinstance(block, LazyTensor) or block.numel != torch.Size(chunk.sizes).numel():
            raise DamagedFile(path, f"the block at {tuple(chunk.offsets)} of {name} is not what .metadata says", _AGAIN)
        blocks.append((tuple(chunk.offsets), Window(block, 0, tuple(chunk.sizes))))
    blocks.sort(key=lambda item: item[0])
    shape = tuple(entry.size)
    if sum(block.numel for _, block in blocks) != torch.Size(shape).numel():
        raise DamagedFile(folder / METADATA, f"the blocks of {name} do not cover its shape {shape}", _AGAIN)
    if len(blocks) == 1:
        return Window(blocks[0][1], 0, shape)
    if all(block.shape[1:] == shape[1:] for _, block in blocks):
        return StackedRows([block for _, block in blocks])
    return Blocks(shape, blocks)


def write(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    objects: Mapping[str, Any] | None = None,
    common: Mapping[str, Any] | None = None,
    file_bytes: int = FILE_BYTES,
) -> dict[str, dict[str, Any]]:
    """Write a checkpoint; returns file name -> {"bytes", "digest"}, taken while writing.

    ``tensors``: stored name -> full tensor. ``objects``: megatron-core's sharded objects (``NAME/shard_0_1`` -> value).
    ``common``: the content of common.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    outputs = [OutputFile(folder / "__0_0.distcp", hashed=True)]
    try:
        for name, value in (objects or {}).items():
            output, buffer = outputs[-1], io.BytesIO()
            torch.save([value], buffer)
            state[name] = dcp.BytesStorageMetadata()
            where = filesystem._StorageInfo(output.path.name, output.size, buffer.getbuffer().nbytes)
            storage[dcp.MetadataIndex(name)] = where
            output.write(buffer.getbuffer())
        for name, pieces in stream(tensors):
            tensor = tensors[name]
            if outputs[-1].size > file_bytes:
                outputs[-1].close()
                outputs.append(OutputFile(folder / f"__0_{len(outputs)}.distcp", hashed=True))
            output, start = outputs[-1], outputs[-1].size
            torch_file.save(output.write, tensor, [tensor], lambda _, source=pieces: source)  # type: ignore[misc]
            shape, origin = torch.Size(tensor.shape), torch.Size([0] * len(tensor.shape))
            chunk = dcp.ChunkStorageMetadata(offsets=origin, sizes=shape)
            state[name] = dcp.TensorStorageMetadata(dcp.TensorProperties(dtype=tensor.dtype), shape, [chunk])
            where = filesystem._StorageInfo(output.path.name, start, output.size - start)
            storage[dcp.MetadataIndex(name, origin)] = where
    finally:
        outputs[-1].close()
    files: dict[str, dict[str, Any]] = {
        output.path.name: {"bytes": output.size, "digest": output.digest} for output in outputs
    }
    description = dcp.Metadata(state, planner_data={}, storage_data=storage, storage_meta=dcp.StorageMeta())
    saved = io.BytesIO()
    torch.save(dict(common or {}), saved)
    for file, data in (
        ("common.pt", saved.getvalue()),
        ("metadata.json", json.dumps(DESCRIPTION).encode()),
        (METADATA, pickle.dumps(description)),
    ):
        (folder / file).write_bytes(data)
        files[file] = {"bytes": len(data), "digest": f"{BLAKE3}{blake3(data).hexdigest()}"}
    return files


def write_step(folder: Path, stored: Mapping[str, LazyTensor], config: ModelConfig, step: int) -> None:
    """Write a checkpoint of ours that holds a model alone; its ``model`` files are in ``folder`` already."""
    common = {"iteration": step, "checkpoint_version": 3.0, "content_metadata": {"non_homogeneous_layers": True}}
    objects = _extra_states(config)
    written = write(folder / step_folders.STATE, stored, objects=objects, common=common)
    files = {f"{step_folders.STATE}/{name}": entry for name, entry in written.items()}
    for path in (folder / step_folders.MODEL).iterdir():
        files[f"{step_folders.MODEL}/{path.name}"] = step_folders.checksum(path)
    manifest = step_folders.StepManifest(step, files)
    (folder / step_folders.MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))


def _extra_states(config: ModelConfig) -> dict[str, None]:
    """megatron-core's own loader asks for these (TransformerEngine keeps FP8 scales there); empty ones satisfy it."""
    linear = ["self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"]
    inner = [*linear, "self_attention.core_attention"]
    modules = [f"decoder.layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in inner]
    if not config.tie_word_embeddings:
        modules.append("output_layer")
    return {f"{module}._extra_state/shard_0_1": None for module in [*modules, "decoder.final_layernorm"]}
