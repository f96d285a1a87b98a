"""The arithmetic of the time bank, by properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.competition.bank import TimeBank

seconds = st.floats(0, 1000)


@given(st.lists(st.floats(0, 560), max_size=50))
def test_the_bank_never_gives_more_than_it_has(times: list[float]) -> None:
    bank = TimeBank()
    spent = 0.0
    for n, wanted in enumerate(times, 1):
        allowed = bank.allowance()
        assert allowed <= 560
        took = min(wanted, allowed)
        bank.spend(took)
        spent += took
        assert spent <= n * 350 + 1e-6, "all problems so far fit their base times"
    assert TimeBank(350, 210).allowance() == 350, "the first problem has its base time alone"


def test_an_overdrawn_problem_is_paid_by_the_next() -> None:
    bank = TimeBank(10, 5)
    bank.spend(4)
    assert bank.allowance() == 15
    bank.spend(15)
    assert bank.allowance() == 11
    bank.spend(20)  # a solution that ended late
    assert bank.allowance() == 1, "what was taken beyond the bank is owed"
    bank.spend(5000)  # the machine slept
    assert bank.allowance() == 0
    assert TimeBank(10, 5, saved=-5000, reserve=3).allowance() == 3, "a problem has its reserve all the same"


@given(
    base=st.floats(1, 500),
    most=st.floats(0, 300),
    total=st.floats(1, 5000),
    reserve=st.floats(0, 100),
    wanted=st.lists(st.tuples(seconds, st.sampled_from([0.0, 0.0, 0.0, 30.0, 800.0])), min_size=1, max_size=30),
)
def test_no_contest_outlasts_its_total(
    base: float, most: float, total: float, reserve: float, wanted: list[tuple[float, float]]
) -> None:
    """``wanted``: what a problem would take, and by how much something beyond control (a clock) made it late."""
    bank, late = TimeBank(base, most, total=total, reserve=reserve), 0.0
    for number, (want, over) in enumerate(wanted):
        others = len(wanted) - number - 1
        left, allowed = max(0.0, total - bank.spent), bank.allowance(others)
        assert 0 <= allowed <= min(base + most, left) + 1e-9
        fair = left / (others + 1)
        kept = min(base, reserve, fair)
        assert left - allowed >= kept * others - 1e-6, "the others keep their reserve, or an even share"
        assert allowed >= kept - 1e-9, "so does this one"
        if not late and total >= base * len(wanted):
            assert allowed >= min(base, left) - 1e-6, "where the total suffices for all, each has its base time"
        bank.spend(min(want, allowed) + over)
        late += over
    assert bank.spent <= total + late + 1e-6


@given(st.lists(seconds, max_size=20), st.floats(1, 500))
def test_the_books_balance(times: list[float], base: float) -> None:
    bank = TimeBank(base, 100)
    for took in times:
        bank.spend(took)
    assert abs(bank.saved - (base * len(times) - sum(times))) < 1e-6
    assert abs(bank.spent - sum(times)) < 1e-6


@given(st.floats(1, 500), st.floats(0, 300), st.floats(0, 1000), st.lists(seconds, min_size=1, max_size=20))
def test_a_total_of_all_base_times_takes_nothing_away(
    base: float, most: float, reserve: float, wanted: list[float]
) -> None:
    """Also where the reserve is above the base time: it keeps no more than that."""
    free, ended = TimeBank(base, most), TimeBank(base, most, total=base * len(wanted), reserve=reserve)
    for number, want in enumerate(wanted):
        allowed = ended.allowance(len(wanted) - number - 1)
        assert abs(allowed - free.allowance()) < 1e-6
        for bank in (free, ended):
            bank.spend(min(want, allowed))
