"""Replies that repeat a worked example of the prompt: what is a copy, and what is the unit's own."""

from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import ExtractCase
from nemo_openmath.synthesis.problems.convert import ConvertProofs
from nemo_openmath.synthesis.problems.examples import repeats_example
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import DiscussedConfig, OnePromptConfig
from tests.support.services import run_stage

CONVERT = ConvertProofs(DiscussedConfig()).asked_text()
EXTRACT = Extract(OnePromptConfig()).asked_text()
LEAST = (
    r"Let $x, y$ be positive reals with $x + y = 1$. Find the least value of $(x + \frac{1}{x})^2 + (y + \frac1y)^2$."
)
PROOF = LEAST.replace("Find the least value of", "Prove that").replace("$.", r" \ge \frac{25}{2}$.")
LARGEST = "What is the largest integer that divides $m^2-1$ for every odd integer $m$?"
OTHER = r"Let $a, b$ be positive reals with $a + c = 2b$. Show that $(a+b+c)^3 \ge 27abc$."


@pytest.mark.parametrize(
    ("own", "problem", "answer", "expected"),
    [
        (OTHER, LEAST.replace("(", r"\left(").replace(")", r"\right)"), "25/2", True),  # as it stands there
        (OTHER, LEAST.replace("Find the least value of", "Determine the minimum value of"), "25/2", True),
        (OTHER, r"Let $a + c = 2b$. Find the least value of $(a + 1/a)^2 + (b + 1/b)^2$.", r"\frac{25}{2}", True),
        (OTHER, r"Let $a + c = 2b$. Find the least value of $(a+b+c)^3 / (abc)$.", "27", False),
        (PROOF, LEAST, r"\frac{25}{2}", False),  # the unit is the example's problem
        (PROOF.replace("x", "s").replace("y", "t"), LEAST.replace("x", "s").replace("y", "t"), r"\frac{25}{2}", False),
        ("Prove that $8 | m^2 - 1$ for odd $m$.", LARGEST, "8", False),  # it is, in other words
        ("Prove that $24 | m^2 - 1$ for every prime $m > 3$.", LARGEST, "8", True),
        ("Prove that $24 | m^2 - 1$ for every prime $m > 3$.", LARGEST.replace("odd integer", "prime"), "24", False),
        ("Prove that $x^4 + y^4 \\ge 2$.", "Find the least value of $x^4 + y^4$.", "8", False),  # one sign says nothing
    ],
)  # fmt: skip
def test_a_conversion(own: str, problem: str, answer: str, expected: bool) -> None:
    assert repeats_example(CONVERT, own, problem, answer, "Post 1:\nBy AM-GM it is 27.") is expected


CLUB = "Let $f(x) = x^2 + px + q$ where $p, q$ are integers. If $f(1) = 4$ and $f(2) = 9$, find $f(10)$."


def test_an_extracted_problem() -> None:
    assert repeats_example(EXTRACT, "Let ABC be a triangle. Find its area.", CLUB)
    assert repeats_example(EXTRACT, CLUB.replace("9", "16"), CLUB), "the numbers are the example's"
    assert not repeats_example(EXTRACT, CLUB.replace("9", "16"), CLUB.replace("9", "16"))
    assert not repeats_example(EXTRACT, f"from the club sheet, thx!! {CLUB.replace('$', '')}", CLUB)
    for case in load_bank("problems.extract"):
        assert isinstance(case, ExtractCase)
        assert not any(repeats_example(EXTRACT, case.forum_post, text) for text in case.problems), case.id


async def test_the_examples_of_a_prompt_of_the_users_own_count(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    prompt = tmp_path / "mine.txt"
    prompt.write_text("Q: Show that 7 lines give 29 regions.\nProblem: How many regions do 7 lines give?\n"
                      "Answer: 29\n\nNow this one: {problem}\n{forum_discussions}\n")  # fmt: skip
    proofs = [
        Problem.make(text, category="proof")
        for text in ("Show that 7 lines give 29 regions.", "Show that 7 circles have 44 arcs.")
    ]
    reply = "Problem: How many regions do 7 lines give?\nAnswer: 29"
    run = await run_stage(
        ConvertProofs(DiscussedConfig(prompt=prompt, attempts=2)), tmp_path, lambda _: reply, tokenizer=tokenizer,
        problems=proofs, threads=[],
    )  # fmt: skip
    assert [record.parents for record in run.records] == [(proofs[0].id,)]
    assert run.reasons == ["the reply repeats an example of the prompt"]
    assert len(run.asked) == 3, "the copy is asked for again"
    run = await run_stage(
        Extract(OnePromptConfig(attempts=1)), tmp_path / "extract", lambda _: f"Problem 1: {CLUB}",
        tokenizer=tokenizer, threads=[Thread.make("Let ABC be a triangle. Find its area.", "")],
    )  # fmt: skip
    assert run.reasons == ["the reply repeats an example of the prompt"]
