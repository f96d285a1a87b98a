"""The list of what breaks each bound fits the code; that each is caught takes longer (mutants.py)."""

from tests.competition.mutants import TOP, read_mutants


def test_each_mutant_changes_one_place() -> None:
    for mutant in read_mutants():
        mutant.changed(TOP)
