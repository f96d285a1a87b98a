"""Files of torch.save, read and written without holding them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_openmath.checkpoints.formats import torch_file
from nemo_openmath.checkpoints.lazy import Blocks, FileTensor, InMemory, LazyTensor, StackedRows, Window, stack_rows
from nemo_openmath.core.errors import DamagedFile


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 100])
def test_torch_loads_what_we_write(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)  # records beyond it take the form of those above 2 GiB
    tensors = {"a": torch.randn(33, 7), "b": torch.arange(9).bfloat16(), "c": torch.empty(0, 4), "d": torch.tensor(3.0)}
    held = {name: InMemory(tensor) for name, tensor in tensors.items()}
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.write(b"before")
        start = file.tell()
        value = {"model": held, "step": 7, "layers": [1, 2]}
        length = torch_file.save(file.write, value, held.values(), lambda tensor: tensor.pieces())
        file.write(b"after")
    (tmp_path / "alone.pt").write_bytes(path.read_bytes()[start : start + length])
    loaded = torch.load(tmp_path / "alone.pt", weights_only=True, mmap=True)
    assert (loaded["step"], loaded["layers"]) == (7, [1, 2])
    ours = torch_file.load(path, start, length)
    for name, tensor in tensors.items():
        assert torch.equal(loaded["model"][name], tensor)
        assert torch.equal(ours["model"][name].full(), tensor)
        source = torch_file.load(tmp_path / "alone.pt")["model"][name].source
        assert isinstance(source, FileTensor)
        assert source.offset % 64 == 0


def test_views_share_a_storage(tmp_path: Path) -> None:
    whole = torch.arange(20.0)
    torch.save({"a": whole[4:16].view(3, 4), "b": whole}, tmp_path / "x.pt")
    found = torch_file.load(tmp_path / "x.pt")
    assert torch.equal(found["a"].full(), whole[4:16].view(3, 4))
    torch.save(whole.view(4, 5).T, tmp_path / "x.pt")
    with pytest.raises(Exception, match="is not contiguous"):
        torch_file.load(tmp_path / "x.pt")


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"a": torch.ones(2), "bomb": Bomb()}, tmp_path / "x.pt")
    found = torch_file.load(tmp_path / "x.pt")
    assert torch.equal(found["a"].full(), torch.ones(2))
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "y.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-30])
    with pytest.raises(DamagedFile, match=r"y\.pt: truncated"):
        torch_file.load(tmp_path / "y.pt")


def pieces_of(tensor: LazyTensor, size: int) -> Tensor:
    parts = [tensor.read(at, min(at + size, tensor.numel)) for at in range(0, tensor.numel, size)]
    return torch.cat(parts).view(tensor.shape)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 30), st.data())
def test_every_view_reads_right_in_any_pieces(height: int, width: int, size: int, data: st.DataObject) -> None:
    whole = torch.arange(height * width).view(height, width)
    row, column = data.draw(st.integers(1, height - 1)), data.draw(st.integers(1, width - 1))
    low = data.draw(st.integers(0, column - 1))
    assert torch.equal(pieces_of(InMemory(whole).columns(low, column), size), whole[:, low:column])
    assert torch.equal(pieces_of(StackedRows([InMemory(whole[:row]), InMemory(whole[row:])]), size), whole)
    runs = [(0, 0, row), *((1, at, at + 1) for at in data.draw(st.permutations(range(height - row))))]
    order = [*range(row), *(row + at for _, at, _ in runs[1:])]
    assert torch.equal(pieces_of(stack_rows([InMemory(whole[:row]), InMemory(whole[row:])], runs), size), whole[order])
    cuts = [(slice(a, b), slice(c, d)) for a, b in ((0, row), (row, height)) for c, d in ((0, column), (column, width))]
    blocks = [((rows.start, cols.start), InMemory(whole[rows, cols])) for rows, cols in cuts]
    assert torch.equal(pieces_of(Blocks(whole.shape, blocks), size), whole)
    flat = whole.view(-1)[column:]
    assert torch.equal(pieces_of(Window(InMemory(whole), column, flat.shape), size), flat)


def test_compressed_elements_are_not_taken_for_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(64)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DamagedFile, match=r"y\.pt: .*data/0 is compressed"):
        torch_file.load(tmp_path / "y.pt")
