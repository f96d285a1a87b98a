"""The shapes of the paper's tables, filled with numbers that are counted here by hand."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.metrics import ProblemScores
from nemo_openmath.evaluation.paper_tables import EvaluatedModel, PaperTable, paper_table
from nemo_openmath.evaluation.stage import write_scores

PROBLEMS = [
    Problem.make(f"What is {n}?", expected_answer="1", extra={"subset_for_metrics": part, "id": f"{part}-{n}"})
    for part in ("aime24", "aime25")
    for n in (range(4) if part == "aime24" else range(10, 12))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CoT: aime24 is right in 1 of 4 (votes: 2 of 4), aime25 in half of its samples. TIR: no selection."""
    write_records(tmp_path / "run" / "b_problems", PROBLEMS)
    shares, votes = [1.0, 0.0, 0.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    cot = [
        ProblemScores(p.id, "cot", 4, {"pass@1": s, "maj@2": 0.0, "maj@4": v, "unfinished": 0.25, "tokens": 9.0})
        for p, s, v in zip(PROBLEMS, shares, votes, strict=True)
    ]
    selected = [ProblemScores(p.id, "genselect", 8, {"genselect@16": float(n < 3)}) for n, p in enumerate(PROBLEMS)]
    write_scores(tmp_path / "run" / "b_cot_results", "b", [*cot, *selected])
    tir = [ProblemScores(p.id, "tir", 4, {"pass@1": 1.0, "maj@4": 1.0, "unfinished": 0.5}) for p in PROBLEMS]
    write_scores(tmp_path / "run" / "b_tir_results", "b", tir)
    return tmp_path / "run"


def cells(table: PaperTable) -> list[list[str]]:
    """The first line of every cell, row by row."""
    columns = [[str(cell).split("\n")[0] for cell in column.cells] for column in table.table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_tables_hold_the_means_by_part_and_name_what_is_missing(folder: Path) -> None:
    model = EvaluatedModel.read(f"m={folder}")
    assert cells(paper_table(4, [model])) == [["AIME24", "4"], ["AIME25", "2"], ["all", "6"]]
    assert cells(paper_table(6, [model])) == [["m", "50.0", "100.0"]]
    assert cells(paper_table(8, [model])) == [["m", "25.0", "50.0"]]
    results = paper_table(7, [model])
    assert [str(column.header) for column in results.table.columns][1:] == [
        "AIME24",
        "AIME25",
        "HMMT-24-25",
        "HLE-Math",
    ]
    assert cells(results) == [
        ["m CoT", "25.0 (50.0)", "50.0 (50.0)", "–", "–"],
        ["  + GenSelect", "75.0", "0.0", "–", "–"],
        ["m TIR", "100.0 (100.0)", "100.0 (100.0)", "–", "–"],
    ]
    assert {"no HMMT-24-25: evaluate with a benchmark of it", "m TIR: no GenSelect (--mode tir --mode genselect)"} <= {
        *results.missing
    }
    speeds = paper_table(9, [model])
    assert cells(speeds) == [
        ["m", "CoT", "–", "maj@4", "50.0 11.8–88.2"],
        ["m", "TIR", "–", "maj@4", "100.0 54.1–100.0"],
    ]
    assert any("no speed" in line for line in speeds.missing)
    console = Console(file=StringIO(), width=120)
    console.print(results.table)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results of an evaluation"):
        EvaluatedModel.read(str(tmp_path))
