"""Groups of candidates: of one mode, distinct as texts, both classes in each, whatever the order of the files."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import Message, Transcript
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Group, Problem
from nemo_openmath.synthesis.genselect.candidates import cut, fitted
from nemo_openmath.synthesis.genselect.groups import Groups, GroupsConfig
from tests.support.services import StageRun, run_stage

PROBLEM = Problem.make("What is 6 times 7?", expected_answer="42")


def solution(
    name: str, text: str, correct: bool | None, *, mode: str = "cot", problem: Problem = PROBLEM
) -> Generation:
    transcript = Transcript.from_text((Message("user", problem.problem),), f"<think>hm</think>{text}")
    return Generation(
        id=name, problem_id=problem.id, mode=mode, model="m", sample=0, transcript=transcript.to_json(), finish="stop",
        predicted_answer="42" if correct else "41",
        verdict="unknown" if correct is None else "equal" if correct else "not_equal",
    )  # fmt: skip


def several(right: int, wrong: int, *, mode: str = "cot", problem: Problem = PROBLEM) -> list[Generation]:
    classes = [True] * right + [False] * wrong
    names = [f"{problem.problem[:3]}-{mode}-{n}" for n in range(right + wrong)]
    return [
        solution(name, f"way {name}", c, mode=mode, problem=problem) for name, c in zip(names, classes, strict=True)
    ]


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Any]:
    runs = iter(range(100))

    async def run(*solutions: Generation, seed: int = 1, problems: list[Problem] | None = None, **settings: Any) -> Any:
        inputs = {"problems": problems or [PROBLEM], "generations": solutions}
        return await run_stage(Groups(GroupsConfig(**settings)), tmp_path / str(next(runs)), seed=seed, **inputs)

    return run


def check(groups: list[Group], most: int) -> None:
    """Hold what must be true of all training groups of a problem."""
    by_mode = Counter(group.mode for group in groups)
    assert all(count <= most for count in by_mode.values())
    assert len({(group.mode, frozenset(group.summaries)) for group in groups}) == len(groups), "distinct as sets"
    for group in groups:
        assert len(set(group.summaries)) == len(group.members) == group.k, "no text stands there twice"
        assert any(group.correct), "a group without a right one"
        assert not all(group.correct), "a group without a wrong one"
        assert all(f"-{group.mode}-" in member for member in group.members), "modes are mixed"


async def test_training_groups_keep_their_promises(draw: Callable[..., Any]) -> None:
    rng = random.Random(3)
    for _ in range(12):
        solutions = []
        for mode in ("cot", "tir"):
            solutions += several(rng.randrange(12), rng.randrange(12), mode=mode)
        solutions += [s.with_(id=f"copy-{s.mode}-{n}") for n, s in enumerate(solutions) if rng.random() < 0.3]
        low = rng.randint(2, 4)
        high = rng.randint(low, 16)
        groups = (await draw(*solutions, sizes=(low, high), groups=8)).records
        check(groups, 8)
        assert all(low <= len(group.members) <= high for group in groups)
        rng.shuffle(solutions)
        again = (await draw(*solutions, sizes=(low, high), groups=8)).records
        assert sorted(again, key=lambda g: g.id) == sorted(groups, key=lambda g: g.id), "the order of files matters"


async def test_a_group_is_of_one_mode(draw: Callable[..., Any]) -> None:
    both = several(4, 4, mode="cot") + several(4, 4, mode="tir")
    assert Counter(g.mode for g in (await draw(*both)).records) == {"cot": 8, "tir": 8}
    assert {g.mode for g in (await draw(*both, modes=("tir",))).records} == {"tir"}
    assert len((await draw(*both, sizes=(16, 16), modes=("tir",), mixed=False)).records[0].members) == 8
    with pytest.raises(UserError, match=r"of several modes \(cot, tir\).*modes: \[tir\]"):
        await draw(*both, mixed=False)
    with pytest.raises(ValueError, match="of one mode"):
        GroupsConfig(mixed=False, modes=("cot", "tir"))  # type: ignore[arg-type]
    assert (await draw(*several(4, 4, mode="genselect"))).reasons == ["no solution with a summary"]


async def test_right_ones_stand_everywhere_and_are_at_most_half_of_what_is_drawn_from(draw: Callable[..., Any]) -> None:
    groups = (await draw(*several(30, 10), sizes=(8, 8), groups=400)).records
    at = Counter(place for group in groups for place, right in enumerate(group.correct) if right)
    share = sum(at.values()) / (8 * len(groups))
    assert 0.47 < share < 0.53, "ten right ones are drawn from, as there are ten wrong ones"
    assert all(abs(at[place] - 400 * share) < 45 for place in range(8))  # 4.5 standard deviations


@pytest.mark.parametrize(
    ("solutions", "reason"),
    [
        ([], "no solution with a summary"),
        (several(5, 0), "all solutions are correct: nothing to choose between"),
        (several(0, 5), "all solutions are incorrect: nothing to choose between"),
        (several(1, 2), "fewer than 4 different solutions"),
        ([solution(f"-cot-{n}", "the same", True) for n in range(32)],
         "all solutions are correct: nothing to choose between"),
        ([solution(f"-cot-{n}", "the same", n < 16) for n in range(32)], "no solution with a summary"),
        ([solution(f"-cot-{n}", f"{n}", None) for n in range(9)], "no solution with a summary"),
        ([solution("-cot-r", "way", True), *(solution(f"-cot-{n}", "one  \n way", False) for n in range(9))],
         "fewer than 4 different solutions"),
        (several(9, 1, mode="tir") + several(0, 1), "all solutions are incorrect: nothing to choose between"),
    ],
    ids=range(9),
)  # fmt: skip
async def test_what_gives_no_groups_is_counted(
    draw: Callable[..., Any], solutions: list[Generation], reason: str
) -> None:
    run: StageRun = await draw(*solutions)
    assert run.reasons == [reason]
    assert {group.mode for group in run.records} <= {"tir"}


async def test_a_text_that_is_right_and_wrong_is_no_candidate(draw: Callable[..., Any]) -> None:
    odd = [solution("-cot-a", "odd", True), solution("-cot-b", " odd ", False), solution("-cot-c", "open", None)]
    run = await draw(*several(3, 3), *odd)
    check(run.records, 8)
    assert not any({"odd", "open"} & set(group.summaries) for group in run.records)
    assert (run.context.metrics["ambiguous_texts"], run.context.metrics["undecided_solutions"]) == (1, 1)


async def test_subsets_of_n_are_drawn_again_and_again(draw: Callable[..., Any]) -> None:
    solutions = [solution(f"-tir-{n}", f"way {n % 20}", n % 3 == 0, mode="tir") for n in range(64)]
    bare = Problem.make("Nobody answered me.")
    mute = solution("-tir-mute", "", False, mode="tir", problem=bare).with_(predicted_answer=None)
    run = await draw(*solutions, mute, problems=[PROBLEM, bare], sizes=(16, 16), groups=64, mixed=False)
    groups = [group for group in run.records if group.problem_id == PROBLEM.id]
    assert len({group.id for group in groups}) == len({frozenset(group.members) for group in groups}) == 64
    assert all(len(set(group.members)) == group.k == 16 for group in groups), "equal texts are solutions, too"
    assert {len(group.members) for group in run.records} == {0, 16}
    other = await draw(*solutions, seed=2, sizes=(16, 16), groups=64, mixed=False)
    assert {g.members for g in other.records}.isdisjoint(g.members for g in groups)


async def test_a_problem_that_nobody_has_tried_is_refused_for_inference(draw: Callable[..., Any]) -> None:
    solutions = [solution(f"-tir-{n}", f"way {n}", n % 3 == 0, mode="tir") for n in range(8)]
    bare = Problem.make("Nobody solved me.")
    with pytest.raises(UserError, match=r"no solution was made of problem .* \(Nobody solved me.\)"):
        await draw(*solutions, problems=[PROBLEM, bare], sizes=(4, 4), groups=2, mixed=False)


async def test_long_and_foreign_texts_are_cut_at_paragraphs(draw: Callable[..., Any]) -> None:
    huge = [solution(f"-cot-{n}", f"{n}" + "é\n\n𝒳 " * 40_000 + f"end {n}", n < 4) for n in range(8)]
    run = await draw(*huge, *several(1, 1), sizes=(8, 8), max_summary_chars=1000, max_group_chars=4000)
    check(run.records, 8)
    for group in run.records:
        assert sum(map(len, group.summaries)) <= 4000
        assert all("end" in text or "way" in text for text in group.summaries)
        assert all(text[0] in "𝒳w" for text in group.summaries)


def test_cutting() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcdef", 3) == "def"
    assert cut("aaaa\n\nbbbb cc", 9) == "bbbb cc"
    assert cut("aaaaaaaaaaaa\n\nb", 9) == "aaaaaa\n\nb", "a break that leaves little is none"
    assert fitted(["a" * 10, "b" * 2, "c" * 10], 12) == ["a" * 5, "bb", "c" * 5]
    assert fitted(["a", "b"], 2) == ["a", "b"]
