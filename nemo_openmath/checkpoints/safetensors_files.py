"""Safetensors folders, read lazily and written in a stream.

The safetensors library reads well but writes only what is wholly in memory, and its memory maps count as memory used;
the format is a length, a JSON header and the bytes, so this reads and writes it with plain files. Damage is named:
which file, which tensor, what is wrong.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints.lazy import LazyTensor, Region, bytes_of, stream
from nemo_openmath.errors import DamagedFile, UserError

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_AGAIN = "copy or download it again"


def read_file(path: Path) -> dict[str, LazyTensor]:
    """Tensors of one file, in file order. Raises DamagedFile when the header or the size of the file is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) < 8 or length > size - 8:
            raise DamagedFile(path, f"truncated: {size} bytes do not hold the header", _AGAIN)
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedFile(path, f"its header is not JSON ({error})", _AGAIN) from None
    header.pop("__metadata__", None)
    tensors: dict[str, LazyTensor] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise UserError(f"tensor {name} has the unknown dtype {entry['dtype']}", file=path)
        start, stop = entry["data_offsets"]
        region = Region(path, 8 + length + start, DTYPES[entry["dtype"]], tuple(entry["shape"]))
        if 8 + length + stop > size:
            raise DamagedFile(path, f"truncated: {name} ends at byte {8 + length + stop} of {size}", _AGAIN)
        if region.nbytes != stop - start:
            raise DamagedFile(path, f"{name} has {stop - start} bytes, its shape needs {region.nbytes}", _AGAIN)
        tensors[name] = region
    return tensors


def read_folder(folder: Path) -> dict[str, LazyTensor]:
    """Tensors of a (sharded) Hugging Face folder. Missing shards, and tensors that the index names and no file holds
    (or the reverse), are errors that name them."""
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError("no *.safetensors here", file=folder, remedy="save the model as safetensors")
        return {name: tensor for file in files for name, tensor in read_file(file).items()}
    try:
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise DamagedFile(index, f"not an index ({error!r})", _AGAIN) from None
    names = sorted(set(where.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DamagedFile(folder, f"missing {', '.join(missing)} of {len(names)} shards", _AGAIN)
    tensors: dict[str, LazyTensor] = {}
    for shard in names:
        held = read_file(folder / shard)
        promised = {name for name, file in where.items() if file == shard}
        for problem, difference in (
            ("lacks, though the index names it:", promised - held.keys()),
            ("holds, though the index does not say so:", held.keys() - promised),
        ):
            if difference:
                raise DamagedFile(folder / shard, f"{problem} {min(difference)} ({len(difference)} tensors)", _AGAIN)
        tensors.update(held)
    return tensors


def write_file(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file. ``metadata``: strings for the header; Hugging Face loaders want ``format: pt``."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    at = 0
    for name, tensor in ordered.items():
        offsets = [at, at + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        write_all(file, struct.pack("<Q", len(text)) + text)
        for _, pieces in stream(ordered):
            for piece in pieces:
                write_all(file, bytes_of(piece))


def write_all(file: io.RawIOBase | io.FileIO, data: bytes | memoryview) -> None:
    """Write all of ``data`` to an unbuffered file, which may take it in parts."""
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) or 0 :]


def write_folder(folder: Path, tensors: Mapping[str, LazyTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` (one tensor may be more) with their index."""
    shards: list[dict[str, LazyTensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    if len(shards) == 1:
        return write_file(folder / "model.safetensors", tensors)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        where.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")
    return None
