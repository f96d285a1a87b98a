"""Threads change no bit: digests, files and sums are those of a plain program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_openmath.checkpoints import buffers, lazy
from nemo_openmath.checkpoints.lazy import InMemory, LazyTensor, bytes_of
from nemo_openmath.checkpoints.merge.arithmetic import weighted_sum
from nemo_openmath.checkpoints.streaming import Hashed, OutputFile


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8))
def test_a_digest_is_of_all_elements_in_whatever_order_they_were_read(reads: list[tuple[int, int]]) -> None:
    elements = torch.arange(40, dtype=torch.float32)
    hashed = Hashed(InMemory(elements))
    for start, stop in reads:
        assert torch.equal(hashed.read(start, max(start, stop)), elements[start : max(start, stop)])
    assert hashed.digest() == blake3(elements.numpy().tobytes()).hexdigest()


def test_reading_in_order_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    class Counted(InMemory):
        def read(self, start: int, stop: int) -> Tensor:
            reads.append((start, stop))
            return super().read(start, stop)

    monkeypatch.setattr(lazy, "PIECE", 16)
    hashed = Hashed(Counted(torch.arange(40.0)))
    source: LazyTensor = hashed
    assert torch.equal(torch.cat(list(source.pieces())), torch.arange(40.0))
    hashed.digest()
    assert reads == [(0, 16), (16, 32), (32, 40)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 100, 65535, 65536, 300_000]), max_size=8))
def test_a_file_holds_what_was_written_in_order(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path: Path = tmp_path_factory.mktemp("file") / "x"
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    with OutputFile(path, hashed=True) as file:
        for part in parts:
            file.write(part)
    assert path.read_bytes() == b"".join(parts)
    assert (file.size, file.digest) == (sum(sizes), f"blake3:{blake3(b''.join(parts)).hexdigest()}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_in_blocks_are_the_plain_ones_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(300_001, generator=generator).to(dtype) for _ in range(4)]
    weights = [0.2, 0.4, 0.3, 0.1]
    base = tensors[1].float()
    expected = base.clone()
    for number in (0, 2, 3):
        expected.add_(tensors[number].float() - base, alpha=weights[number])
    assert torch.equal(weighted_sum(tensors, weights, dtype), expected.to(dtype))


def test_memory_is_used_again_when_its_last_view_is_gone_and_not_before() -> None:
    first = buffers.empty(1 << 20, torch.bfloat16).fill_(1)
    place, view = first.data_ptr(), bytes_of(first[5:])
    del first
    second = buffers.empty(1 << 20, torch.bfloat16).fill_(2)
    assert second.data_ptr() != place
    assert torch.frombuffer(view, dtype=torch.bfloat16).eq(1).all()
    del view
    assert buffers.empty(1 << 20, torch.bfloat16).data_ptr() == place
