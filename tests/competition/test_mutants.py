"""The list of what breaks each bound fits the code; that each is caught takes longer (mutants.py)."""

import shutil
from pathlib import Path

from tests.competition.mutants import TOP, read_mutants


def test_each_mutant_changes_one_place(tmp_path: Path) -> None:
    shutil.copytree(TOP / "nemo_openmath/competition", tmp_path / "nemo_openmath/competition")
    for mutant in read_mutants():
        mutant.apply(tmp_path)
        mutant.undo(tmp_path)
