"""Files of problems and threads: what is wrong with them is said before anything is stored."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem, Thread, read_drops, read_records
from nemo_openmath.core.records.store import unit_names
from nemo_openmath.core.stage import StageContext
from nemo_openmath.inference.rollout.counts import by_hardness
from nemo_openmath.synthesis.problems.read import ReadFiles, ReadProblems
from nemo_openmath.synthesis.problems.threads import ReadThreads
from tests.support.services import stage_context


def run(kind: type[ReadFiles[Any]], output: Path, *paths: Path, **settings: Any) -> StageContext:
    context = stage_context({"files": paths}, output)
    asyncio.run(kind(kind.Config(**settings)).run(context))
    return context


GOOD = '{"problem": "1+1?", "expected_answer": 2, "level": 123456789012345678901234567890}\n'


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "question,answer\n1+1?,2\n", r"p\.csv:2: no 'problem'; the row has 'question', 'answer'"),
        ("p.jsonl", GOOD + "broken\n" + '{"problem": 3}\n', r"p\.jsonl:2: not JSON.*\(2 of 3 rows are broken\).*skip"),
        ("p.jsonl", GOOD + '{"problem": 3}\nbroken\n', r"p\.jsonl:2: 'problem' is a number, not a text \(2 of 3"),
        ("p.jsonl", '{"problem": "x", "expected_answer": ["4"]}\n', r":1: 'expected_answer' is a list; write it as"),
        ("p.jsonl", '{"problem": "x", "expected_answer": true}\n', r":1: 'expected_answer' is true or false"),
        ("p.jsonl", '{"problem": " "}\n', r":1: 'problem' is empty"),
        ("p.jsonl", '{"problem": "x", "problem_type": 3}\n', r":1: 'problem_type' is a number"),
        ("p.jsonl", '{"problem": "x", "pass_rate_72b_tir": "1.5"}\n', r":1: 'pass_rate_72b_tir' is '1.5', neither a"),
        ("p.json", '{"problem": ["a", "b"]}', r":1: 'problem' is a list"),
        ("p.jsonl", "", r"p\.jsonl: there is no row in it; give a file with one 'problem' a row"),
        ("p.jsonl", "\n\n", r"there is no row in it"),
    ],
)
def test_a_problem_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        run(ReadProblems, tmp_path / "out", tmp_path / name)
    assert not list((tmp_path / "out").iterdir())


def test_broken_rows_are_skipped_and_counted_where_the_user_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(GOOD + "broken\n{}\n")
    run(ReadProblems, tmp_path / "out", tmp_path / "p.jsonl", skip_broken=True)
    (problem,) = read_records(tmp_path / "out", Problem)
    assert (problem.expected_answer, problem.source) == ("2", "p.jsonl")
    assert problem.extra == {"level": 123456789012345678901234567890}
    assert [(d.reason, d.detail[:11]) for _, d in read_drops(tmp_path / "out")] == [
        ("broken row", "p.jsonl:2: "),
        ("broken row", "p.jsonl:3: "),
    ]


@pytest.mark.parametrize("kind", [ReadProblems, ReadThreads])
def test_a_file_of_broken_rows_alone_is_refused_though_they_may_be_skipped(
    tmp_path: Path, kind: type[ReadFiles[Any]]
) -> None:
    (tmp_path / "p.jsonl").write_text('broken\n{"other": 1}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:1: not JSON.*\(2 of 2 rows are broken\).*no row is left"):
        run(kind, tmp_path / "out", tmp_path / "p.jsonl", skip_broken=True)


@pytest.mark.parametrize("number", ["18446744073709551617", "12345678901234567890.5", "0.10", "1e400"])
def test_an_answer_that_is_a_number_keeps_its_spelling(tmp_path: Path, number: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"problem": "x", "expected_answer": {number}, "bound": {number}}}\n')
    run(ReadProblems, tmp_path / "out", tmp_path / "p.jsonl")
    (problem,) = read_records(tmp_path / "out", Problem)
    assert problem.expected_answer == number
    (stored,) = (tmp_path / "out").glob("part-*")
    assert f'"bound":{number}' in stored.read_text()


def test_csv_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes("\ufeffproblem;expected_answer\r\n1+1?;2\r\n2+2?;\r\n".encode())
    run(ReadProblems, tmp_path / "out", tmp_path / "p.csv")
    assert [(p.problem, p.expected_answer) for p in read_records(tmp_path / "out", Problem)] == [
        ("1+1?", "2"),
        ("2+2?", None),
    ]


def test_files_of_one_name_in_several_folders_are_apart_and_their_order_changes_nothing(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        (tmp_path / "forum" / year).mkdir(parents=True)
        rows = [json.dumps({"forum_post": f"{year} {n}"}) for n in range(3)]
        (tmp_path / "forum" / year / "part-00000.jsonl").write_text("\n".join(rows))
    years = [tmp_path / "forum/2023", tmp_path / "forum/2024"]
    run(ReadThreads, tmp_path / "a", tmp_path / "forum")
    run(ReadThreads, tmp_path / "b", *years)
    run(ReadThreads, tmp_path / "c", *reversed(years))
    assert len(list(read_records(tmp_path / "a", Thread))) == 6
    assert len(set(unit_names(tmp_path / "a"))) == 6
    assert (
        sorted(unit_names(tmp_path / "a")) == sorted(unit_names(tmp_path / "b")) == sorted(unit_names(tmp_path / "c"))
    )


def test_answers_under_another_name_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nemo_openmath")
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    run(ReadProblems, tmp_path / "out", tmp_path / "p.jsonl")
    assert "no row has expected_answer" in caplog.text
    caplog.clear()
    (tmp_path / "q.jsonl").write_text('{"problem": "1+1?", "answer": "long", "expected_answer": "2"}\n')
    run(ReadProblems, tmp_path / "out2", tmp_path / "q.jsonl")
    assert "no row has" not in caplog.text


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "p.jsonl").write_text(GOOD)
    context = run(ReadProblems, tmp_path / "out", data / "p.jsonl", data)
    assert len(list(read_records(tmp_path / "out", Problem))) == 1
    assert context.metrics["equal_units"] == 1


def test_published_pass_rates_say_how_many_samples_a_problem_gets(tmp_path: Path) -> None:
    given = {"a": "0.25", "b": 1, "c": "n/a", "d": None, "e": ""}
    rows = [json.dumps({"problem": name, "pass_rate_72b_tir": rate}) for name, rate in given.items()]
    (tmp_path / "p.jsonl").write_text("\n".join([*rows, '{"problem": "f"}']))
    run(ReadProblems, tmp_path / "out", tmp_path / "p.jsonl")
    rates = {p.problem: p.pass_rate for p in read_records(tmp_path / "out", Problem)}
    assert rates == {"a": 0.25, "b": 1.0, "c": None, "d": None, "e": None, "f": None}
    assert {name: by_hardness(rate, 4, 32) for name, rate in rates.items()} == {
        "a": 25, "b": 4, "c": 32, "d": 32, "e": 32, "f": 32,
    }  # fmt: skip
