"""Other people's files: read whole, or said where they break off."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from nemo_openmath.errors import UserError
from nemo_openmath.records.foreign import read_rows

ROWS = [{"problem": f"Find {i}.", "noise": random.Random(i).randbytes(40).hex()} for i in range(5000)]
TEXT = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def frames(data: bytes) -> bytes:
    """Several frames in one file, as parallel compressors write."""
    return b"".join(zstandard.ZstdCompressor().compress(data[at : at + 90_001]) for at in range(0, len(data), 90_001))


PACKED = {"rows.jsonl": TEXT, "rows.jsonl.gz": gzip.compress(TEXT, 1), "rows.jsonl.zst": frames(TEXT)}


@pytest.mark.parametrize("name", PACKED)
def test_every_row_comes_with_its_number(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[name])
    assert [(row, value) for _, row, value in read_rows(tmp_path)] == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("keep", [0.3, 0.7, -1])
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_cut_file_is_said_and_never_a_shorter_one(tmp_path: Path, name: str, keep: float) -> None:
    data = PACKED[name]
    (tmp_path / name).write_bytes(data[: int(keep * len(data))] if keep > 0 else data[:-1])
    seen = []
    with pytest.raises(UserError, match=rf"{name}:\d+: cannot be read on") as error:
        seen.extend(value for _, _, value in read_rows(tmp_path / name))
    assert seen == ROWS[: len(seen)]
    assert error.value.row == len(seen) + 1


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(TEXT, 1))
    data[len(data) // 2] ^= 8
    (tmp_path / "rows.jsonl.gz").write_bytes(data)
    with pytest.raises(UserError):
        list(read_rows(tmp_path))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=1000)
    assert [value for _, _, value in read_rows(path)] == ROWS
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rows.parquet"):
        list(read_rows(path))
