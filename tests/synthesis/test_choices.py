"""What may list choices: no multiple-choice problem is overlooked, and plain ones are told apart."""

from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import Problem
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import ClassifyCase
from nemo_openmath.synthesis.problems.choices import may_list_choices
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from tests.support.services import run_stage

LISTS = r"""
What is $2^{10}$? 1000 1024 2048 512
A shirt costs 25 dollars and is sold at 20 percent off. The sale price is@A) 5@B) 20@C) 22.50
The units digit of $3^{2019}$ is $\textbf{(A)}\ 1\qquad\textbf{(B)}\ 3$
What is the sum of the angles of a pentagon? A 360 B 540 C 720 D 900
Calculate 15% of 240. a.36 b.24 c.30 d.40
If $\sqrt{x}=9$ then x is <br> A. 3 <br> B. 18 <br> C. 81
The perimeter of a square is 20. Its area is: 25, 20, 16, 400.
The mean of five numbers is 12. Their sum is 12 / 17 / 60 / 75
A ball is drawn from 3 red and 2 blue. P(red) is 3/5 2/5 3/2
The last digit of $7^4$ is@1@3@7@9
The region $|x|+|y|\le1$ has the shape of a@circle@square@triangle
The line y=2x+3 is parallel to@- y=2x-1@- y=-2x+3@- x=2y+3
The function sin is even, odd, neither.
The equation $x^2=-1$ has: no real roots, one real root, two real roots
The product of two odd numbers is (odd/even).
The sum of two odd numbers is always ___. odd, even
Is the remainder 1, 2 or 3?
The area is \begin{enumerate} \item $2\pi$ \item $4\pi$ \end{enumerate}
Determine $\log_2 8$ ① 2 ② 3 ③ 4
Jim has 12 marbles and gives a third away. He keeps $\boxed{A}$ 4 $\boxed{B}$ 8 $\boxed{C}$ 9
Le double de 7 est : 9 ; 14 ; 49
Сколько будет 2+2? а) 3 б) 4 в) 5
"""
PLAIN = r"""
12! = 47A001600 for some digit A.  Find A.
Show that, for positive reals $a,b,c$ we have \[\frac{(2a+b+c)^2}{2a^2+(b+c)^2} \le 8.\]
If we color the points in the plane with a finite number of colors, then there exists a triangle of one colour.
Find real numbers \( m \) and \( b \) such that \( S = \sum_{j=1}^{50} j + mj + b \) is minimal.
How many edges has a cube?
Find all functions $f$ with $f(x + y) = f(x) + f(y)$ for all real $x, y$.
"""


def lines(text: str) -> list[str]:
    return [line.replace("@", "\n") for line in text.strip().splitlines()]


def test_what_lists_choices_is_seen_and_plain_problems_are_told_apart() -> None:
    assert [text for text in lines(LISTS) if not may_list_choices(text)] == []
    assert [text for text in lines(PLAIN) if may_list_choices(text)] == []
    cases = [case for case in load_bank("problems.classify") if isinstance(case, ClassifyCase)]
    assert all(may_list_choices(case.problem) for case in cases if case.category == "multiple-choice")
    others = [case for case in cases if case.category != "multiple-choice"]
    assert sum(may_list_choices(case.problem) for case in others) < len(others) / 2, "the rule decides most of them"


@pytest.mark.parametrize(("replies", "reason"), [("yes no", None), ("yes yes", "no choices are listed")])
async def test_a_choice_among_nothing_is_asked_about_again(
    replies: str, reason: str | None, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    verdicts = iter(replies.split())
    problem = Problem.make("How many edges has a cube?")
    run = await run_stage(
        Classify(ClassifyConfig(questions=("multiple-choice",), attempts=2)), tmp_path,
        lambda _: f"Verdict: {next(verdicts)}", tokenizer=tokenizer, problems=[problem],
    )  # fmt: skip
    assert [record.category for record in run.records] == ([] if reason else ["answer"])
    assert run.reasons == ([f"the verdict is multiple choice, and {reason}"] if reason else [])
