"""The world is honest: its programs print its answers, its grammar reads what it wrote, its pools never mix."""

import contextlib
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.demo import KINDS, Item, make_benchmark, make_problems, parse, sample
from nemo_openmath.demo.world import LEVELS, POOLS, find

items = st.builds(
    lambda seed, level, kind: sample(random.Random(seed), level, kind=kind),
    st.integers(0, 2**32),
    st.sampled_from(LEVELS),
    st.sampled_from(tuple(KINDS)),
)


def run(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().strip()


@settings(max_examples=150, deadline=None)
@given(items)
def test_every_wording_is_read_back(item: Item) -> None:
    assert parse(item.statement) == item
    other = item.reworded()
    assert other.statement != item.statement
    assert parse(other.statement) == other
    assert other.key == item.key
    assert [hit[2] for hit in find(f"Hi! {item.statement} Thanks. {other.statement}")] == [item, other]
    assert parse(item.statement + " x") is None


@settings(max_examples=60, deadline=None)
@given(items)
def test_programs_print_the_answer(item: Item) -> None:
    assert run(item.program) == item.answer
    first = run(item.stages[0])
    if len(item.stages) == 1:
        assert first == item.answer
    elif "{unknown}" in item.stages[1]:
        assert run(item.stages[1].replace("{unknown}", first)) == item.answer
    else:
        assert (first if first != "None" else run(item.stages[1])) == item.answer
    assert item.steps.rstrip(".").endswith(item.answer)


def test_wrong_programs_are_mostly_wrong_and_searches_mostly_fail_at_first() -> None:
    drawn = [sample(random.Random(seed), 3) for seed in range(150)]
    wrong = [run(code) != item.answer for item in drawn for code in item.wrong_programs]
    assert sum(wrong) > 0.7 * len(wrong)
    searches = [sample(random.Random(seed), 3, kind="congruence") for seed in range(40)]
    assert sum(run(item.stages[0]) == "None" for item in searches) > 30


def test_pools_are_disjoint_whatever_the_seed() -> None:
    drawn = {pool: {i.key for seed in (0, 1) for i in make_problems(seed, 200, pool=pool)} for pool in POOLS}
    assert not drawn["benchmark"] & drawn["train"]
    assert not drawn["benchmark"] & drawn["base"]
    assert not drawn["train"] & drawn["base"]
    assert all(item.pool == "benchmark" for item in make_benchmark(3, 50))
    first = make_benchmark(0, 240)
    assert first == make_benchmark(0, 240) != make_benchmark(1, 240)
    assert len({item.key for item in first}) == 240
    assert all(sum(item.kind == kind for item in first) > 10 for kind in KINDS)
    excluded = frozenset(item.key for item in first)
    assert not excluded & {item.key for item in make_problems(1, 100, pool="benchmark", exclude=excluded)}
    with pytest.raises(ValueError, match="no problem of kind"):
        sample(random.Random(0), 1, kind="lcm", pool="no such pool")
