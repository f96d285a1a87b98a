"""Laws of the comparison: reflexive, symmetric, total, and bounded on hostile input."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.grading import Grade, GradingPool, Verdict, compare
from tests.grading.killers import KILLERS, TRUE_EQUALS

PIECES = [
    *"0123456789abcxyznei+-*/^_=<>!%'(){}[]|,;:. $&", "\\frac", "\\sqrt", "\\pi", "\\pm", "\\text{", "\\left(",
    "\\right)", "\\{",
    "\\}", "\\cdot ", "\\times ", "\\binom", "\\log", "\\sin ", "\\infty", "\\cup", "\\in ", "\\le ", "^\\circ",
    "\\begin{pmatrix}",
    "\\end{pmatrix}", "\\\\", "\\pmod", "{1}", "{2}", "12", "1/2", "1,234", "0.5", " cm", "\\$", "yes", "(A)", "or",
    "and", "√", "½",
    "\\boxed{", "\\overline{", "10^{50}", "!", "\\lfloor ", "\\rfloor ", "mod", "²", "−",
]  # fmt: skip
LATEX = st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join)
NUMBER = st.integers(-50, 50).map(str)
EXPRESSION = st.recursive(
    NUMBER | st.sampled_from(["x", "y", r"\pi", "e", "i", "0.25", r"\infty"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot "]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(inner, inner).map(lambda t: rf"\frac{{{t[0]}}}{{{t[1]}}}"),
        inner.map(lambda a: rf"\sqrt{{{a}}}"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}, {t[1]})"),
        st.tuples(inner, st.integers(0, 4)).map(lambda t: f"({t[0]})^{{{t[1]}}}"),
    ),
    max_leaves=6,
)


@given(LATEX | EXPRESSION | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_reflexive(text: str) -> None:
    grade = compare(text, text)
    assert grade.is_equal or not text.strip()


@given(LATEX | EXPRESSION | st.text(max_size=20), LATEX | EXPRESSION)
@settings(max_examples=400, deadline=None)
def test_symmetric_and_total(a: str, b: str) -> None:
    grade = compare(a, b)
    assert isinstance(grade, Grade)
    assert compare(b, a).verdict is grade.verdict or not (a.strip() and b.strip())


@given(EXPRESSION)
@settings(max_examples=150, deadline=None)
def test_a_changed_number_is_never_equal(text: str) -> None:
    assert not compare(f"({text})+10^{{-30}}", text).is_equal or "infty" in text


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_fractions_against_exact_arithmetic(n: int, d: int, k: int) -> None:
    assert compare(rf"\frac{{{n * k}}}{{{d * k}}}", f"{n}/{d}").is_equal
    assert compare(rf"\frac{{{n * k + 1}}}{{{d * k}}}", f"{n}/{d}").verdict is Verdict.NOT_EQUAL
    assert compare(rf"\sqrt{{{n * n}}}", str(abs(n))).is_equal


def test_killers_are_bounded() -> None:
    """Every pair gets a grade within its limits, and none is called equal but those listed by hand."""
    others = ["0", "1", "2", r"\pi", "x", "yes"]
    pairs = [*itertools.product(KILLERS, others), *itertools.product(others, KILLERS)]
    pairs += [(killer, killer + "+1") for killer in KILLERS] + [(killer[:-1], killer) for killer in KILLERS]
    with GradingPool(workers=1, time_limit=1.0, memory_mb=1024) as pool:
        grades = pool.grade_batch(pairs)
    equal = {frozenset(pair) for pair, grade in zip(pairs, grades, strict=True) if grade.is_equal}
    wrong = equal - TRUE_EQUALS.keys()
    assert not wrong, [[text[:40] for text in pair] for pair in wrong]
