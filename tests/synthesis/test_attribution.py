"""Whose answer one is, in the replies to a post that poses several problems."""

from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.synthesis.problems.answers import OF_ANOTHER, UNATTRIBUTED, ExtractAnswers
from nemo_openmath.synthesis.problems.attribution import PosedProblems, Whose
from nemo_openmath.synthesis.problems.prompted import DiscussedConfig
from tests.support.services import run_stage

PAPER = """some from our last meet, tell me if theyre old

1. The product of three integers in geometric sequence is 216 and one of them is 3. Find their sum.

2. If g(n+2) = g(n+1) + 2g(n) and g(0) = g(1) = 1, compute g(6).

3. The number 5B23 is divisible by 9 for some digit B. Find B.

4. A cone of height 12 has a base of radius 5. What is the area of its lateral surface?
"""
SUM = "The product of three integers in geometric sequence is $216$ and one of them is $3$. Find their sum."
SEQUENCE = "If $g(n+2) = g(n+1) + 2g(n)$ and $g(0) = g(1) = 1$, compute $g(6)$."
DIGIT = "The number $5B23$ is divisible by $9$ for some digit $B$. Find $B$."
CONE = "A cone of height $12$ has a base of radius $5$. What is the area of its lateral surface?"
SEVERAL = (
    "Let ABCD be a square of side 6. Find the length of AC.\n\nHow many primes are there below 50? Count them all."
)
SQUARE, PRIMES = "Let $ABCD$ be a square of side $6$. Find the length of $AC$.", "How many primes are there below 50?"

CASES = {
    # what is another problem's alone
    "number": (CONE, "8", ["it cant be, can it?", "3. Add the digits: 10 + B. The answer is 8."], Whose.OTHER),
    "number sign": (SUM, "8", ["#3: B=8 since 10+B must be 18"], Whose.OTHER),
    "word": (SUM, "8", ["for problem 3, use the sum of digits, so 8"], Whose.OTHER),
    "list in a line": (CONE, "43", ["1) 21 2) 43 3) 8 4) $65\\pi$"], Whose.OTHER),
    "list in lines": (DIGIT, "43", ["(1) 21\n(2) 43\n(3) 8"], Whose.OTHER),
    "solutions": (
        SUM, "$65\\pi$",
        ["1. geometric, so the middle is 6 and the integers are 3, 6 and 12.\n\n"
         "4. the slant height of the cone is 13.\n\nso 65\\pi is the lateral area\n\n5. ..."],
        Whose.UNKNOWN,  # the last paragraphs of a list may be about anything
    ),
    "quoted": (SUM, "8", ["[quote]3. The number 5B23 is divisible by 9 for some digit B. [/quote] 8"], Whose.OTHER),
    "quoted without its number": (
        SUM, "8", ["[quote]The number 5B23 is divisible by 9 for some digit B. Find B.[/quote]\nthats 8"], Whose.OTHER
    ),
    "stated again": (SUM, "8", ["The number 5B23 is divisible by 9 for a digit B. find B\n10+B=18, B=8"], Whose.OTHER),
    # what is its own
    "own number": (DIGIT, "8", ["3. The answer is 8."], Whose.OWN),
    "own and another's": (SUM, "21", ["1. 21\n2. 43", "4) 21?"], Whose.OWN),
    "own quote": (SEQUENCE, "43", ["[quote]2. If g(n+2) = g(n+1) + 2g(n) and g(0) = g(1) = 1[/quote]\n43"], Whose.OWN),
    # what nobody can tell
    "no number": (SUM, "21", ["3,6,12 so 21"], Whose.UNKNOWN),
    "in front of the numbers": (SUM, "21", ["21 and\n2. 43"], Whose.UNKNOWN),
    "another paragraph": (SUM, "21", ["3. B is 8\n\nand I get 21 with 3, 6, 12"], Whose.UNKNOWN),
    "another one in words": (CONE, "43", ["3. it is 8, and the second one is 43"], Whose.UNKNOWN),
    "its number behind": (SEQUENCE, "43", ["3. it is 8 (by the way 2. is 43)"], Whose.UNKNOWN),
    "quote of all": (SUM, "21", [f"[quote]{PAPER}[/quote]\n21"], Whose.UNKNOWN),
    "steps of one solution": (
        CONE, "$65\\pi$",
        ["1. find the slant height, which is 13, since 144+25=169\n2. the surface is pi times radius times that\n"
         "3. so we get $65\\pi$"],
        Whose.UNKNOWN,
    ),
    "numbers that fall": (SUM, "21", ["3) 8\n1) it is\n2) then 21"], Whose.UNKNOWN),
    "no problem of the post": ("What is $1 + 1$?", "8", ["3. 8"], Whose.UNKNOWN),
    "a whole list as one problem": (" ".join((SUM, SEQUENCE, DIGIT)), "8", ["3. 8"], Whose.OWN),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_whose_an_answer_is(name: str) -> None:
    problem, answer, replies, whose = CASES[name]
    posed = PosedProblems.of(PAPER)
    assert posed is not None
    assert posed.whose(answer, problem, replies) is whose


LETTERS = "a) for which k has x^2+kx+12 the root 3?\nb) for how many integers k are its roots integers?"


LISTS = (
    LETTERS,
    LETTERS.replace("a)", "(i)").replace("b)", "(ii)"),
    LETTERS.replace("a)", "[b]Problem 4:[/b]").replace("b)", "Problem 5 -"),
    LETTERS.replace("\n", " "),
)


@pytest.mark.parametrize("post", LISTS)
def test_lists_of_any_kind(post: str) -> None:
    assert PosedProblems.of(post) is not None


SINGLE = (
    DIGIT,
    "Find all x with x^2 = 9.\nI tried:\n1. square roots\n2. factoring\nbut my teacher says its wrong",
    "Let f(x) = x + 1 (1) and g(x) = 2x (2). Find f(g(3)).",
    "In 2003. we had this: what is 2 + 2?\nSource: 5. grade",
    "Solve\n(1) x + y = 3\n(2) x - y = 1",
)


@pytest.mark.parametrize("post", SINGLE)
def test_a_post_with_one_problem_lists_none(post: str) -> None:
    assert PosedProblems.of(post) is None


def test_paragraphs_where_several_were_extracted() -> None:
    assert PosedProblems.of(SEVERAL) is None
    posed = PosedProblems.of(SEVERAL, several=True)
    assert posed is not None
    quote = "[quote]How many primes are there below 50? Count them all.[/quote]\n15"
    assert posed.whose("15", PRIMES, [quote]) is Whose.OWN
    assert posed.whose("15", SQUARE, [quote]) is Whose.OTHER
    assert posed.whose("15", SQUARE, ["15"]) is Whose.UNKNOWN


async def test_answers_of_other_problems_are_asked_again_and_dropped(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    thread = Thread.make(PAPER, "Post 1:\nisnt it 21?\n\nPost 2:\n3. The answer is 8.")
    other = Thread.make(SEVERAL, "Post 1:\n15")
    single = Thread.make("What is 2^3? " + " ".join(SINGLE[1].split("\n")[1:]), "Post 1:\n1. 2*2*2\n2. so 8")
    eight = "What is $2^3$?"
    parents = {CONE: thread, SUM: thread, DIGIT: thread, PRIMES: other, SQUARE: other, eight: single}
    problems = [Problem.make(text, parents=(of.id,)) for text, of in parents.items()]
    says = {CONE: "8", SUM: "21", DIGIT: "8", PRIMES: "15", SQUARE: "15", eight: "8"}
    run = await run_stage(
        ExtractAnswers(DiscussedConfig(attempts=2)), tmp_path,
        lambda question: next(f"Answer: {a}" for text, a in says.items() if f"{text}\n----- problem ends" in question),
        tokenizer=tokenizer, problems=problems, threads=[thread, other, single],
    )  # fmt: skip
    assert run.reasons == [OF_ANOTHER.reason]
    marked = {p.problem for p in run.records if UNATTRIBUTED in p.extra}
    assert marked == {SUM, PRIMES, SQUARE}
    assert run.context.metrics[UNATTRIBUTED] == 3
    assert {p.problem for p in run.records} == parents.keys() - {CONE}


@pytest.mark.parametrize(
    ("replies", "answer"),
    [
        (["for 1) the answer is 13", "3) gives 820"], "13"),
        (["1) answer is 13\n2) 24\n3) 820"], "13"),
        (["[quote]What is the largest prime factor of 1001?[/quote] answer is 13"], "13"),
    ],
)
def test_problems_of_few_words_have_their_answers(replies: list[str], answer: str) -> None:
    texts = ["What is the largest prime factor of 1001?", "How many divisors has 360?", "Compute the sum 1+2+...+40."]
    posed = PosedProblems.of("\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1)))
    assert posed is not None
    assert [posed.whose(answer, text, replies) for text in texts] == [Whose.OWN, Whose.OTHER, Whose.OTHER]
