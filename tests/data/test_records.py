"""A folder of records is shown joined, whoever wrote it, or refused by name. An export is whole, or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from pyarrow import parquet

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.chat.token_ids import TokenIds
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Generation, Problem, RecordWriter, SftRow, read_records
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.readers import read_rows
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.tokenizer import Message
from nemo_openmath.data.records.stored import Condition
from nemo_openmath.data.rows.formatting import Formatter


def solution(number: int, **changes: Any) -> Generation:
    code = f"<think>Let me see.\n<tool_call>\nprint({number})\n</tool_call>"
    output = f"\n\n```output\n{number}\n```\n"
    spans = (
        Span(Author.MODEL, code, TokenIds([number, 7])),
        Span(Author.TOOL, output),
        Span(Author.MODEL, f"</think>It is \\boxed{{{number}}}.\x1b[2J", TokenIds([9])),
    )
    return Generation(
        **{
            "id": f"generation-{number:03d}",
            "problem_id": f"problem-{number // 2}",
            "mode": "tir",
            "model": "m",
            "sample": number % 2,
            "transcript": Transcript((Message("user", f"What is {number}?"),), spans).to_json(),
            "finish": "stop",
            "expected_answer": str(number),
            "completion_tokens": number,
            "code_calls": 1,
            "extra": {"source": "forum" if number % 2 else "book"},
        }
        | changes
    )


SOLUTIONS = [solution(number) for number in range(20)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Solutions in four parts, graded ones that point to them, and lines of an earlier version."""
    for part in range(4):
        with RecordWriter(tmp_path / "run/made", partition=part, partitions=4) as writer:
            for g in SOLUTIONS:
                if partition_of(g.problem_id, 4) == part:
                    writer.commit(g.id, [g])
    with RecordWriter(tmp_path / "run/graded") as writer:
        for g in read_records(tmp_path / "run/made", Generation):
            right = g.completion_tokens % 3 != 0
            writer.commit(g.id, [g.with_(verdict="equal" if right else "not_equal")])
        writer.commit("generation-gone", drops=[Drop("wrong answer", "answered 3")])
    (tmp_path / "old").mkdir()
    with (tmp_path / "old/part-00000-of-00001.jsonl").open("wb") as file:
        file.writelines(orjson.dumps(g) + b"\n" for g in SOLUTIONS)
    return tmp_path / "run"


def lines(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert run(["records", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["records", *map(str, words)]) != 0
    return capsys.readouterr().err


def test_one_record_is_shown_by_the_beginning_of_its_id(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(lines(capsys, "show", runs / "graded", "generation-007"))
    for part in (
        "verdict            equal",
        "--- user\nWhat is 7?",
        "--- model: code\n<tool_call>",
        "--- runner: output",
    ):
        assert part in text
    assert "\\x1b[2J" in text
    assert "\x1b" not in text, "a model's text must not move the cursor"
    (row,) = lines(capsys, "show", "--json", runs / "graded", "generation-007")
    assert json.loads(row)["transcript"] == SOLUTIONS[7].transcript
    assert "body" not in json.loads(row)
    assert "several records have ids that begin 'generation-0'" in error(
        capsys, "show", runs / "graded", "generation-0"
    )
    assert "holds no record whose id begins 'x'" in error(capsys, "show", runs / "graded", "x")
    gone = error(capsys, "show", runs / "graded", "generation-gone")
    assert "generation-gone went no further here: wrong answer (answered 3)" in gone


@pytest.mark.parametrize("folder", ["run/made", "run/graded", "old"])
def test_every_kind_of_folder_gives_joined_records(folder: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in lines(capsys, "head", "--json", "-n", 99, runs.parent / folder)]
    texts = {row["id"]: row["transcript"] for row in rows}
    assert texts == {g.id: g.transcript for g in SOLUTIONS}
    assert any(line.startswith("generation-007  tir  stop") for line in lines(capsys, "head", "-n", 99, runs / "made"))


def test_conditions_select(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def numbers(*where: str) -> list[int]:
        words = [word for condition in where for word in ("--where", condition)]
        return sorted(int(line[11:14]) for line in lines(capsys, "head", "-n", 99, runs / "graded", *words))

    assert numbers("verdict=not_equal", "completion_tokens>3", "completion_tokens<=9") == [6, 9]
    assert numbers("extra.source!=book", "sample=1", "completion_tokens<3") == [1]
    assert numbers("budget=null", "parents=x") == []
    assert "did you mean 'verdict'?" in error(capsys, "head", runs / "graded", "--where", "verdit=equal")
    for wrong in ("verdict", "=x", "completion_tokens>many"):
        with pytest.raises(UserError):
            Condition.parse(wrong)


def test_grep_names_who_wrote_the_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines(capsys, "grep", r"PRINT\(7\)", runs / "graded", "-i")
    assert line.startswith("generation-007  model: code: <tool_call> print(7)")
    rows = [json.loads(row) for row in lines(capsys, "grep", r"\b3\b", runs / "graded", "--json")]
    places = ["expected_answer", "user", "model: code", "runner: output", "model: summary"]
    assert [(row["id"], row["place"]) for row in rows] == [("generation-003", place) for place in places]
    assert len(lines(capsys, "grep", "What is", runs / "graded", runs / "made", "-n", 3)) == 3
    assert lines(capsys, "grep", "stop|equal|problem-3", runs / "graded") == [], "names are no texts"
    assert "is no pattern" in error(capsys, "grep", "(", runs / "graded")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.zst", "out.parquet"])
def test_an_export_is_all_records_once(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(runs / "twice", read_records(runs / "graded", Generation))
    with (runs / "twice/part-00000-of-00001.jsonl").open("ab") as file:  # versions of a record in two units
        file.write((runs / "graded/part-00000-of-00001.jsonl").read_bytes())
    out = tmp_path / name
    lines(capsys, "export", runs / "twice", out)
    rows = {row["id"]: row for _, _, row in read_rows(out)}
    assert len(rows) == sum(1 for _ in read_rows(out)) == 20
    for g in SOLUTIONS:
        row = rows[g.id]
        assert Transcript.from_json(row["transcript"]) == Transcript.from_json(g.transcript)
        assert (row["expected_answer"], row["sample"], row["budget"]) == (g.expected_answer, g.sample, None)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"
    assert "is there already" in error(capsys, "export", runs / "twice", out)
    lines(capsys, "export", runs / "graded", out, "--replace", "--where", "verdict=not_equal")
    assert len(list(read_rows(out))) == 7


def test_parquet_has_types_and_small_row_groups(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path / "long", (solution(n, extra={"pad": "x" * 1_000_000}) for n in range(40)))
    lines(capsys, "export", tmp_path / "long", tmp_path / "long.parquet")
    file = parquet.ParquetFile(tmp_path / "long.parquet")
    assert file.num_row_groups == 2, "of 32 MiB each: memory does not grow with the records"
    schema = {field.name: str(field.type) for field in file.schema_arrow}
    assert (schema["sample"], schema["thinks"], schema["parents"]) == ("int64", "bool", "list<element: string>")
    assert "pieces: list<element: struct<author: string, text: string, ids: list<element: int32>>>" in str(
        file.schema_arrow.field("transcript").type
    )
    row = file.read_row_group(0).slice(5, 1).to_pylist()[0]
    assert row["transcript"]["pieces"][0]["ids"] == [5, 7]
    write_records(tmp_path / "problems", [Problem.make("1+1?", expected_answer="2", pass_rate=0.5)])
    lines(capsys, "export", tmp_path / "problems", tmp_path / "problems.parquet")
    assert parquet.read_table(tmp_path / "problems.parquet").to_pylist()[0]["pass_rate"] == 0.5


def test_exported_training_rows_are_read_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        SftRow.make(g, problem_id=g.problem_id, mode="tir", transcript=g.transcript, extra=g.extra) for g in SOLUTIONS
    ]
    write_records(tmp_path / "rows", rows)
    for name in ("rows.parquet", "rows.jsonl"):
        lines(capsys, "export", tmp_path / "rows", tmp_path / name)
        again = [Formatter().format(row) for _, _, row in read_rows(tmp_path / name)]
        assert [(row.id, row.extra, row.parents) for row in again] == [(row.id, row.extra, row.parents) for row in rows]
        assert [Transcript.from_json(row.transcript) for row in again] == [
            Transcript.from_json(r.transcript) for r in rows
        ]


def test_a_failed_export_leaves_what_was_there(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    lines(capsys, "export", runs / "graded", out)
    before = out.read_bytes()
    next((runs / "made").glob("bodies-00003*")).write_bytes(b"")
    assert "does not hold the text of record" in error(capsys, "export", runs / "graded", out, "--replace")
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert "is there already" in error(capsys, "export", runs / "graded", out)
    (runs / "made/plan.json").write_text("{}")
    assert "lies in the folder of a stage" in error(capsys, "export", runs / "graded", runs / "made/out.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one stage, which keeps four of six solutions."""
    top = tmp_path_factory.mktemp("finished")
    write_records(
        top / "made",
        (solution(n, predicted_answer=str(n), verdict="equal" if n % 3 else "not_equal") for n in range(6)),
    )
    (top / "r.yaml").write_text("name: r\nstages:\n  kept: {run: solutions.filter, from: ./made/}\n")
    assert run(["recipe", "run", str(top / "r.yaml"), "--output", str(top / "run")]) == 0
    return top


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


DAMAGES = {
    "none": ": 4 records and their transcripts in",
    "body gone": ": is gone, with 4 of 4 transcripts",
    "body changed": ": does not hold 1 of 4 transcripts",
    "line gone": ": 3 records are there, its manifest says 4",
    "line broken": ".jsonl:2: is no record",
    "drops gone": ": 0 drops are there, its manifest says 2",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_says_what_is_missing(damage: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies, part = next((copy / "made").glob("bodies-*")), next((copy / "run/kept").glob("part-*"))
    rows = part.read_bytes().splitlines(keepends=True)
    if damage == "body gone":
        bodies.unlink()
    elif damage == "body changed":
        bodies.write_bytes(bodies.read_bytes()[:-1])
    elif damage == "line gone":
        part.write_bytes(b"".join(rows[1:]))
    elif damage == "line broken":
        part.write_bytes(b"".join([rows[0], rows[1].replace(b":", b"", 1), *rows[2:]]))
    elif damage == "drops gone":
        next((copy / "run/kept").glob("drops-*")).write_bytes(b"")
    assert run(["records", "check", str(copy / "run/kept")]) == (damage != "none")
    assert DAMAGES[damage] in capsys.readouterr().out


def test_an_unfinished_stage_shows_its_finished_units(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = copy / "run/kept"
    (kept / "manifest.json").unlink()
    with next(kept.glob("part-*")).open("ab") as file:
        file.write(b'{"id":"generation-torn","par')
    assert run(["records", "head", str(kept), "--json"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 4
    assert f"{kept}: the stage has not finished; these are the records of 6 units" in shown.err
    assert len(lines(capsys, "check", kept)) == 1
    lines(capsys, "export", kept, copy / "out.jsonl")
    assert len((copy / "out.jsonl").read_bytes().splitlines()) == 4


def test_what_holds_no_records_is_refused_with_its_remedy(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is the folder of a run, not of records; name one of its stages: kept" in error(capsys, "head", copy / "run")
    part = next((copy / "run/kept").glob("part-*"))
    assert f"is a file; name its folder, {copy}/run/kept" in error(capsys, "head", part)
    assert "no such folder" in error(capsys, "head", copy / "nowhere")
    for file in (copy / "run/kept").glob("part-*"):
        file.unlink()
    assert "is the folder of solutions.filter, which makes no records" in error(capsys, "head", copy / "run/kept")
    (copy / "empty").mkdir()
    assert "holds no records" in error(capsys, "head", copy / "empty")


def test_a_search_ends_where_nobody_reads(runs: Path) -> None:
    write_records(runs / "long", (solution(n, id=f"generation-{n}") for n in range(5000)))
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "records", "grep", "What is", str(runs / "long")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("generation-0  user: What is 0?")
        process.stdout.close()
        read = int(process.stderr.read().split(" of ")[1].split()[0].replace(",", ""))
    assert read < 5000
