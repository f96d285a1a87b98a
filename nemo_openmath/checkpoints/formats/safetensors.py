"""Safetensors folders, read lazily and written in a stream.

The safetensors library reads well but writes only what is wholly in memory, and its memory maps count as memory used;
the format is a length, a JSON header and the bytes, so this reads and writes it with plain files. Damage is named:
which file, which tensor, what is wrong.
"""

from __future__ import annotations

import json
import operator
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints.lazy import FileTensor, LazyTensor, bytes_of
from nemo_openmath.checkpoints.streaming import OutputFile, stream
from nemo_openmath.core.errors import DamagedFile, UserError

SINGLE = "model.safetensors"
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
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_AGAIN = "copy or download it again"


def read_file(path: Path) -> dict[str, LazyTensor]:
    """Read the header of one file and return its tensors, in file order.

    Raises DamagedFile when the header or the size of the file is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) < 8 or length > size - 8:
            raise DamagedFile(path, f"truncated: {size} bytes do not hold the header", _AGAIN)
        try:
            header: Any = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedFile(path, f"its header is not JSON ({error})", _AGAIN) from None
    tensors: dict[str, LazyTensor] = {}
    at = 0
    for name, dtype, shape, start, stop in _entries(path, header):
        if dtype not in DTYPES:
            raise UserError(
                f"tensor {name} has the unknown dtype {dtype}", file=path, remedy="save it in another dtype"
            )
        region = FileTensor(path, 8 + length + start, DTYPES[dtype], shape)
        if 8 + length + stop > size:
            raise DamagedFile(path, f"truncated: {name} ends at byte {8 + length + stop} of {size}", _AGAIN)
        if region.nbytes != stop - start:
            raise DamagedFile(path, f"{name} has {stop - start} bytes, its shape needs {region.nbytes}", _AGAIN)
        if start != at:
            raise DamagedFile(path, f"{name} begins at byte {start}, what is before it ends at {at}", _AGAIN)
        tensors[name], at = region, stop
    if 8 + length + at != size:
        raise DamagedFile(path, f"{size - 8 - length - at} bytes belong to no tensor", _AGAIN)
    return tensors


def _entries(path: Path, header: Any) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Return (name, dtype, shape, first byte, end) of every tensor, in file order."""
    entries = []
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                shape = tuple(operator.index(size) for size in entry["shape"])
                entries.append((name, str(entry["dtype"]), shape, operator.index(start), operator.index(stop)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFile(path, f"its header is not of safetensors ({error!r})", _AGAIN) from None
    return sorted(entries, key=lambda entry: entry[3:])


def read_folder(folder: Path) -> tuple[dict[str, LazyTensor], list[str], list[str]]:
    """Return the tensors of a Hugging Face folder, the names of their files, and those of other files of weights.

    What transformers reads is read: ``model.safetensors``, else the shards that the index names. A folder that has
    both is refused, because programs differ in which they take; only an index that names that one file may lie beside
    it. Without either, the whole set of one save's shards is read. Missing shards, and tensors that the index names
    and no file holds (or the reverse), are errors that name them."""
    index = folder / INDEX
    if index.is_file():
        tensors, read = _of_index(index)
    elif (folder / SINGLE).is_file():
        tensors, read = read_file(folder / SINGLE), [SINGLE]
    else:
        tensors, read = _shards_without_index(folder)
    others = {file.name for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file()}
    return tensors, read, sorted(others - set(read))


_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "*.gguf")


def _of_index(index: Path) -> tuple[dict[str, LazyTensor], list[str]]:
    folder = index.parent
    try:
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(where.values()))
        wrong = next((name for name in names if Path(name).name != name or name in ("", ".", "..")), None)
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise DamagedFile(index, f"not an index ({error!r})", _AGAIN) from None
    if wrong is not None:
        raise DamagedFile(index, f"names {wrong!r}, which is no file of this folder", _AGAIN)
    if (folder / SINGLE).is_file() and names != [SINGLE]:
        problem = f"holds {SINGLE} and {INDEX}: two models, and programs differ in which they load"
        raise UserError(problem, file=folder, remedy="remove the stale one")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DamagedFile(folder, f"missing {', '.join(missing)} of {len(names)} shards", _AGAIN)
    tensors: dict[str, LazyTensor] = {}
    for shard in names:
        in_shard = read_file(folder / shard)
        promised = {name for name, file in where.items() if file == shard}
        for problem, difference in (
            ("lacks, though the index names it:", promised - in_shard.keys()),
            ("holds, though the index does not say so:", in_shard.keys() - promised),
        ):
            if difference:
                raise DamagedFile(folder / shard, f"{problem} {min(difference)} ({len(difference)} tensors)", _AGAIN)
        tensors.update(in_shard)
    return tensors, names


def _shards_without_index(folder: Path) -> tuple[dict[str, LazyTensor], list[str]]:
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        raise UserError("no *.safetensors here", file=folder, remedy="save the model as safetensors")
    shards = {name: match for name in files if (match := _SHARD.fullmatch(name))}
    saves = sorted({(match[1], match[3]) for match in shards.values()})
    strangers = [name for name in files if name not in shards]
    if strangers or len(saves) > 1:
        named = strangers or [f"{name}-*-of-{count}.safetensors" for name, count in saves]
        problem = f"neither {SINGLE} nor {INDEX} is here to say whether {', '.join(named)} is the model"
        remedy = f"rename the model's one file to {SINGLE}, or remove what is not the model's"
        raise UserError(problem, file=folder, remedy=remedy)
    name, count = saves[0]
    every = [f"{name}-{n:05d}-of-{count}.safetensors" for n in range(1, int(count) + 1)]
    missing = [shard for shard in every if shard not in shards]
    if missing:
        raise DamagedFile(folder, f"missing {', '.join(missing)} of {len(every)} shards", _AGAIN)
    tensors: dict[str, LazyTensor] = {}
    for shard in files:
        in_shard = read_file(folder / shard)
        if twice := tensors.keys() & in_shard.keys():
            problem = f"{min(twice)} is in two files, and no {INDEX} says which counts"
            raise UserError(problem, file=folder / shard, remedy="remove the files that are not the model's")
        tensors.update(in_shard)
    return tensors, files


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
    with OutputFile(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, pieces in stream(ordered):
            for piece in pieces:
                file.write(bytes_of(piece))


def write_folder(folder: Path, tensors: Mapping[str, LazyTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` (one tensor may be more) with their index."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return write_file(folder / SINGLE, tensors)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        where.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")
    return None
