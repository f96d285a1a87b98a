"""Which problems are one, and which of them is kept."""

from pathlib import Path

import pytest

from nemo_openmath.core.records import Drop, Problem, read_drops, read_records
from nemo_openmath.synthesis.problems import near_duplicates
from nemo_openmath.synthesis.problems.near_duplicates import NearDuplicates, NearDuplicatesConfig
from nemo_openmath.synthesis.problems.statement import Statement
from tests.support.services import StageRun, run_stage, stage_context

MATRIX = r"Let $A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$. Find $\det A$."

SAME = [
    # form alone
    ("Find $x$ if $x^2+3=7$.", "find   x  if x^{2} + 3 = 7"),
    (r"Solve \(\dfrac{1}{2}x \leq 3\)!", r"Solve \[ \frac12 x ≤ 3 \]!"),
    (r"Compute $\left(2\cdot\sin\alpha\right)^2$", "Compute (2·sin α)²"),
    ("HOW MANY PRIMES ARE BELOW 100?", "How many primes are below 100?"),
    ("Find .5 of the non-negative number n, i.e. n/2", "Find 0.5 of the nonnegative number $n$, i.e. $n/2$"),
    (r"the angle $\angle ABC = 60^{\circ}$, what is $\overline{AB}$", r"The angle ∠ABC = 60°: what is \overline{AB}?"),
    (r"Let $S = \{1, 2\}$ in the $x$-axis and $n \times n$-matrix", "S = {1, 2} in the x axis and n×n matrix"),
    # words that ask, connect, stand for others
    ("Find the value of 3 + 4.", "Hello, please help: what is 3+4? Thanks"),
    ("Let n be a prime such that n > 2.", "Suppose that n is a prime, n > 2"),
    ("Lucy has 21 fish. She buys 6. How many has she?", "Lucy has 21 fish. Lucy buys 6. How many does Lucy have?"),
    # spelling, and words that are said twice
    ("How many integers n are less than 50?", "How many intergers n are less than 50?"),
    ("A garden has 52 rows of plants.", "A garden has 52 rows of palnts."),
    ("Joan saw 4 football games, then 9 games.", "Joan saw 4 football games, then 9 football games."),
]  # fmt: skip
APART = [
    # constants, signs, letters, and how they stand together
    ("Solve x^2+3 = 0.", "Solve x^2+5 = 0."),
    ("Solve x^2+3 = 0.", "Solve x^2-3 = 0."),
    ("Solve x^2+3 = 0.", "Solve y^2+3 = 0."),
    ("Solve x^2+3 = 0.", "Solve x²3 = 0."),
    ("Find P(n+1).", "Find P(n)+1."),
    ("Find x^{n+1}.", "Find x^n+1."),
    (r"Find \frac{1}{23}.", r"Find \frac{12}{3}."),
    ("Find 3.5 of it.", "Find 35 of it."),
    ("Find .5 of it.", "Find 5 of it."),
    ("Find x2.", "Find x²."),
    ("Find f(1,2).", "Find f(12)."),
    ("Solve x, y = 0.", "Solve x y = 0."),
    ("The ratio is 3:4.", "The ratio is 34."),
    ("What is AB+CD?", "What is AC+BD?"),
    ("Find 5!.", "Find 5."),
    ("Find f'(x).", "Find f(x)."),
    (r"Find \{x\}.", "Find x."),
    (r"Find $x - \sin x$.", r"Find $x \sin x$."),
    (r"Find \sin x.", r"Find \cos x."),
    (MATRIX, MATRIX.replace(r"2 \\ 3 &", r"2 & 3 \\")),
    ("Tom has two apples.", "Tom has three apples."),
    ("Find all sides ab.", "Find all sides abc."),
    # words that change what is asked
    ("Find the maximum of x+1 for x in S.", "Find the minimum of x+1 for x in S."),
    ("How many even integers are below 90?", "How many odd integers are below 90?"),
    ("Is 91 prime?", "Is 91 not prime?"),
    ("Which of the 5 statements must be true?", "Which of the 5 statements can be true?"),
    ("It is decreased by 20.", "It is decreased to 20."),
    ("How many large trucks, small trucks?", "How many small trucks, large trucks?"),
    ("3 red and 5 blue balls", "3 blue and 5 red balls"),
    ("Find the rational numbers n.", "Find the irrational numbers n."),
    ("Is the function f periodic?", "Is the function f aperiodic?"),
    ("Find the sum of the numbers cubes.", "Find the sum of the numbers cubed."),
    ("求函数的最大值。", "求函数的最小值。"),
    ("Find n, n prime.", "Find n, n large prime."),
    ("?", "..?"),
]  # fmt: skip


def same(first: str, second: str) -> bool:
    longer, shorter = sorted((Statement.of(first), Statement.of(second)), key=lambda s: -len(s.tokens))
    if longer.states(shorter):
        assert longer.key == shorter.key, "only those of one key are compared"
        return True
    return False


@pytest.mark.parametrize(("first", "second"), SAME)
def test_form_and_words_that_only_ask_make_no_other_problem(first: str, second: str) -> None:
    assert same(first, second)
    assert same(second, first)


@pytest.mark.parametrize(("first", "second"), APART)
def test_in_doubt_there_are_two_problems(first: str, second: str) -> None:
    assert not same(first, second)
    assert same(first, first) or not Statement.of(first).tokens


async def run(folder: Path, problems: list[Problem]) -> StageRun:
    return await run_stage(NearDuplicates(NearDuplicatesConfig()), folder, problems=problems)


def contents(of: StageRun) -> tuple[list[Problem], list[tuple[str, Drop]]]:
    return sorted(of.records, key=lambda p: p.id), sorted(of.drops, key=lambda d: d[0])


LONG, SHORT = "Lucy has 21 fish and Lucy buys 6 more.", "Lucy has 21 fish and she buys 6 more."
FORM, OTHER = "lucy has $21$ fish, and Lucy buys 6 more", "Lucy has 21 fish and Lucy buys 7 more."


async def test_the_fullest_is_kept_and_the_others_name_it(tmp_path: Path) -> None:
    problems = [
        Problem.make(SHORT, parents=("t1",), expected_answer="27"),
        Problem.make(OTHER, parents=("t2",), expected_answer="28"),
        Problem.make(LONG, parents=("t3",)),
        Problem.make(FORM, parents=("t4",), expected_answer="27.0", category="answer"),
        Problem.make("?", parents=("t5",)),
    ]
    results = [contents(await run(tmp_path / "first", problems))]
    results.append(contents(await run(tmp_path / "second", problems[::-1])))
    assert results[0] == results[1], "the order of the problems changes nothing"
    records, drops = results[0]
    text, form = sorted((LONG, FORM), key=lambda text: Problem.make(text).id)
    name = Problem.make(text).id
    (keeper,) = (problem for problem in records if problem.id == name)
    assert (keeper.problem, set(keeper.parents), keeper.expected_answer) == (text, {"t1", "t3", "t4"}, "27")
    assert keeper.category == "answer"
    assert {problem.problem for problem in records} == {text, OTHER, "?"}
    assert {unit: (drop.reason, drop.detail) for unit, drop in drops} == {
        Problem.make(form).id: ("the same problem in another form", f"{name}: {form}"),
        Problem.make(SHORT).id: ("nearly the same problem", f"{name}: {SHORT}"),
    }


async def test_portions_and_jobs_of_an_array_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [
        Problem.make(f"What is {n} {sign} 7{end}")
        for n in range(15)
        for sign in "+-"
        for end in ("?", ", please?", "!")
    ]
    whole = await run(tmp_path / "whole", problems)
    assert (len(whole.records), len(whole.drops)) == (60, 30)
    monkeypatch.setattr(near_duplicates, "PORTION", 20 * near_duplicates._RECORD)
    assert contents(await run(tmp_path / "portions", problems)) == contents(whole)
    stored, output = tmp_path / "whole" / "problems", tmp_path / "array"
    for shard in range(3):
        context = stage_context({"problems": [stored]}, output, shard=shard, shards=3)
        await NearDuplicates(NearDuplicatesConfig()).run(context)
    array = StageRun(list(read_records(output, Problem)), list(read_drops(output)), [], context)
    assert contents(array) == contents(whole)
