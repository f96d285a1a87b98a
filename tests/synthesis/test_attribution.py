"""Whose answer one is, in the replies to a post that poses several problems."""

from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.data.records.published import UNATTRIBUTED
from nemo_openmath.synthesis.problems.answers import ANOTHERS, NOBODYS, OF_ANOTHER, ExtractAnswers, ExtractAnswersConfig
from nemo_openmath.synthesis.problems.attribution import PosedProblems, Whose
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
    "a whole list as one problem": (" ".join((SUM, SEQUENCE, DIGIT)), "8", ["3. 8"], Whose.UNKNOWN),
    # phrasings
    "answer to a number": (SEQUENCE, "43", ["i think the answer to 2 is 43; answer is 43"], Whose.OWN),
    "answer to a number, another's": (DIGIT, "43", ["the answer to 2 is 43; answer is 43"], Whose.OTHER),
    "ordinal": (SUM, "21", ["for the first one the answer is 21"], Whose.OWN),
    "ordinal, another's": (CONE, "21", ["for the first one the answer is 21"], Whose.OTHER),
    "ordinal problem": (SEQUENCE, "43", ["Second problem: 43"], Whose.OWN),
    "ordinal number": (SEQUENCE, "43", ["2nd: 43"], Whose.OWN),
    "last": (CONE, "$65\\pi$", ["answer to the last one is $65\\pi$"], Whose.OWN),
    "number sign and colon": (SEQUENCE, "43", ["easy... #2: 43"], Whose.OWN),
    "number in words": (DIGIT, "8", ["8 for sure, and for number two I get 43.\nProblem three is 8"], Whose.OWN),
    "parentheses": (SEQUENCE, "43", ["clearly (2) gives 43"], Whose.OWN),
    "a letter that is none of the list": (SUM, "7", ["1. 21, part (b) 7"], Whose.UNKNOWN),
    "the same again": (SEQUENCE, "43", ["Problem 2: add them up, so the answer to problem 2 is 43"], Whose.OWN),
    # what looks like it
    "several at once": (SUM, "43", ["problems 1 and 2: 21 and 43"], Whose.UNKNOWN),
    "several in parentheses": (SUM, "43", ["(1), (2): 21, 43"], Whose.UNKNOWN),
    "range": (SUM, "43", ["#1-3: 21, 43, 8"], Whose.UNKNOWN),
    "equations": (SEQUENCE, "21", ["from (1) and (2) we have 21"], Whose.UNKNOWN),
    "one equation": (SEQUENCE, "21", ["using (2), x = 21"], Whose.UNKNOWN),
    "a number": (SEQUENCE, "5", ["since the number 2 divides it, 5"], Whose.UNKNOWN),
    "there are no": (SEQUENCE, "5", ["there are no 2 such, so 5"], Whose.UNKNOWN),
    "no is no number": (SEQUENCE, "5", ["No. 2 is wrong, I got 5"], Whose.UNKNOWN),
    "for three colours": (DIGIT, "5", ["the answer for 3 colours is 5"], Whose.UNKNOWN),
    "the first root": (SUM, "3", ["the first one is 3, the second one is 12"], Whose.UNKNOWN),
    "the first is how": (SUM, "5", ["the first question is how to begin: 5"], Whose.UNKNOWN),
    "steps by ordinals": (SUM, "5", ["First: we factor\nSecond: so we get 5"], Whose.UNKNOWN),
    "one uses another": (SUM, "21", ["1. using problem 3's result 8, we get 21"], Whose.UNKNOWN),
    "then another in parentheses": (DIGIT, "43", ["3. it is 8 (by the way 2. is 43)"], Whose.UNKNOWN),
    "then another in words": (DIGIT, "43", ["3. it is 8, and the second one is 43"], Whose.UNKNOWN),
    "in passing": (SUM, "43", ["1. we need 43 of them, so 21", "2. 43"], Whose.UNKNOWN),
    "in another's statement": (SUM, "12", [f"1. the largest is 12\n\n[quote]4. {CONE}[/quote] 65\\pi"], Whose.OWN),
    "two have the same": (SUM, "43", ["1. 43\n2. 43"], Whose.OWN),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_whose_an_answer_is(name: str) -> None:
    problem, answer, replies, whose = CASES[name]
    posed = PosedProblems.of(PAPER)
    assert posed is not None
    assert posed.whose(answer, problem, replies) is whose


NESTED = (
    "1. Let n = 12.\na) How many divisors has n?\nb) What is their sum?\n"
    "2. Let n = 10.\na) What is n^3?\nb) What is n^4?"
)


@pytest.mark.parametrize("reply", ["b) 28", "1. a) 6 b) 28", "for part b, 28", "1. 28"])
def test_parts_of_parts_are_nobodys(reply: str) -> None:
    """A label that stands twice in a post, or a problem with parts of its own, says nothing."""
    problems = (
        "How many divisors has n = 12?",
        "Let n = 12. What is the sum of its divisors?",
        "Let n = 10. What is n^4?",
    )
    posed = PosedProblems.of(NESTED, siblings=problems)
    assert posed is not None
    assert {posed.whose("28", problem, [reply]) for problem in problems} == {Whose.UNKNOWN}


def test_two_problems_of_one_sentence_are_not_told_apart() -> None:
    post = "Let p be the product of the first ten primes.\n\nFind the last digit of p, and how many divisors has p?"
    problems = ("Let p be the product of the first ten primes. Find the last digit of p.",
                "Let p be the product of the first ten primes. How many divisors has p?")  # fmt: skip
    quote = "[quote]Find the last digit of p, and how many divisors has p?[/quote]\n1024"
    posed = PosedProblems.of(post, siblings=problems)
    assert posed is not None
    assert {posed.whose("1024", problem, [quote]) for problem in problems} == {Whose.UNKNOWN}
    assert PosedProblems.of(post, number=3) is not None


def test_paragraphs_are_counted_where_that_is_sure() -> None:
    problems = (SQUARE, PRIMES)
    posed = PosedProblems.of(SEVERAL, siblings=problems)
    assert posed is not None
    for reply in ("#2: 15", "for the second one i get 15", "problem 2 is 15", "answer to the last one is 15"):
        assert [posed.whose("15", problem, [reply]) for problem in problems] == [Whose.OTHER, Whose.OWN], reply
    more = PosedProblems.of(SEVERAL + "\n\nWhat do your teachers think of such exercises?", siblings=problems)
    assert more is not None
    assert more.whose("15", PRIMES, ["#2: 15"]) is Whose.UNKNOWN, "which one is the second?"


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
    posed = PosedProblems.of(SEVERAL, number=2)
    assert posed is not None
    quote = "[quote]How many primes are there below 50? Count them all.[/quote]\n15"
    assert posed.whose("15", PRIMES, [quote]) is Whose.OWN
    assert posed.whose("15", SQUARE, [quote]) is Whose.OTHER
    assert posed.whose("15", SQUARE, ["15"]) is Whose.UNKNOWN


async def test_answers_of_other_problems_are_asked_again_and_taken_away(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    thread = Thread.make(PAPER, "Post 1:\nisnt it 21?\n\nPost 2:\n3. The answer is 8.")
    other = Thread.make(SEVERAL, "Post 1:\n15")
    single = Thread.make("What is 2^3? " + " ".join(SINGLE[1].split("\n")[1:]), "Post 1:\n1. 2*2*2\n2. so 8")
    eight = "What is $2^3$?"
    parents = {CONE: thread, SUM: thread, DIGIT: thread, PRIMES: other, SQUARE: other, eight: single}
    problems = [Problem.make(text, parents=(of.id,)) for text, of in parents.items()]
    says = {CONE: "8", SUM: "21", DIGIT: "8", PRIMES: "15", SQUARE: "15", eight: "8"}
    for choice in ("drop", "keep"):
        run = await run_stage(
            ExtractAnswers(ExtractAnswersConfig(attempts=2, unattributed=choice)), tmp_path / choice,  # type: ignore[arg-type]
            lambda question: next(
                f"Answer: {a}" for text, a in says.items() if f"{text}\n----- problem ends" in question
            ),
            tokenizer=tokenizer, problems=problems, threads=[thread, other, single],
        )  # fmt: skip
        assert run.reasons == []
        guesses = {p.problem: p.extra[UNATTRIBUTED] for p in run.records if UNATTRIBUTED in p.extra}
        assert guesses == {SUM: "21", PRIMES: "15", SQUARE: "15"}
        (cone,) = (p for p in run.records if ANOTHERS in p.extra)
        assert (cone.problem, cone.extra, cone.problem_type) == (CONE, {ANOTHERS: "8"}, "no_answer_extracted")
        assert sum(f"{CONE}\n----- problem ends" in asked.question for asked in run.asked) == 2, "asked again first"
        assert (run.context.metrics[UNATTRIBUTED], run.context.metrics[ANOTHERS]) == (3, 1)
        expected = says | dict.fromkeys([CONE, *((SUM, PRIMES, SQUARE) if choice == "drop" else ())])
        assert {p.problem: p.expected_answer for p in run.records} == expected
        kinds = {p.problem_type for p in run.records if UNATTRIBUTED in p.extra}
        assert kinds == {"no_answer_extracted" if choice == "drop" else "has_answer_extracted"}
        lines = (run.context.output / "samples-00000-of-00001.jsonl").read_text().splitlines()
        assert (sum(NOBODYS in line for line in lines), sum(OF_ANOTHER in line for line in lines)) == (3, 1)


async def test_what_another_thread_says_of_the_problem_itself_counts(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """A right answer beats another problem's, and another problem's beats a reply that cannot be read."""
    threads = [
        Thread.make(PAPER + end, f"Post 1:\n{said}") for end, said in (("", "3. 8"), ("!", "4. 65"), ("?", "4."))
    ]
    replies = {"3. 8": "Answer: 8", "4. 65": "Answer: 65", "4.": "Hm."}
    made = {}
    for name, pair in (("right", threads[:2]), ("unread", threads[::2]), ("neither", threads[2:])):
        problem = Problem.make(CONE, parents=tuple(thread.id for thread in pair))
        run = await run_stage(
            ExtractAnswers(ExtractAnswersConfig(attempts=1)), tmp_path / name,
            lambda question: next(reply for said, reply in replies.items() if f"\n{said}" in question),
            tokenizer=tokenizer, problems=[problem], threads=pair,
        )  # fmt: skip
        made[name] = [(p.expected_answer, p.extra) for p in run.records], run.reasons
    assert made == {
        "right": ([("65", {})], []),
        "unread": ([(None, {ANOTHERS: "8"})], []),
        "neither": ([], ["the reply is no answer"]),
    }


@pytest.mark.parametrize("choice", ["drop", "keep"])
async def test_a_thread_that_says_whose_it_is_counts(tmp_path: Path, tokenizer: ChatTokenizer, choice: Any) -> None:
    """A guess of one thread takes nothing from the answer that another one gives by name."""
    threads = [Thread.make(PAPER, "Post 1:\nisnt it 21?"), Thread.make(PAPER + "!", "Post 1:\n1. 22")]
    problem = Problem.make(SUM, parents=tuple(thread.id for thread in threads))
    run = await run_stage(
        ExtractAnswers(ExtractAnswersConfig(unattributed=choice)), tmp_path,
        lambda question: "Answer: 22" if "1. 22" in question else "Answer: 21",
        tokenizer=tokenizer, problems=[problem], threads=threads,
    )  # fmt: skip
    (record,) = run.records
    assert record.expected_answer == ("22" if choice == "drop" else None), "kept ones have a vote"
    assert UNATTRIBUTED not in record.extra


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
