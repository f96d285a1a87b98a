"""Other people's files: read whole, or said where they break off."""

import decimal
import gzip
import json
import pickle
import random
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy
import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.manifest import Manifest, write_manifest
from nemo_openmath.core.records.readers import BrokenRows, lines_between, raw_lines, read_rows, row_at

ROWS = [{"problem": f"Find {i}.", "noise": random.Random(i).randbytes(40).hex()} for i in range(5000)]
TEXT = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"bcd", b"\xef\xbb\xbf"])), st.lists(st.integers(0, 30)))
def test_ranges_of_a_file_give_each_line_once(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        ranged = [line for start, end in pairwise(bounds) for line in lines_between(path, start, end)]
        assert [line for _, line in ranged] == list(raw_lines(path))
        assert [row_at(path, at) for at, _ in ranged] == list(range(1, len(ranged) + 1))


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


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_is_not_there_is_no_broken_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: no such file") as error:
        list(raw_lines(tmp_path / name))
    assert error.value.row is None


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


# -- what a file is ------------------------------------------------------------------------------------------------

TWO = [{"problem": "1+1?", "expected_answer": "2"}, {"problem": "2, or\n3?", "expected_answer": None}]
CSV = 'problem,expected_answer\r\n1+1?,2\r\n"2, or\n3?",\r\n'
SPELLINGS = {
    "a.jsonl": "\n".join(map(json.dumps, TWO)) + "\n\n",
    "b.ndjson": "\r\n".join(map(json.dumps, TWO)),
    "c.json": json.dumps(TWO),
    "d.json": json.dumps(TWO, indent=2),
    "e.json": "\n".join(map(json.dumps, TWO)),
    "f.jsonl": json.dumps(TWO, indent=2),
    "g.csv": CSV,
    "h.csv": CSV.replace("problem,", "problem;").replace("?,2", "?;2").replace('",', '";'),
    "i.tsv": CSV.replace("problem,", "problem\t").replace("?,2", "?\t2").replace('",', '"\t'),
    "noname": "\n".join(map(json.dumps, TWO)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_same_rows_in_every_spelling(tmp_path: Path, name: str) -> None:
    for pack in (lambda data: data, lambda data: b"\xef\xbb\xbf" + data):  # Excel writes a byte order mark
        data = pack(SPELLINGS[name].encode())
        for file, packed in ((name, data), (f"{name}.gz", gzip.compress(data)), (f"{name}.zst", frames(data))):
            (tmp_path / file).write_bytes(packed)
            assert [value for _, _, value in read_rows(tmp_path / file)] == TWO


def test_a_single_object_is_a_row_and_nested_folders_are_read_in_name_order(tmp_path: Path) -> None:
    for year in ("2024", "2023"):
        (tmp_path / year / "deep").mkdir(parents=True)
        (tmp_path / year / "deep/part.json").write_text(json.dumps({"problem": year}, indent=1))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/x.jsonl").write_text("broken")
    assert [value["problem"] for _, _, value in read_rows(tmp_path)] == ["2023", "2024"]


def test_a_stages_folder_is_read_without_its_journal(tmp_path: Path) -> None:
    stage = tmp_path / "run/solutions"
    stage.mkdir(parents=True)
    for kind in ("part", "drops", "journal"):
        (stage / f"{kind}-00000-of-00001.jsonl").write_text(f'{{"kind": "{kind}"}}\n')
    for name in ("plan.json", "seconds.json", "manifest.json"):
        (stage / name).write_text("{}")
    assert [value for _, _, value in read_rows(stage)] == [{"kind": "part"}]
    with pytest.raises(UserError, match=r"run: the folder of a run, not of data; name one of its stages: solutions"):
        list(read_rows(tmp_path / "run"))


def test_the_folder_of_a_stage_without_records_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "seconds.json").write_text("1.5")
    write_manifest(tmp_path, Manifest("sft.pack", "", "", {}))
    with pytest.raises(UserError, match=r"the folder of sft\.pack, which makes no records; name the folder"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"problem,expected_answer\n1+1,2\n", r"a.jsonl:1: not JSON; if this is CSV, name the file .csv"),
        ("a.jsonl", b'{"problem": "x"}\n{"problem": "y"\n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{\n  "problem": "x"\n}\n', r"a.jsonl:1: not JSON Lines: an object begins here"),
        ("a.jsonl", '{"problem": "café"}'.encode("latin-1"), r"a.jsonl:1: not UTF-8 \(byte 0xe9 at 17\)"),
        ("a.csv", "problem\ncafé\n".encode("latin-1"), r"a.csv:2: not UTF-8 \(byte 0xe9"),
        ("a.json", '[\n{"problem": "café"}]'.encode("latin-1"), r"a.json:2: not UTF-8"),
        ("a.jsonl", '{"problem": "x"}'.encode("utf-16"), r"a.jsonl: this is UTF-16, not .jsonl; save it as UTF-8"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"a.jsonl: this is gzip, not .jsonl"),
        ("a.csv", b"PK\x03\x04 of Excel", r"a.csv: this is a zip archive or .xlsx"),
        ("a.jsonl", b"", r"a.jsonl: there is no row in it"),
        ("a.jsonl", b"\n \n\n", r"a.jsonl: there is no row in it"),
        ("a.csv", b"problem,answer\n", r"a.csv: there is no row in it"),
        ("a.json", b"[]", r"a.json: there is no row in it"),
        ("a.csv", b"problem,\nx,y\n", r"a.csv:1: the header has an empty name"),
        ("a.csv", b"problem,answer\nx,y\n1,2,3\n", r"a.csv:3: 3 cells under a header of 2"),
        ("a.csv", b'problem,answer\nx,"y\n', r"a.csv:2: not CSV"),
        ("a.json", b'[{"problem": "x"}, 3]', r"a.json:2: not a JSON object but a number"),
        ("a.jsonl", b'{"a": 1}\n["b"]\n', r"a.jsonl:2: not a JSON object but a list"),
        ("a.jsonl", b'{"a": "\\":"}\n{"a" : {"b": 1, "b":2}}\n', r"a.jsonl:2: the field 'b' stands twice in an object"),
        ("a.json", b'[{"a": 1,\n"a" : 2}]', r"a.json: the field 'a' stands twice in an object; keep one"),
        ("a.jsonl", b"3.5\n", r"a.jsonl:1: not a JSON object but a number"),
        ("a.jsonl", b'{"a": NaN}\n', r"a.jsonl:1: not JSON"),
        ("a.xlsx", b"anything", r"a.xlsx: a format that is not read; save it as JSON Lines, CSV or Parquet"),
        ("a.parquet", b"no parquet", r"a.parquet: not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        list(read_rows(tmp_path / name))


def test_a_folder_with_data_in_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.xlsx").write_text("")
    with pytest.raises(UserError, match=r"b\.xlsx: a format that is not read"):
        list(read_rows(tmp_path))


def test_a_file_both_plain_and_compressed_is_not_read_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: the same as a\.jsonl by its name; keep one of the two"):
        list(read_rows(tmp_path))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["1"]), pyarrow.array(["2"])], names=["answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: two columns are called 'answer'; rename or remove one"):
        list(read_rows(tmp_path))


def test_types_of_parquet_become_those_of_json(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "int64": pyarrow.array([-(2**63)]),
            "uint64": pyarrow.array([2**64 - 1], pyarrow.uint64()),
            "decimal": pyarrow.array([decimal.Decimal("0.50")]),
            "nan": pyarrow.array([float("nan")]),
            "null": pyarrow.nulls(1),
            "large": pyarrow.array(["x"], pyarrow.large_string()),
            "dictionary": pyarrow.array(["y"]).dictionary_encode(),
            "list": pyarrow.array([[1, None]]),
            "struct": pyarrow.array([{"d": decimal.Decimal("1.20")}]),
            "bytes": pyarrow.array([b"text"]),
            "float32": pyarrow.array([0.1], pyarrow.float32()),
            "float16": pyarrow.array([numpy.float16(0.1)], pyarrow.float16()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    ((_, _, row),) = read_rows(tmp_path)
    assert row == {
        "int64": -(2**63), "uint64": 2**64 - 1, "decimal": "0.50", "nan": None, "null": None, "large": "x",
        "dictionary": "y", "list": [1, None], "struct": {"d": "1.20"}, "bytes": "text",
        "float32": 0.1, "float16": 0.1,
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"b": [b"\xff\xfe"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet:1: column 'b': bytes that are no text"):
        list(read_rows(tmp_path))


def test_integers_of_any_length_are_exact() -> None:
    for digits in (18, 19, 20, 200):
        number = int("9" * digits)
        assert exact_json.loads(b'{"n": %d}' % number) == {"n": number}
        assert exact_json.loads(exact_json.dumps({"n": [number, -number, 1.5]})) == {"n": [number, -number, 1.5]}
    assert exact_json.dumps(exact_json.loads(b"[" + b"1" * 5000 + b"]")) == b"[" + b"1" * 5000 + b"]"
    with pytest.raises(ValueError, match="NaN"):
        exact_json.loads(b"[1e400, NaN]")


NUMBERS = [
    "18446744073709551617", "-18446744073709551617", "9223372036854775808", "12345678901234567890.5", "1e400", "1E-400",
    "0.1234567890123456789", "123456789012345678901e3", "0.10", "1.50", "2e3",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_of_answers_keep_their_spelling(text: str) -> None:
    line = f'{{"id":7,"expected_answer":{text},"nested":[{{"answer":{text}}}],"rate":0.1}}'
    row = exact_json.loads(line.encode())
    assert str(row["expected_answer"]) == text
    assert float(row["expected_answer"]) == float(text)
    assert type(row["rate"]) is float
    assert exact_json.dumps(row).decode() == line
    assert exact_json.dumps(pickle.loads(pickle.dumps(row))).decode() == line


def test_numbers_elsewhere_are_what_they_were() -> None:
    for line in (b'{"a":0.30000000000000004,"b":1e22,"c":12345678901234567,"d":1.0}', b"[0.1, 1e5]"):
        assert exact_json.loads(line) == orjson.loads(line)
    with pytest.raises(ValueError, match="Expecting property name"):
        exact_json.loads(b'{"n": 1e400, }')
    for deep in (b"[" * 100_000 + b"1e400", b"[1e400," + b"[" * 100_000):
        with pytest.raises(ValueError, match=r"depth limit|nested too deeply"):
            exact_json.loads(deep)


def test_broken_rows_are_counted_and_refused_unless_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbroken\n[]\n{"a": 2}\n')
    for skip in (False, True):
        broken = BrokenRows(skip=skip)
        broken.good = 2
        rows = [value for _, _, value in read_rows(tmp_path, broken)]
        assert rows == [{"a": 1}, {"a": 2}]
        assert broken.count == 2
        assert broken.refused is not skip
        if skip:
            broken.refuse()
        else:
            with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON .*\(2 of 4 rows are broken\).*skip_broken"):
                broken.refuse()
    broken.good = 0
    with pytest.raises(UserError, match="of 2 rows"):  # nothing would be left
        broken.refuse()
