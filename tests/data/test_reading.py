"""The stage sft.read: the same rows whoever shares the work, each part of the data read once, nothing lost."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_openmath.chat import Transcript
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.merging import count_records, read_merged
from nemo_openmath.core.records import SftRow, read_drops, read_manifest, read_records
from nemo_openmath.core.records.bodies import content_of
from nemo_openmath.core.records.store import folder_sums
from nemo_openmath.data.rows.stages import ReadConfig, ReadRows
from nemo_openmath.grading.majority import majority
from tests.data.test_formatting import COT, GENSELECT, TIR, lines
from tests.support.rows import read_lines
from tests.support.services import stage_context


def read(
    data: Path, out: Path, workers: int = 1, *, skip_broken: bool = True, jobs: Iterable[int] = (0,), of: int = 1
) -> Counter[str]:
    """Run some jobs of an array, and return what they measured in all."""
    metrics: Counter[str] = Counter()
    for job in jobs:
        context = stage_context({"data": [data]}, out, shard=job, shards=of)
        asyncio.run(ReadRows(ReadConfig(workers=workers, skip_broken=skip_broken)).run(context))
        metrics.update(context.metrics)
    return metrics


def files_of(folder: Path) -> dict[str, bytes]:
    """What was made: the journal tells when, too."""
    made = [path for kind in ("part", "bodies", "drops", ".counts") for path in folder.glob(f"{kind}-*")]
    return {path.name: path.read_bytes() for path in made}


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


LONGEST = COT | {"problem": "long " * 300_000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, of several blocks each. Rows stand twice in a file and in several files; lines are broken,
    empty, and longer than a block; a text is not Unicode."""
    folder = tmp_path_factory.mktemp("data")
    long = "So it goes on. " * 200
    rows = [
        COT | {"problem": f"What is {i % 1100} + 1?", "generated_solution": f"<think> {long} </think> \\boxed{{{i}}}"}
        for i in [*range(1000), *range(300)]
    ]
    broken = b"{half\n\n"
    (folder / "a.jsonl").write_bytes(lines(rows[:500]) + broken + lines([LONGEST, *rows[500:], TIR, GENSELECT]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(rows[700:]), 1))
    table = pa.Table.from_pylist([*rows[:400], COT | {"problem": "last"}, COT])
    half = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    column = pa.chunked_array([table["expected_answer"].slice(0, 400), half])
    at = table.schema.get_field_index("expected_answer")
    pq.write_table(table.set_column(at, "expected_answer", column), folder / "c.parquet", row_group_size=60)
    return folder


def test_any_number_of_workers_reads_the_same_bytes(data: Path, tmp_path: Path) -> None:
    metrics = [read(data, tmp_path / f"out{workers}", workers) for workers in (1, 2)]
    assert metrics[0] == metrics[1]
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")
    rows = list(read_merged([tmp_path / "out1"], SftRow, majority))
    assert len(rows) == 1004  # the different ones, the longest, TIR, GENSELECT, the last; COT itself is not Unicode
    assert max(len(Transcript.from_json(row.transcript).messages[0].content) for row in rows) > 1_500_000
    drops = [drop for _, drop in read_drops(tmp_path / "out1")]
    assert Counter(drop.reason for drop in drops) == {"not a JSON object": 2}
    assert drops[1].detail.startswith("c.parquet:402 ")
    source, _, place = drops[0].detail.split()[:2][0].partition(":")
    assert (source, place) == ("a.jsonl", "byte")
    begin = int(drops[0].detail.split()[1]) - 1
    assert (data / source).read_bytes()[begin:].startswith(b"{half\n")


def test_an_array_reads_each_part_once_and_finds_the_same(data: Path, tmp_path: Path) -> None:
    metrics = read(data, tmp_path / "whole")
    size = sum(path.stat().st_size for path in data.iterdir())

    def outcome(folder: Path) -> tuple[list[bytes], list[tuple[str, str, str]], dict[str, int]]:
        written = sorted(map(content_of, read_lines(folder)))
        drops = sorted((unit, drop.reason, drop.detail) for unit, drop in read_drops(folder))
        counts = count_records(folder, majority, SftRow) | {"units": folder_sums(folder).units}
        return written, drops, counts

    for of in (2, 5):
        out, before = tmp_path / f"of{of}", bytes_read()
        assert read(data, out, jobs=reversed(range(of)), of=of) == metrics
        heads = of * 4 * (1 << 16)  # each job looks at the beginning of each file; a line over blocks is read twice
        assert bytes_read() - before < 1.1 * size + heads + len(lines([LONGEST]))
        assert outcome(out) == outcome(tmp_path / "whole")
        shares = [len(path.read_bytes()) for path in sorted(out.glob("part-*"))]
        assert len(shares) == of
    whole, merged = outcome(tmp_path / "whole")[2], list(read_merged([tmp_path / "of5"], SftRow, majority))
    assert whole["records"] == len(merged) == 1004
    assert whole["merged"] == 300 + 600 + 400  # in a.jsonl; in b.jsonl.gz and c.parquet


def test_a_recipe_runs_it_as_an_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines([COT | {"problem": "long " * 300_000}, COT]))
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("name: r\nstages:\n  a: {run: sft.read, from: {data: ./rows.jsonl}, workers: 1}\n")
    command = ["recipe", "run", str(recipe), "--output", str(out), "--only", "a"]
    assert run([*command, "--shard", "1/2"]) is ExitCode.OK
    assert run(command) is ExitCode.USER_ERROR
    assert "begun as an array of 2; go on as begun" in capsys.readouterr().err
    assert run([*command, "--shard", "0/2"]) is ExitCode.OK
    manifest = read_manifest(out / "a")
    assert manifest is not None
    assert manifest.counts == {"units": 2, "records": 2, "merged": 0, "drops": 0}
    assert manifest.metrics["rows_that_think"] == 2


def test_a_restart_reads_only_what_is_not_done(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = read(data, out)
    whole = files_of(out)
    journal = next(out.glob("journal-*"))
    units = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(units[:5]) + units[5][:9])  # as a kill leaves it
    counts = next(out.glob(".counts-*"))
    torn = counts.read_bytes().splitlines(keepends=True)
    counts.write_bytes(b"".join(torn[:7]) + torn[7][:9])
    assert read(data, out) == metrics
    for name in whole.keys() - {counts.name}:
        assert (out / name).read_bytes() == whole[name]
    before = bytes_read()
    assert read(data, out) == metrics
    plain = (data / "a.jsonl").stat().st_size
    assert bytes_read() - before < sum(path.stat().st_size for path in data.iterdir()) - plain / 2


def test_equal_texts_are_one_row_whatever_else_is_told_of_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_bytes(lines([COT | {"expected_answer": None, "pass_rate_72b_tir": "0.5"}]))
    text = {name: COT[name] for name in ("problem", "generated_solution", "inference_mode")}
    (data / "b.jsonl").write_bytes(lines([text, COT | {"problem_source": ""}]))
    read(data, tmp_path / "out")
    (row,) = read_merged([tmp_path / "out"], SftRow, majority)
    assert (row.expected_answer, row.problem_source) == ("42", COT["problem_source"])
    assert row.pass_rate in (0.25, 0.5)


def test_every_reject_is_counted_with_an_example(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    bad: list[dict[str, Any]] = [
        COT | {"problem": ""},
        {"question": "?"},
        TIR | {"generated_solution": "<think> no code </think> \\boxed{1}"},
    ]
    (data / "rows.jsonl").write_bytes(lines([COT, TIR, GENSELECT, COT, *bad]) + b"{half\n")
    for _ in range(2):  # the second run finds everything done
        read(data, tmp_path / "out")
        rows = list(read_merged([tmp_path / "out"], SftRow, majority))
        assert [r.mode for r in rows] == ["cot", "tir", "genselect"]
        drops = [drop for _, drop in read_drops(tmp_path / "out")]
        assert Counter(d.reason for d in drops) == {
            "no problem": 1,
            "unknown columns": 1,
            "tir: no notice of remaining executions": 1,
            "not a JSON object": 1,
        }
        assert all("rows.jsonl:byte " in d.detail for d in drops)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", lines([COT]) + b"{half\n" + lines([COT]) + b"[]\n", r"a\.jsonl:2: not JSON .*\(2 of 4 rows are"),
        (
            "a.jsonl",
            lines([COT, {"question": "?"}]),
            r"a\.jsonl:2: unknown columns \(question\); problem .*\(1 of 2",
        ),
        ("a.csv", b"question,answer\n1+1?,2\n", r"a\.csv:2: unknown columns \(answer, question\)"),
        ("a.json", b'[{"input": "x", "output": "y"}, 7]', r"a\.json:2: not a JSON object but a number"),
        ("a.jsonl", lines([COT, COT | {"generated_solution": 5}]), r"a\.jsonl:2: generated_solution is not text \(5\)"),
        ("a.jsonl", lines([COT, COT | {"expected_answer": [2]}]), r"a\.jsonl:2: expected_answer is not text \(\[2\]\)"),
        ("a.jsonl", b"", r"there is no row in it"),
    ],
)
def test_data_with_broken_rows_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        read(tmp_path / "data", tmp_path / "out", skip_broken=False)


def test_a_job_names_a_broken_row_by_its_number_in_the_file(tmp_path: Path) -> None:
    good = lines([COT | {"problem": "long " * 60_000}])
    (tmp_path / "rows.jsonl").write_bytes(good * 10 + b"{half\n" + good)
    read(tmp_path / "rows.jsonl", tmp_path / "out", skip_broken=False, jobs=[0, 2], of=3)
    with pytest.raises(UserError, match=r"rows\.jsonl:11: not JSON"):
        read(tmp_path / "rows.jsonl", tmp_path / "out", skip_broken=False, jobs=[1], of=3)


def test_csv_and_json_documents_are_read_in_blocks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.json").write_text(json.dumps([COT | {"problem": f"{i}?"} for i in range(600)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["problem", "generated_solution", "expected_answer"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(COT | {"problem": f"{i}?"} for i in range(600, 602))
    (data / "b.csv").write_text(text.getvalue())
    read(data, tmp_path / "out", 2, skip_broken=False)
    assert len(list(read_records(tmp_path / "out", SftRow))) == 602
    assert not list(read_drops(tmp_path / "out"))
