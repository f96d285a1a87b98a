"""Files of ``torch.save``, read lazily and written in a stream.

``torch.save`` and ``torch.load`` hold what they save whole in memory and trust the pickle. Here the container (an
uncompressed zip: ``data.pkl`` that describes, ``data/N`` with the elements of storage N) is opened to learn where the
elements lie, so a tensor becomes a :class:`Region` of the file; the pickle may name only what describes tensors and
plain data. Used for classic Megatron files and for every item of a ``torch_dist`` checkpoint.

PyTorch's own readers do not serve here. ``torch.load(mmap=True, weights_only=True)`` opens whole files only, while a
``torch_dist`` file holds one saved item after another; the pages that it maps count as memory used; and it refuses a
file for any class of a training framework in it, where :class:`RestrictedUnpickler` passes over the object. The reader
of ``.metadata`` in ``torch.distributed.checkpoint`` (``FileSystemReader``) is a plain ``pickle.load``, which runs
whatever a foreign checkpoint says.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from nemo_openmath.checkpoints.lazy import FileTensor, LazyTensor, Window, bytes_of
from nemo_openmath.core.errors import DamagedFile, OpenMathError, UserError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STORAGE_OF = {dtype: getattr(torch, name) for name, dtype in _STORAGES.items()}
_ALIGNMENT = 64
_AGAIN = "copy or save it again"
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: None,
    ("builtins", "set"): set,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class Opaque:
    """Stands for an object of a class that has no place in a model (what a training framework left behind)."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> Opaque:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Slice(io.RawIOBase):
    """Bytes [offset, offset + length) of an open file, seekable, for zipfile."""

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        available = max(self._length - self._at, 0)
        size = available if size is None or size < 0 else min(size, available)
        self._file.seek(self._offset + self._at)
        block = self._file.read(size)
        self._at += len(block)
        return block


def load(path: Path, offset: int = 0, length: int | None = None) -> Any:
    """Return what ``torch.save`` wrote at ``offset``, with a :class:`LazyTensor` for every tensor.

    Raises DamagedFile where the file is cut or altered.
    """
    try:
        data, records = _records(path, offset, path.stat().st_size - offset if length is None else length)
        return _TensorUnpickler(data, path, records).load()
    except OpenMathError:
        raise
    except Exception as error:  # an archive or a pickle that is cut or altered fails in any way
        raise DamagedFile(path, f"truncated or not a torch file ({type(error).__name__}: {error})", _AGAIN) from None


def _records(path: Path, offset: int, length: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The pickle, and storage -> (position in the file, bytes)."""
    with path.open("rb") as file:
        archive = zipfile.ZipFile(_Slice(file, offset, length))
        (description,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        data, prefix = archive.read(description), description.removesuffix("data.pkl")
        places: dict[str, tuple[int, int]] = {}
        for info in archive.infolist():
            if info.filename.startswith(prefix + "data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} is compressed")
                file.seek(offset + info.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                at = offset + info.header_offset + 30 + name + extra
                places[info.filename.removeprefix(prefix + "data/")] = (at, info.file_size)
        if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
            raise UserError("was written big-endian", file=path, remedy="save it on a little-endian machine")
    return data, places


class RestrictedUnpickler(pickle.Unpickler):
    """Knows plain data, dtypes and what ``known`` adds; an object of any other class becomes :class:`Opaque`.

    Nothing that a pickle names is ever imported or called.
    """

    def __init__(self, data: bytes, known: Mapping[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data))
        self._known = _PLAIN | dict(known)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return self._known.get((module, name), Opaque)


class _TensorUnpickler(RestrictedUnpickler):
    """Gives a lazy tensor for each tensor of a file."""

    def __init__(self, data: bytes, path: Path, records: Mapping[str, tuple[int, int]]):
        known: dict[tuple[str, str], Any] = {("torch", name): dtype for name, dtype in _STORAGES.items()}
        known["torch._utils", "_rebuild_tensor_v2"] = self._tensor
        known["torch._utils", "_rebuild_parameter"] = lambda data, *_: data
        super().__init__(data, known)
        self._path, self._records = path, records

    def persistent_load(self, pid: Any) -> FileTensor:
        _, dtype, key, _, numel = pid
        at, size = self._records[key]
        if size != numel * dtype.itemsize:
            problem = f"storage {key} has {size} bytes, {numel * dtype.itemsize} are needed"
            raise DamagedFile(self._path, problem, _AGAIN)
        return FileTensor(self._path, at, dtype, (numel,))

    def _tensor(self, storage: FileTensor, offset: int, shape: Any, stride: Any, *_: Any) -> LazyTensor:
        wanted = 1
        for size, step in zip(reversed(shape), reversed(stride), strict=True):
            if size != 1 and step != wanted:
                problem = f"a tensor of shape {tuple(shape)} is not contiguous"
                raise UserError(problem, file=self._path, remedy="save contiguous() tensors")
            wanted *= size
        return Window(storage, offset, tuple(shape))


class _Reference:
    """Pickles as a tensor whose storage is record ``key``."""

    def __init__(self, tensor: LazyTensor, key: str):
        self.tensor, self.key = tensor, key

    def __reduce__(self) -> Any:
        strides, step = [], 1
        for size in reversed(self.tensor.shape):
            strides.append(step)
            step *= size
        storage = _Storage(self.tensor.dtype, self.key, self.tensor.numel)
        return torch._utils._rebuild_tensor_v2, (
            storage,
            0,
            self.tensor.shape,
            tuple(reversed(strides)),
            False,
            collections.OrderedDict(),
        )


class _Storage:
    def __init__(self, dtype: torch.dtype, key: str, numel: int):
        self.persistent = ("storage", _STORAGE_OF[dtype], key, "cpu", numel)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent if isinstance(obj, _Storage) else None


class _Appender:
    """What zipfile writes to: positions count from here, and there is no seeking back (sizes follow the data)."""

    def __init__(self, write: Callable[[bytes | memoryview], object]):
        self._write, self._at = write, 0

    def write(self, data: bytes | memoryview) -> int:
        self._write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        pass


def save(
    write: Callable[[bytes | memoryview], object], value: Any, tensors: Iterable[LazyTensor], pieces: Pieces
) -> int:
    """Write ``value`` so that ``torch.load`` reads it; returns the number of bytes.

    ``tensors``: the lazy tensors within ``value`` (found by identity), in the order in which ``pieces(tensor)`` is
    asked for their elements. ``write`` takes the bytes in order.
    """
    tensors = list(tensors)
    keys = {id(tensor): str(number) for number, tensor in enumerate(tensors)}
    data = io.BytesIO()
    _Pickler(data, protocol=2).dump(_with_references(value, keys))
    out = _Appender(write)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        _record(archive, out, "archive/data.pkl", [data.getbuffer()], len(data.getbuffer()))
        _record(archive, out, "archive/byteorder", [b"little"], 6)
        for number, tensor in enumerate(tensors):
            _record(archive, out, f"archive/data/{number}", map(bytes_of, pieces(tensor)), tensor.nbytes)
        _record(archive, out, "archive/version", [b"3\n"], 2)
    return out.tell()


Pieces = Callable[[LazyTensor], Iterator[Tensor]]


def _with_references(value: Any, keys: Mapping[int, str]) -> Any:
    if isinstance(value, LazyTensor):
        return _Reference(value, keys[id(value)])
    if isinstance(value, dict):
        return type(value)((k, _with_references(v, keys)) for k, v in value.items())
    return [_with_references(v, keys) for v in value] if isinstance(value, list) else value


def _record(archive: Any, out: _Appender, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
    """One record, its data aligned as torch aligns it (an extra field of padding), so that it can be memory-mapped."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    zip64 = size * 1.05 > zipfile.ZIP64_LIMIT
    start = out.tell() + 30 + len(name) + (20 if zip64 else 0) + 4
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=zip64) as record:
        for part in parts:
            record.write(part)
