"""What a model wrote is stored once. Every record has its own text, or is refused by name."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from nemo_openmath.chat import Transcript
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Generation, RecordWriter, SftRow, digest_of_lines, read_records
from nemo_openmath.core.records.bodies import Body
from nemo_openmath.core.records.readers import read_rows
from nemo_openmath.core.records.store import folder_sums, write_records
from nemo_openmath.grading.majority import majority
from tests.support.rows import read_lines


def solution(number: int, text: str = "", **changes: Any) -> Generation:
    told = {"messages": [], "pieces": [{"author": "model", "text": text or f"solution {number} \u221a2 " * 50}]}
    values = {"problem_id": f"problem-{number // 4}", "mode": "cot", "model": "m", "sample": number, "finish": "stop"}
    return Generation(id=f"generation-{number}", transcript=told, **(values | changes))


def text_of(generation: Generation | SftRow) -> str:
    return Transcript.from_json(generation.transcript).text


def graded(source: Path, folder: Path) -> Path:
    """What a stage leaves that learns something about each record."""
    write_records(folder, (g.with_(verdict="equal") for g in read_records(source, Generation)))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_records(tmp_path / "run/made", map(solution, range(40)))
    graded(tmp_path / "run/made", tmp_path / "run/graded")
    return tmp_path / "run"


def test_a_stage_that_adds_a_verdict_copies_no_text(run: Path) -> None:
    assert not list((run / "graded").glob("bodies-*"))
    size = sum(path.stat().st_size for path in (run / "graded").glob("part-*"))
    assert size < 40 * 500
    again = graded(run / "graded", run / "again")
    for generation in read_records(again, Generation):
        assert isinstance(generation.transcript, Body)
        assert generation.transcript.file.resolve().parent == run / "made", "no chain from stage to stage"
        assert text_of(generation) == text_of(solution(generation.sample))


def test_a_file_of_bodies_is_json_lines_for_any_reader_of_zstandard(run: Path) -> None:
    path = next((run / "made").glob("bodies-*"))
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    rows = list(map(orjson.loads, text.splitlines()))
    assert [row["id"] for row in rows] == [f"generation-{n}" for n in range(40)]
    assert rows[7]["transcript"] == solution(7).transcript
    assert path.stat().st_size < len(text) / 3


def test_a_reader_of_files_gets_whole_rows(run: Path) -> None:
    rows = [row for _, _, row in read_rows(next((run / "graded").glob("part-*")))]
    assert [row["transcript"] for row in rows] == [solution(n).transcript for n in range(40)]
    assert all("body" not in row for row in rows)


def test_a_line_that_another_program_wrote_anew_is_joined(run: Path) -> None:
    part = next((run / "graded").glob("part-*"))
    rows = [orjson.loads(line) for line in part.read_bytes().splitlines()]
    part.write_text("".join(json.dumps({"body": row.pop("body"), **row}) + "\n" for row in rows))
    assert [row["transcript"] for _, _, row in read_rows(part)] == [solution(n).transcript for n in range(40)]
    part.write_text('{"id": "x", "body": "text of a post"}\n')
    assert [row for _, _, row in read_rows(part)] == [{"id": "x", "body": "text of a post"}]


def test_the_digest_does_not_depend_on_where_a_body_lies(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_records(other, (solution(n, verdict="equal") for n in reversed(range(40))))
    digest = folder_sums(run / "graded").digest
    assert folder_sums(other).digest == digest == digest_of_lines(read_lines(other))
    for sums in run.glob("graded/.sums-*"):
        sums.unlink()
    assert folder_sums(run / "graded").digest == digest, "counted anew"
    assert folder_sums(run / "made").digest != digest


def test_a_run_may_be_moved_as_a_whole(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert [text_of(g) for g in read_records(moved / "graded", Generation)] == [text_of(solution(n)) for n in range(40)]


def test_a_source_that_was_made_again_in_another_order_still_gives_each_its_text(run: Path) -> None:
    before = list(read_records(run / "graded", Generation))
    assert text_of(before[0]) == text_of(solution(0))  # its file is open now
    shutil.rmtree(run / "made")
    write_records(run / "made", map(solution, reversed(range(40))))
    for generation in [*before, *read_records(run / "graded", Generation)]:
        assert text_of(generation) == text_of(solution(generation.sample))


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        ("gone", "it is gone; bring its folder back, or run the recipe again"),
        ("other text", "it was made again, with other texts: run the recipe again"),
        ("cut", "it is damaged: remove the folder .*made and run its stage again"),
        ("one byte", "it is damaged: remove the folder .*made and run its stage again"),
    ],
)
def test_a_text_that_is_not_what_was_written_is_refused_by_name(run: Path, damage: str, remedy: str) -> None:
    path = next((run / "made").glob("bodies-*"))
    last = list(read_records(run / "graded", Generation))[-1]
    assert isinstance(last.transcript, Body)
    if damage == "gone":
        shutil.rmtree(run / "made")
    elif damage == "other text":
        shutil.rmtree(run / "made")
        write_records(run / "made", (solution(n, f"another text {n}") for n in range(40)))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        data = bytearray(path.read_bytes())
        data[last.transcript.offset + last.transcript.size // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError, match=rf"bodies-.*: does not hold the text of record generation-39.*{remedy}"):
        text_of(last)


def test_equal_texts_are_equal_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "copy", (solution(n, verdict="equal") for n in range(40)))
    for a, b in zip(read_records(run / "graded", Generation), read_records(tmp_path / "copy", Generation), strict=True):
        assert merge([a, b], majority).id == a.id
    first, second, *_ = read_records(run / "graded", Generation)
    with pytest.raises(UserError, match="versions that differ in 'transcript'"):
        merge([first, first.with_(transcript=second.transcript)], majority)


def test_a_row_of_an_unchanged_transcript_copies_nothing(run: Path) -> None:
    rows = [
        SftRow.make(g, problem_id=g.problem_id, mode=g.mode, transcript=g.transcript)
        for g in read_records(run / "graded", Generation)
    ]
    write_records(run / "rows", rows)
    assert not list((run / "rows").glob("bodies-*"))
    assert [text_of(row) for row in read_records(run / "rows", SftRow)] == [text_of(solution(n)) for n in range(40)]


def test_lines_of_an_earlier_version_with_their_text_inside_are_read(tmp_path: Path) -> None:
    tmp_path.joinpath("part-00000-of-00001.jsonl").write_bytes(
        b"".join(orjson.dumps(solution(n)) + b"\n" for n in range(3))
    )
    assert [text_of(g) for g in read_records(tmp_path, Generation)] == [text_of(solution(n)) for n in range(3)]
    graded(tmp_path, tmp_path / "graded")
    assert [text_of(g) for g in read_records(tmp_path / "graded", Generation)] == [
        text_of(solution(n)) for n in range(3)
    ]


def ids(folder: Path) -> Sequence[str]:
    return sorted(g.id for g in read_records(folder, Generation) if text_of(g))


@pytest.mark.parametrize("cut", [0, 1, 100, 999_999])
def test_bodies_that_a_damage_cut_cost_their_units_alone(cut: int, tmp_path: Path) -> None:
    def fill() -> RecordWriter:
        with RecordWriter(tmp_path, flush_units=3) as writer:
            for generation in map(solution, range(20)):
                if not writer.done(generation.id):
                    writer.commit(generation.id, [generation])
        return writer

    fill()
    path = next(tmp_path.glob("bodies-*"))
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(max(0, whole - cut))
    writer = fill()
    assert (writer.lost > 0) == (cut > 0)
    assert writer.lost + writer.recovered == 20
    assert ids(tmp_path) == sorted(solution(n).id for n in range(20))
    assert folder_sums(tmp_path).digest == digest_of_lines(read_lines(tmp_path))


def test_a_folder_whose_name_is_not_utf_8_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    (run / "made").rename(run / "m\udcffde")
    with pytest.raises(UserError, match="its path is not UTF-8; rename its folder"):
        graded(run / "m\udcffde", tmp_path / "graded")
    assert text_of(next(read_records(run / "m\udcffde", Generation))) == text_of(solution(0)), "it can be read"
