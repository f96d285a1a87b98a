"""Runs compared: the numbers against enumeration and hand counts, the pictures against the numbers, the refusals."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records import Mode, Problem
from nemo_openmath.core.records.manifest import Manifest, write_manifest
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.records.sums import digest_of_lines
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.comparison.build import compare_runs, write_comparison
from nemo_openmath.evaluation.comparison.drawing import CURVES, LENGTH_TITLE, RATES_TITLE
from nemo_openmath.evaluation.comparison.numbers import curve_ks
from nemo_openmath.evaluation.comparison.page import title_of
from nemo_openmath.evaluation.comparison.reading import NamedFolders
from nemo_openmath.grading import compare
from nemo_openmath.recipe.compare_runs import CompareRequest, named_runs
from nemo_openmath.recipe.compare_runs import compare as compare_command
from tests.support.solutions import HOSTILE, solution

PROBLEMS = [Problem.make(f"What is {i} + {i}?", expected_answer=str(2 * i)) for i in range(8)]
Answers = dict[int, list[tuple[str | None, int]]]
"""Number of a problem -> (answer, tokens) of its samples."""


def write_run(folder: Path, answers: Answers, mode: str = "cot", **values: Any) -> Path:
    records = []
    for number, samples in answers.items():
        problem = PROBLEMS[number]
        for n, (answer, tokens) in enumerate(samples):
            right = answer == problem.expected_answer
            given = {
                "mode": mode,
                "sample": n,
                "predicted_answer": answer,
                "expected_answer": problem.expected_answer,
                "verdict": "equal" if right else "not_equal",
                "completion_tokens": tokens,
            }
            records.append(solution(f"{folder.name}-{mode}-{number}-{n}", problem, **(given | values)))
    write_records(folder / "graded", records)
    write_records(folder / "problems", PROBLEMS)
    return folder / "graded"


def drawn(seed: int, samples: int, problems: range = range(8)) -> Answers:
    rng = random.Random(seed)
    return {
        i: [(rng.choice([str(2 * i), str(2 * i), "7", "9", None]), rng.randrange(1, 500)) for _ in range(samples)]
        for i in problems
    }


def compared(*folders: Path, **options: Any) -> Any:
    runs = [NamedFolders(folder.parent.name, {"model": (folder,)}) for folder in folders]
    return compare_runs(runs, compare=compare, **options)


def by_enumeration(samples: list[tuple[str | None, int]], gold: str, k: int) -> tuple[float, float]:
    """(pass@k, maj@k) by looking at every set of k samples."""
    passed, voted, sets = 0.0, 0.0, list(combinations([answer for answer, _ in samples], k))
    for chosen in sets:
        passed += gold in chosen
        votes = Counter(answer for answer in chosen if answer is not None)
        best = [answer for answer, count in votes.items() if count == max(votes.values())]
        voted += (gold in best) / len(best) if best else 0.0
    return passed / len(sets), voted / len(sets)


def test_curves_are_those_of_enumeration_over_the_common_problems(tmp_path):
    answers = {"one": drawn(1, 6), "two": drawn(2, 5, range(2, 8))}
    folders = [write_run(tmp_path / name, given) for name, given in answers.items()]
    write_comparison(compared(*folders), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    (cot,) = written["comparisons"]
    assert (cot["problems"], cot["left_out"]) == (6, {"A": 2, "B": 0})
    wanted = {}
    for letter, given in zip("AB", answers.values(), strict=True):
        for k in range(1, len(given[2]) + 1):
            values = [by_enumeration(given[i], PROBLEMS[i].expected_answer or "", k) for i in range(2, 8)]
            for metric, at in (("pass", 0), ("maj", 1)):
                wanted[letter, f"{metric}@k" if (metric, k) != ("pass", 1) else "pass@1", k] = (
                    sum(value[at] for value in values) / 6
                )
    values = {(r["run"], r["metric"], r["k"]): r["value"] for r in cot["results"] if r["k"] is not None}
    assert values == pytest.approx(wanted, abs=1e-12)
    assert all(r["low"] <= r["value"] <= r["high"] and r["problems"] == 6 for r in cot["results"])
    tokens = {
        letter: [t for i in range(2, 8) for _, t in given[i]]
        for letter, given in zip("AB", answers.values(), strict=True)
    }
    for letter, values in tokens.items():
        edges = cot["length_edges"]
        bins = [sum(a <= t < b for t in values) for a, b in pairwise(edges)]
        assert cot["lengths"][letter] == bins
        assert sum(bins) == len(values)
        assert cot["quantiles"][letter]["mean"] == pytest.approx(sum(values) / len(values))
        assert cot["quantiles"][letter]["median"] == sorted(values)[(len(values) + 1) // 2 - 1]
    # every difference is the mean of the differences of the problems
    (row,) = [row for row in cot["differences"] if row["metric"] == "maj@5"]
    gains = []
    for i in range(2, 8):
        before, after = (by_enumeration(answers[name][i], PROBLEMS[i].expected_answer or "", 5)[1] for name in answers)
        gains.append(after - before)
    assert row["difference"] == pytest.approx(sum(gains) / 6)
    assert (row["better"], row["worse"]) == (sum(g > 1e-9 for g in gains), sum(g < -1e-9 for g in gains))


def test_pass_rates_and_differing_problems_by_hand(tmp_path):
    right, wrong = ("0", 5), ("7", 5)
    one = {0: [right] * 10, 1: [("2", 5)] * 3 + [wrong] * 7, 2: [wrong] * 10, 3: [("6", 5)] * 9 + [wrong]}
    two = {0: [wrong] * 10, 1: [("2", 5)] * 4 + [wrong] * 6, 2: [wrong] * 10, 3: [("6", 5)] * 5 + [wrong] * 5}
    cot = compared(write_run(tmp_path / "one", one), write_run(tmp_path / "two", two)).modes[0]
    #                         none  0  1  2  3  4  5  6  7  8  9  all
    assert cot.pass_rates["A"] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1]
    assert cot.pass_rates["B"] == [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert [row.text for row in cot.differing] == ["What is 0 + 0?", "What is 3 + 3?"]
    assert cot.differing[0].vote == {"A": 1.0, "B": 0.0}
    assert cot.differing[1].vote == {"A": 1.0, "B": 0.5}, "a tie is not right"
    assert cot.differing[1].right == {"A": 0.9, "B": 0.5}
    assert cot.differing[1].first == {"A": "one-cot-3-0", "B": "two-cot-3-0"}
    fewer = two | {2: [wrong] * 9}  # its curves end at 9 samples; all other votes stay those of ten
    cot = compared(tmp_path / "one" / "graded", write_run(tmp_path / "fewer", fewer)).modes[0]
    assert [row.vote for row in cot.differing] == [{"A": 1.0, "B": 0.0}, {"A": 1.0, "B": 0.5}]
    assert cot.samples == {"A": (10, 10), "B": (9, 10)}


def scale(ticks: list[tuple[float, float]]) -> Any:
    """(pixel -> value) by the two outer ticks."""
    (a, x), (b, y) = ticks[0], ticks[-1]
    return lambda pixel: x + (pixel - a) * (y - x) / (b - a)


def ticks_of(chart: str, anchor: str) -> list[tuple[float, float]]:
    """(pixel, number) of the ticks of an axis, from the picture alone."""
    along = "y" if anchor == "end" else "x"
    ticks = re.findall(rf'<text class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="{anchor}">([\d.]+)%?</text>', chart)
    return [(float(y) - 4 if along == "y" else float(x), float(n) / (100 if along == "y" else 1)) for x, y, n in ticks]


def test_points_of_the_pictures_are_the_numbers(tmp_path):
    folders = [write_run(tmp_path / name, drawn(seed, 4)) for seed, name in ((3, "one"), (4, "two"))]
    comparison = compared(*folders)
    write_comparison(comparison, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    charts = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", page, re.DOTALL))
    cot = comparison.modes[0]
    for metric in ("maj@k", "pass@k"):
        chart = charts[CURVES[metric]]
        to_share, to_power = (
            scale(ticks_of(chart, "end")),
            scale([(x, n.bit_length() - 1) for x, k in ticks_of(chart, "middle") for n in [int(k)]]),
        )
        points = re.findall(r'<circle class="point c(\d)" cx="([\d.]+)" cy="([\d.]+)"', chart)
        for colour, letter in enumerate("AB"):
            drawn_points = [(2 ** to_power(float(x)), to_share(float(y))) for c, x, y in points if c == str(colour)]
            wanted = [(row["k"], row["value"]) for row in cot.rows(letter, metric)]
            assert [k for k, _ in wanted] == [1, 2, 3, 4]
            assert [k for k, _ in drawn_points] == pytest.approx([k for k, _ in wanted], rel=2e-3)
            assert [v for _, v in drawn_points] == pytest.approx([v for _, v in wanted], abs=2e-3)
    for title, counts in ((LENGTH_TITLE, cot.lengths), (RATES_TITLE, cot.pass_rates)):
        to_share = scale(ticks_of(charts[title], "end"))
        paths = re.findall(r'<path class="line c(\d)" d="M([^"]*)"', charts[title])
        for (colour, path), (letter, of_run) in zip(paths, counts.items(), strict=True):
            heights = [to_share(float(point.split(",")[1])) for point in path.split("L")]
            assert "AB"[int(colour)] == letter
            assert heights[1:-1:2] == pytest.approx([count / sum(of_run) for count in of_run], abs=3e-3)


def test_ks_of_many_samples():
    assert curve_ks(1) == [1]
    assert curve_ks(16) == list(range(1, 17))
    assert curve_ks(70)[16:] == [20, 24, 28, 32, 40, 48, 56, 64, 70]


def test_the_page_is_safe_links_to_the_viewer_and_asks_nobody(tmp_path):
    problem = Problem.make(f"Say {HOSTILE} & $x|y$", expected_answer="1")
    for name, verdict in (("one", "equal"), ("two", "not_equal")):
        values = {"expected_answer": "1", "predicted_answer": "1", "verdict": verdict, "model": HOSTILE}
        write_records(tmp_path / name / "graded", [solution(f"{name}-1", problem, **values)])
        write_records(tmp_path / name / "problems", [problem])
    comparison = compared(
        *(tmp_path / name / "graded" for name in ("one", "two")),
        viewer="http://node:8800",
        view_command="openmath view one two --port 8800",
    )
    write_comparison(comparison, tmp_path / "out")
    page, text = ((tmp_path / "out" / f"comparison.{end}").read_text() for end in ("html", "md"))
    tags = " ".join(re.findall(r"<[^>]*>", page))
    assert not re.search(r"<(script|img|link)|\son\w+=|\ssrc=", tags)
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert f'href="http://node:8800/solutions?mode=cot&amp;problem={problem.id}"' in page
    assert 'href="http://node:8800/compare?a=one-1&amp;b=two-1"' in page
    assert "<script" not in text
    assert all(line.count(" | ") == text.splitlines()[2].count(" | ") for line in text.splitlines()[2:6])
    assert not list((tmp_path / "out").glob("*.partial"))


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    one, two = write_run(tmp_path / "one", drawn(1, 2)), write_run(tmp_path / "two", drawn(2, 2))
    far = write_run(tmp_path / "far", drawn(1, 2, range(2)))
    near = write_run(tmp_path / "near", drawn(1, 2, range(6, 8)))
    tir = write_run(tmp_path / "tir", drawn(1, 2), "tir")
    other = write_run(tmp_path / "other", drawn(1, 2), expected_answer="12")
    ungraded = write_run(tmp_path / "ungraded", drawn(1, 2), verdict=None)
    cases = {
        (one,): "one run only",
        (far, near): "far has no problem in common with near",
        (far, one, near): "no problem of mode CoT that all of far, one, near have",
        (one, tir): "no mode in common .*one: CoT; tir: TIR",
        (one, other): "has the answer '.*' in one and '12' in other: they are different benchmarks",
        (one, ungraded): "has no verdict",
    }
    for folders, message in cases.items():
        with pytest.raises(UserError, match=message):
            compared(*folders)
    part = two / "part-00000-of-00001.jsonl"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"part-00000-of-00001.jsonl:16: is no record"):
        compared(one, two)
    (tir / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="tir/graded: its stage has not finished"):
        compared(tir, tir)
    assert compared(one, write_run(tmp_path / "odd", drawn(5, 2))).modes[0].problems == 8


def test_problems_that_could_not_be_asked_are_in_no_mean(tmp_path):
    one = write_run(tmp_path / "one", {i: [(str(2 * i), 5)] for i in range(4)})
    records = [
        solution(f"b-{i}", p, expected_answer=p.expected_answer, predicted_answer=p.expected_answer)
        for i, p in enumerate(PROBLEMS[:3])
    ]
    records.append(solution("b-3", PROBLEMS[3], expected_answer="6", verdict="unknown", finish="context"))
    write_records(tmp_path / "two" / "graded", records)
    cot = compared(one, tmp_path / "two" / "graded").modes[0]
    assert (cot.problems, cot.not_asked) == (3, {"A": 0, "B": 1})
    assert {row["value"] for row in cot.results if row["metric"] == "pass@1"} == {1.0}


def test_checkpoints_of_one_run_are_runs_and_benchmarks_are_not(tmp_path):
    early, late = write_run(tmp_path / "early", drawn(1, 2)), write_run(tmp_path / "late", drawn(2, 2))
    loop = NamedFolders("loop", {"base": (early,), "iteration1": (late,)})
    comparison = compare_runs([loop], compare=compare)
    assert [run.name for run in comparison.runs] == ["base", "iteration1"]
    first, second = (write_run(tmp_path / f"p{n}", drawn(n, 2, range(4 * n, 4 * n + 4))) for n in (0, 1))
    model = NamedFolders("model", {"easy": (first,), "hard": (second,)})
    comparison = compare_runs([model, NamedFolders("all", {"model": (early,)})], compare=compare)
    assert [run.name for run in comparison.runs] == ["model", "all"]
    assert [numbers.problems for numbers in comparison.modes] == [8]
    again = NamedFolders("again", {"easy": (early,), "hard": (late,)})
    with pytest.raises(UserError, match="one run only"):
        compare_runs([model], compare=compare)
    assert [run.name for run in compare_runs([model, again], compare=compare).runs] == [
        "model",
        "again: easy",
        "again: hard",
    ]


def manifest(folder: Path, stage: str, **config: Any) -> None:
    digest = digest_of_lines(record.line for record in RecordFolder(folder).records())
    write_manifest(folder, Manifest(stage, "f", digest, {"records": 16, "units": 16}, config=config))


def test_the_command_names_runs_and_refuses_two_graders(tmp_path, capsys, monkeypatch):
    one, two = write_run(tmp_path / "one", drawn(1, 2)), write_run(tmp_path / "two", drawn(2, 2))
    manifest(one, "solutions.grade", fallback=False)
    manifest(two, "evaluation.rescore", grader="exact", judged="undecided")
    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"two/graded: graded by equal texts, and .*one/graded by the grader"):
        compare_command(CompareRequest([str(one), str(two)], output))
    manifest(two, "evaluation.rescore", grader="openmath", answers="text", judged="undecided")
    monkeypatch.chdir(tmp_path)  # the page may be read from any folder
    compare_command(CompareRequest(["before=one/graded", "./two/graded"], output, viewer="http://127.0.0.1:8800"))
    printed = capsys.readouterr().out
    assert "A  before\nB  two/graded\nCoT: 8 common problems\n" in printed
    assert (
        f"openmath view {tmp_path / 'one'} {tmp_path / 'two'} --port 8800" in (output / "comparison.html").read_text()
    )
    for texts, message in (
        ([str(one), f"again={one}"], "named twice"),
        ([f"x={one}", f"x={two}"], "two runs are called x; name them"),
        ([str(one), str(tmp_path / "nowhere")], "no such file or folder"),
        ([str(one), str(one / "part-00000-of-00001.jsonl")], "is a file of rows; openmath evaluate rescore"),
    ):
        with pytest.raises(UserError, match=message):
            named_runs(texts)
    part = two / "part-00000-of-00001.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"verdict":"equal"', b'"verdict":"error"', 1))
    assert part.read_bytes() != whole
    with pytest.raises(DamagedFile, match="two/graded: is not what its stage wrote"):
        compare_command(CompareRequest([str(one), str(two)], output))
    part.write_bytes(whole)
    (one / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="lies in the folder of a stage"):
        compare_command(CompareRequest([str(one), str(two)], one / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is not the folder of a comparison"):
        compare_command(CompareRequest([str(one), str(two)], tmp_path / "mine"))


def test_selections_among_each_mode_are_compared_by_themselves(tmp_path):
    folders = []
    for name, right in (("one", "tir"), ("two", "cot")):
        records = []
        for mode in ("cot", "tir"):
            note = Selection(group="g", chosen="c", candidates=2, turn=0, mode=Mode(mode)).to_extra()
            values = {"mode": "genselect", "extra": note, "verdict": "equal" if mode == right else "not_equal"}
            records.append(solution(f"{name}-{mode}", PROBLEMS[0], **values))
        write_records(tmp_path / name / "graded", records)
        folders.append(tmp_path / name / "graded")
    comparison = compared(*folders)
    values = [(n.chosen_from, n.rows("A", "genselect@k")[0]["value"]) for n in comparison.modes]
    assert values == [("cot", 0), ("tir", 1)]
    assert [title_of(numbers) for numbers in comparison.modes] == ["GenSelect among CoT", "GenSelect among TIR"]
