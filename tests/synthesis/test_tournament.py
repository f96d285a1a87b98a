"""Tournaments: every solution meets, winners go on, what names nobody is settled by the answers."""

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.evaluation.metrics import evaluate
from nemo_openmath.synthesis.genselect.tournament import Tournament, TournamentConfig, divide
from tests.support.engines import REFUSED, Reply
from tests.support.services import StageRun, run_stage

PROBLEM = Problem.make("What is 6 times 7?", expected_answer="42")


def solutions(*answers: str, problem: Problem = PROBLEM) -> list[Generation]:
    user = (Message("user", problem.problem),)
    return [
        Generation(
            id=f"{problem.id}-{n}", problem_id=problem.id, mode="tir", model="m", sample=n, finish="stop",
            transcript=Transcript.from_text(user, f"<think>{n}</think>Way {n}: \\boxed{{{answer}}}.").to_json(),
            predicted_answer=answer, verdict="equal" if answer == "42" else "not_equal",
        )
        for n, answer in enumerate(answers)
    ]  # fmt: skip


def wise(question: str) -> str:
    """The right solution where there is one, else the first."""
    right = re.search(r"Solution (\d+):\nWay \d+: \\boxed\{42\}", question)
    return f"Judgment: {right.group(1) if right else 0}"


@pytest.fixture
def play(tokenizer: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    runs = iter(range(100))

    async def run(
        answer: Callable[[str], str | Reply], *generations: Generation, problems: Any = (PROBLEM,), **settings: Any
    ) -> StageRun:
        stage, folder = Tournament(TournamentConfig(**settings)), tmp_path / str(next(runs))
        return await run_stage(stage, folder, answer, tokenizer=tokenizer, problems=problems, generations=generations)

    return run


async def test_every_solution_meets_and_winners_go_on(play: Callable[..., Any]) -> None:
    listed = solutions(*["41"] * 29, "42", *["40"] * 10)
    run = await play(wise, *listed, size=4, candidates=64, repeats=3)
    for made in run.records:
        matches = made.extra["matches"]
        rounds = [[m for m in matches if m["round"] == number] for number in range(3)]
        assert [[len(m["members"]) for m in of_round] for of_round in rounds] == [[4] * 10, [3, 3, 4], [3]]
        assert sorted(name for m in rounds[0] for name in m["members"]) == sorted(g.id for g in listed)
        for before, after in pairwise(rounds):
            assert {m["winner"] for m in before} == {name for m in after for name in m["members"]}
        assert (made.predicted_answer, made.verdict) == ("42", "equal")
        assert made.extra["chosen"] == listed[29].id
        assert set(made.parents) == {PROBLEM.id, *(g.id for g in listed)}
    assert len(run.asked) == run.context.metrics["comparisons"] == 3 * 14
    assert len({asked.seed for asked in run.asked}) == 3 * 14, "nothing is judged twice"
    assert len({str(made.extra["matches"][0]["members"]) for made in run.records}) == 3, "each has a draw of its own"
    rows = {row.metric: (row.k, row.value) for row in evaluate(run.records, ks=[1], seed=1)}
    assert rows["genselect@k"] == (64, 1.0)

    random.Random(1).shuffle(listed)
    again = await play(wise, *listed, size=4, candidates=64, repeats=3)
    assert sorted(again.records, key=lambda g: g.id) == sorted(run.records, key=lambda g: g.id)


@pytest.mark.parametrize("reply", ["Judgment: 9", "Hm.", Reply("Judgment: 0", finish="length")])
async def test_a_comparison_that_names_nobody_is_asked_again_and_then_settled(
    play: Callable[..., Any], reply: str | Reply
) -> None:
    run = await play(lambda _: reply, *solutions("41", "42", "42.0"), attempts=3)
    (made,) = run.records
    assert len(run.asked) == 3
    assert made.predicted_answer in ("42", "42.0")
    assert made.extra["matches"][0]["by"] == "most common answer"
    names = {"Judgment: 9": "judgment_out_of_range"}
    assert run.context.metrics[names.get(str(reply), "no_valid_judgment")] == 3


async def test_a_few_solutions_byes_and_refusals(play: Callable[..., Any]) -> None:
    problems = [Problem.make(f"Number {n}") for n in range(4)]
    none, single, three, refused = problems
    listed = solutions("42", problem=single) + solutions("1", "2", "3", problem=three)
    listed += solutions("1", "2", problem=refused)
    run = await play(lambda q: REFUSED if refused.problem in q else wise(q), *listed, problems=problems, size=2)
    made = {g.problem_id: g for g in run.records}
    assert (made[none.id].predicted_answer, made[none.id].verdict) == (None, "not_equal")
    assert (made[single.id].predicted_answer, made[single.id].verdict) == ("42", "equal")
    assert [m["by"] for m in made[three.id].extra["matches"]] == ["bye", "judgment", "judgment"]
    assert (made[refused.id].finish, made[refused.id].verdict) == ("refused", "unknown")
    assert len(run.asked) == 3


def test_groups_are_even() -> None:
    for count in range(2, 200):
        for size in range(2, 20):
            groups = divide(range(count), size)  # type: ignore[arg-type]
            lengths = {len(group) for group in groups}
            assert sum(map(len, groups)) == count
            assert max(lengths) <= size
            assert max(lengths) - min(lengths) <= 1
            assert min(lengths) > 1 or size == 2
