"""What a checkpoint is, and how two differ: read once, in pieces, whatever the format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import Checkpoint, open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.checkpoints.lazy import LazyTensor, bytes_of
from nemo_openmath.core.records.lineage import Lineage

T = TypeVar("T")


def _in_order(tensors: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """By name, numbers as numbers: layer 2 before layer 10."""
    return sorted(tensors, key=lambda item: [part.zfill(9) if part.isdigit() else part for part in item[0].split(".")])


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor: ``norm`` is its 2-norm, ``largest`` its largest magnitude, ``broken`` the number of NaN and
    infinities (they are left out of the other two)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    norm: float
    largest: float
    broken: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint. ``elements``: dtype -> number of elements. ``digest``: of names and contents, however sharded."""

    path: Path
    kind: str
    layout: str
    step: int | None
    architecture: str
    elements: dict[str, int]
    lineage: Lineage | None
    tensors: tuple[TensorRow, ...]
    digest: str | None = None

    @property
    def parameters(self) -> int:
        return sum(self.elements.values())

    def lines(self) -> Iterator[str]:
        """Yield the description as lines of text: the summary, then the table of tensors."""
        dtypes = ", ".join(f"{name} {count:,}" for name, count in self.elements.items())
        yield f"{self.path}: {self.kind} ({self.layout}), {self.architecture}"
        yield f"step {'-' if self.step is None else self.step}; {self.parameters:,} parameters ({dtypes})"
        if self.digest:
            yield f"digest {self.digest}"
        if self.lineage:
            yield f"made by {self.lineage.kind}: {' '.join(self.lineage.command)}"
            for name, entry in self.lineage.inputs.items():
                yield f"  from {name}: {entry.get('path')} {entry.get('digest', '')[:23]}"
        broken = [row.name for row in self.tensors if row.broken]
        if broken:
            yield f"BROKEN: NaN or infinity in {len(broken)} tensors, first in {broken[0]}"
        if self.tensors:
            yield f"{'norm':>12} {'largest':>12}  {'dtype':9} tensor"
        for row in self.tensors:
            yield f"{row.norm:12.5g} {row.largest:12.5g}  {row.dtype:9} {row.name} {list(row.shape)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor in A and B: ``norm`` is |A - B|, ``relative`` that divided by |A|, ``largest`` the largest element."""

    name: str
    norm: float
    relative: float
    largest: float


@dataclass(frozen=True, slots=True)
class CheckpointComparison:
    """A against B. ``different``: tensors of one shape with unequal elements, the most different first."""

    a: Path
    b: Path
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: tuple[str, ...]  # of config.json, in words
    shapes: tuple[str, ...]  # unequal shapes or dtypes, in words
    different: tuple[Difference, ...]
    equal: int

    @property
    def same(self) -> bool:
        return not (self.only_a or self.only_b or self.shapes or self.different or self.settings)

    def lines(self) -> Iterator[str]:
        yield f"A {self.a}"
        yield f"B {self.b}"
        for mark, names in (("only in A", self.only_a), ("only in B", self.only_b)):
            yield from (f"{mark}: {name}" for name in names)
        yield from (f"config.json: {text}" for text in self.settings)
        yield from self.shapes
        yield f"{self.equal} tensors equal bit for bit, {len(self.different)} differ"
        if self.different:
            yield f"{'|A-B|':>12} {'|A-B|/|A|':>12} {'largest':>12}  tensor"
        for row in self.different:
            yield f"{row.norm:12.5g} {row.relative:12.5g} {row.largest:12.5g}  {row.name}"


def inspect(path: str | Path, *, model_files: str | Path | None = None, norms: bool = True) -> Inspection:
    """Describe a checkpoint. ``norms`` reads all elements; without it only headers are read, and no digest is taken.

    Raises UserError or DamagedFile naming damaged and missing files; the checksums of a manifest are held against
    the files where norms are taken.
    """
    source = open_checkpoint(path, model_files, strict=False)
    if norms and (source.path / step_folders.STATE).is_dir() and (source.path / step_folders.MANIFEST).is_file():
        step_folders.verify(source.path)  # with checksums: bytes that the disk changed look like weights
    elements: dict[str, int] = {}
    for tensor in source.tensors.values():
        elements[_name(tensor.dtype)] = elements.get(_name(tensor.dtype), 0) + tensor.numel
    config = source.config
    listed = config.get("architectures") or None
    return Inspection(
        path=source.path,
        kind=source.kind,
        layout=source.layout,
        step=source.step,
        architecture=", ".join(map(str, listed)) if isinstance(listed, list) else str(config.get("model_type")),
        elements=elements,
        lineage=_lineage(source.path),
        tensors=tuple(_row(name, tensor) for name, tensor in _in_order(source.tensors.items())) if norms else (),
        digest=source.digest() if norms else None,
    )


def _lineage(folder: Path) -> Lineage | None:
    try:
        return Lineage.read(folder)
    except (TypeError, ValueError):  # another program's file of that name
        return None


def _row(name: str, tensor: LazyTensor) -> TensorRow:
    stats = _Statistics()
    for piece in tensor.pieces():
        stats.add(piece)
    return TensorRow(name, _name(tensor.dtype), tensor.shape, stats.norm, stats.largest, stats.broken)


@dataclass
class _Statistics:
    squares: float = 0.0
    largest: float = 0.0
    broken: int = 0

    def add(self, piece: Tensor) -> None:
        values = piece.float() if piece.dtype != torch.float64 else piece
        largest = float(values.abs().amax()) if values.numel() else 0.0
        if not math.isfinite(largest):
            finite = values.isfinite()
            self.broken += int((~finite).sum())
            return self.add(values[finite])
        self.largest = max(self.largest, largest)
        self.squares += float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
        return None

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares)


def compare(a: str | Path, b: str | Path) -> CheckpointComparison:
    """Compare two checkpoints, in any two formats, tensor by tensor under their Hugging Face names."""
    first, second = open_checkpoint(a, strict=False), open_checkpoint(b, strict=False)
    shapes, different, equal = [], [], 0
    common = [name for name in first.tensors if name in second.tensors]
    for name in common:
        x, y = first.tensors[name], second.tensors[name]
        if x.shape != y.shape:
            shapes.append(f"{name}: shape {list(x.shape)} in A, {list(y.shape)} in B")
            continue
        if x.dtype != y.dtype:
            shapes.append(f"{name}: {_name(x.dtype)} in A, {_name(y.dtype)} in B")
        gap, size, alike = _Statistics(), _Statistics(), True
        exact = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        for p, q in zip(x.pieces(), y.pieces(), strict=True):
            gap.add(p.to(exact) - q.to(exact))
            size.add(p)
            alike = alike and (x.dtype != y.dtype or bytes_of(p) == bytes_of(q))  # 0 and -0 are not
        if gap.largest or gap.broken or size.broken or not alike:
            different.append(Difference(name, gap.norm, gap.norm / size.norm if size.norm else math.inf, gap.largest))
        else:
            equal += 1
    return CheckpointComparison(
        a=first.path,
        b=second.path,
        only_a=tuple(sorted(first.tensors.keys() - second.tensors.keys())),
        only_b=tuple(sorted(second.tensors.keys() - first.tensors.keys())),
        settings=tuple(_settings(first, second)),
        shapes=tuple(shapes),
        different=tuple(sorted(different, key=lambda row: -row.relative)),
        equal=equal,
    )


def _settings(first: Checkpoint, second: Checkpoint) -> Sequence[str]:
    a, b = first.config, second.config
    return [f"{k} is {a.get(k)!r} in A, {b.get(k)!r} in B" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
