"""The store: nothing lost, nothing twice, whatever happens to the writer."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_openmath.chat import Transcript
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import (
    Drop,
    Generation,
    Mode,
    Problem,
    RecordWriter,
    digest_of_lines,
    read_drops,
    read_records,
)
from nemo_openmath.core.records.bodies import content_of
from nemo_openmath.core.records.encoding import parse_record
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.store import folder_sums, record_lines
from tests.support.rows import read_lines

# Commits units 0..N-1 in a random order, each with zero to three records and perhaps a drop, flushing often; after so
# many that its caller names, it waits to be killed.
WRITER = """
import random, sys, time
from pathlib import Path
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Drop, Generation, Mode, Problem, RecordWriter
most = int(sys.argv[2])
order = list(range(800)); random.Random(time.time_ns()).shuffle(order)
with RecordWriter(Path(sys.argv[1]), flush_units=7) as writer:
    print("open", flush=True)
    for n in order:
        unit = f"unit-{n}"
        if writer.done(unit): continue
        if not most: time.sleep(3600)
        most -= 1
        records = [Problem.make(f"{unit} {i} " + "x" * (37 * n % 4000)) for i in range(n % 4)]
        if n % 3 == 0:  # with a body beside it
            text = {"messages": [], "pieces": [{"author": "model", "text": unit * (n % 50)}]}
            records.append(Generation(id=f"generation-{n}", problem_id="p", mode=Mode.COT, model="m", sample=n,
                                      transcript=text, finish=Finish.STOP, verdict=Verdict.EQUAL))
        writer.commit(unit, records, [Drop("odd", unit)] if n % 2 else [])
"""


def content(folder: Path) -> tuple[list[bytes], list[tuple[str, Drop]]]:
    return sorted(map(content_of, read_lines(folder))), sorted(read_drops(folder), key=lambda pair: pair[0])


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", WRITER, str(whole), "-1"], check=True, stdout=subprocess.DEVNULL)
    rng = random.Random(5)
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(killed), "13"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", WRITER, str(killed), "-1"], check=True, stdout=subprocess.DEVNULL)
    assert content(killed) == content(whole)
    sums = folder_sums(killed)
    assert sums.digest == folder_sums(whole).digest == digest_of_lines(read_lines(killed))
    assert (sums.units, sums.records, sums.drops["odd"]) == (800, len(content(whole)[0]), 400)
    kinds = {b"problem": Problem, b"generation": Generation}
    for file, row, line in record_lines([killed]):
        record = parse_record(line, kinds[line[7:].partition(b"-")[0]], file, row)
        if isinstance(record, Generation):
            assert Transcript.from_json(record.transcript).text == f"unit-{record.sample}" * (record.sample % 50)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 10_000), which=st.sampled_from(["part", "drops", "journal"]), junk=st.binary(max_size=40))
def test_a_file_torn_anywhere_is_cut_back_to_whole_units(
    tmp_path_factory: pytest.TempPathFactory, cut: int, which: str, junk: bytes
) -> None:
    """What a crash can leave: data beyond the journal, or a journal that ends in the middle of a line."""
    folder = tmp_path_factory.mktemp("store")
    units = [f"u{i}" for i in range(20)]

    def write(upto: int) -> None:
        with RecordWriter(folder, flush_units=3) as writer:
            for n, unit in enumerate(units[:upto]):
                if not writer.done(unit):
                    writer.commit(unit, [Problem.make(f"{unit} {i}") for i in range(n % 3)], [Drop("r", unit)])

    write(10)
    path = next(folder.glob(f"{which}-*"))
    if which == "journal":
        data = path.read_bytes()
        path.write_bytes(data[: cut % (len(data) + 1)])
    else:
        with path.open("ab") as file:
            file.write(junk)
    write(20)
    expected = sorted(f"u{n} {i}" for n in range(20) for i in range(n % 3))
    assert sorted(p.problem for p in read_records(folder, Problem)) == expected
    assert sorted(unit for unit, _ in read_drops(folder)) == sorted(units)


def fill(folder: Path) -> RecordWriter:
    """Do what is not done of ten units, u0 to u9, each with a record and a drop."""
    with RecordWriter(folder) as writer:
        for n in range(10):
            if not writer.done(f"u{n}"):
                writer.commit(f"u{n}", [Problem.make(f"{n} of ten")], [Drop("r", f"u{n}")])
    return writer


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 55 // 100)


def without_line_5(path: Path) -> None:
    """A line of the journal becomes other bytes of the same length."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"#" * (len(lines[5]) - 1) + b"\n", *lines[6:]]))


def with_a_wrong_end(path: Path) -> None:
    end = orjson.loads(path.read_bytes().splitlines()[5])["records"]
    path.write_bytes(path.read_bytes().replace(b'"records":%d' % end, b'"records":9%d' % end))


@pytest.mark.parametrize(
    ("kind", "damage", "kept"),
    [
        ("part", cut, 5),
        ("drops", cut, 5),
        ("part", Path.unlink, 0),
        ("journal", without_line_5, 8),
        ("journal", with_a_wrong_end, 8),
        ("part", without_line_5, 9),
    ],
)
def test_a_damaged_file_costs_what_is_damaged(
    kind: str, damage: Callable[[Path], None], kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    fill(whole)
    fill(folder)
    damage(next(folder.glob(f"{kind}-*")))
    lost = 10 - kept
    if damage is without_line_5 and kind == "part":  # what lies inside a data file is looked at when more is wrong
        with next(folder.glob("journal-*")).open("ab") as journal:
            journal.write(b"?\n")
        lost += 1
    writer = fill(folder)
    assert (writer.recovered, writer.lost) == (kept, lost)
    assert f"is damaged: {kept} units are kept, {lost} are done again" in caplog.text
    assert content(folder) == content(whole)
    assert fill(folder).lost == 0, "it is mended"
    assert {path.name[:4] for path in folder.iterdir()} == {"part", "drop", "jour", ".sum"}, "nothing is left beside"


def test_a_journal_that_is_gone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    next(tmp_path.glob("journal-*")).unlink()
    assert fill(tmp_path).recovered == 0
    assert "journal-00000-of-00001.jsonl: is gone: all units of this shard are done again" in caplog.text
    assert len(content(tmp_path)[0]) == 10


def test_a_kill_while_a_damaged_store_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each renaming in turn: the next opening has every unit whole and once."""
    whole = tmp_path / "whole"
    fill(whole)
    replace = Path.replace
    for renamings in range(5):
        folder, left = tmp_path / str(renamings), iter(range(renamings))

        def rename(path: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return replace(path, target)

        fill(folder)
        without_line_5(next(folder.glob("journal-*")))
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", rename)
            RecordWriter(folder).close()
        assert fill(folder).recovered == 8
        assert content(folder) == content(whole)


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first, second = RecordWriter(tmp_path), RecordWriter(tmp_path)
    first.commit("a", [Problem.make("a")])
    first.flush()
    second.commit("b", [Problem.make("b")])
    with pytest.raises(OpenMathError, match="another process writes this shard"):
        second.flush()


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from nemo_openmath.core.errors import SystemFailure
from nemo_openmath.core.records import Problem, RecordWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with RecordWriter(Path({str(tmp_path)!r}), flush_units=1) as writer:
        for n in range(100):
            writer.commit(f"u{{n}}", [Problem.make(f"{{n}} " + "x" * 900)])
except SystemFailure as error:
    print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "no space left" in out
    assert "run the same command again" in out
    with RecordWriter(tmp_path) as writer:
        finished = writer.recovered
        assert 10 <= finished < 100
        for n in range(100):
            if not writer.done(f"u{n}"):
                writer.commit(f"u{n}", [Problem.make(f"{n} " + "x" * 900)])
    assert sorted(int(p.problem.split()[0]) for p in read_records(tmp_path, Problem)) == list(range(100))


def test_times_and_hosts_live_in_the_journal_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with RecordWriter(tmp_path / name) as writer:
            for n in sorted(range(9), reverse=name == "two"):
                writer.commit(f"u{n}", [Problem.make(str(n))], [Drop("r")])
        time.sleep(0.01)
    assert content(tmp_path / "one")[0] == content(tmp_path / "two")[0]
    entry = orjson.loads(next((tmp_path / "one").glob("journal-*")).read_bytes().splitlines()[0])
    assert {"unit", "time", "host", "attempt"} <= entry.keys()


def test_a_broken_row_is_named_with_its_place(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.commit("a", [Problem.make("a")])
    part = next(tmp_path.glob("part-*"))
    with part.open("ab") as file:
        file.write(b'{"id": "x", "problem": "p", "nonsense": 1}\n')
    with pytest.raises(UserError, match=r"part-00000-of-00001\.jsonl:2: not a Problem: unknown field 'nonsense'"):
        list(read_records(tmp_path, Problem))


@given(st.lists(st.binary(max_size=20)), st.randoms())
def test_digest_ignores_order_and_sees_everything_else(lines: list[bytes], rng: random.Random) -> None:
    shuffled = lines[:]
    rng.shuffle(shuffled)
    assert digest_of_lines(lines) == digest_of_lines(shuffled)
    assert digest_of_lines([*lines, b"more"]) != digest_of_lines(lines)
    assert digest_of_lines([*lines, b"a", b"a"]) != digest_of_lines([*lines, b"a"])


@given(st.text(), st.integers(1, 64))
def test_every_unit_is_in_exactly_one_shard(unit: str, shards: int) -> None:
    assert sum(partition_of(unit, shards) == n for n in range(shards)) == 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_problem_is_its_text(one: str, two: str) -> None:
    same = one.split() == two.split()
    assert (Problem.make(one).id == Problem.make(two, expected_answer="1").id) == same


def test_a_record_refuses_an_unknown_value_by_name_and_writes_the_same_text() -> None:
    row = {"id": "g", "problem_id": "p", "mode": "tir", "model": "m", "sample": 0, "transcript": {}, "finish": "stop"}
    generation = Generation.from_json(row | {"verdict": "equal"})
    assert (generation.mode, generation.finish, generation.verdict) == (Mode.TIR, Finish.STOP, Verdict.EQUAL)
    assert type(generation.with_(verdict="timeout").verdict) is Verdict
    assert orjson.loads(orjson.dumps(generation)).items() >= (row | {"verdict": "equal"}).items()
    for name, value in {"mode": "tri", "finish": None, "verdict": "yes"}.items():
        with pytest.raises(ValueError, match=f"not a Generation: {name} {value!r} is unknown; known: .*, "):
            Generation.from_json(row | {name: value})
