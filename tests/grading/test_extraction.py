"""Extraction: the last complete box of the graded part, in linear time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.grading import extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\fbox{42}", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2^{n}}}", r"\frac{1}{2^{n}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x : x > 1 \right\}}", r"\left\{ x : x > 1 \right\}"),
        (r"\boxed{a \\ b}", r"a \\ b"),
        (r"\boxed{\text{Alice wins}}", r"\text{Alice wins}"),
        (r"\boxed {7}", "7"),
        (r"\boxed 42 is it", "42"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"{ never closed \boxed{5}", "5"),
        (r"stray } brace \boxed{5} }", "5"),
        ("\\boxed{\n12\n}", "12"),
        (r"\\boxed{1}, no: \\boxed{2}", "2"),  # escaped twice on its way through JSON
        (r"a \\\boxed{5}", "5"),  # behind a line break
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1</think> \boxed{2}", "2"),
        (r"<think>a</think> \boxed{1}</think>\boxed{3}", "3"),
        (r"\boxed{7}. (The answer stands inside \boxed{}.)", "7"),
        (r"\boxed{3} \boxed{ }", "3"),
        (r"\boxed{3}, in the form \boxed{...}", "3"),
        (r"\boxed{3}, as \boxed asks", "3"),
        (r"\boxed{3}. It stands in `\boxed`.", "3"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed 5. Done", "5"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (
            r"\boxed{f(x) = \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}}",
            r"f(x) = \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}",
        ),
        (r"**\boxed{8}**", "8"),
        (r"\text{so \boxed{9}}", "9"),
        ("```\n\\boxed{5}\n```", "5"),
        ("\\boxed{4}\n```python\nprint(r'\\boxed{5}')\n```", "4"),
        ("```python\nx = 1\n\\boxed{6}", "6"),  # a fence that is never closed is no fence
    ],
)
def test_last_complete_box(text: str, answer: str) -> None:
    assert extract_answer(text).answer == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"\boxed{1} and then \boxed{2", "the last box is not closed"),
        (r"\boxed{\frac{1}{2}", "the last box is not closed"),
        (r"\boxed{1}, \boxed{\}", "the last box is not closed"),
        (r"\boxed{}", "the last box is empty"),
        (r"\boxed{ } \boxed{\ldots}", "the last box is empty"),
        (r"Write it in \boxed form", "the last box is empty"),
        ("```python\nprint(r'\\boxed{5}')\n```\nSo it is five.", "no box"),
        ("<tool_call>\nprint(r'\\boxed{5}')\n</tool_call>\n```output\n\\boxed{5}\n```\n", "no box"),
        (r"<think>\boxed{1}</think> so it is 1", "no box"),
        (r"\boxedtext{1}", "no box"),
        ("the answer is 5", "no box"),
        ("", "no box"),
    ],
)
def test_no_answer_with_a_reason(text: str, reason: str) -> None:
    extraction = extract_answer(text)
    assert extraction.answer is None
    assert extraction.reason == reason


def test_different_boxes_are_reported() -> None:
    extraction = extract_answer(r"\boxed{1}, \boxed{2}, \boxed{1}")
    assert (extraction.answer, extraction.boxes) == ("1", ("1", "2"))
    assert extraction.reason == "last of 2 different boxes"
    assert extract_answer(r"\boxed{1} again \boxed{1}").boxes == ("1",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The final answer is 42.", "42"),
        ("The answer is: $3.5$.", "3.5"),
        ("The final answer is $73$.", "73"),
        ("Final Answer: The final answer is $73$. I hope it is correct.", "73"),
        ("**Final Answer**\n\n73", "73"),
        ("**Final Answer**: 73", "73"),
        ("**Final Answer:** 73.", "73"),
        ("Final Answer: **73**", "73"),
        ("Final answer: **73.**\n", "73"),
        ("**Answer:** 73", "73"),
        ("Answer: 73", "73"),
        ("### Final Answer\n\\[\n73\n\\]\n", "73"),
        ("### Final Answer\n$$73$$", "73"),
        ("**Final Answer**\nThe final answer is $\\frac{1}{2}$ m.", "$\\frac{1}{2}$ m"),
        ("The answer is 5.\n\n**Final Answer**\n", "5"),
        ("Put it in \\boxed{}. Final Answer: 73", "73"),
        ("the answer is $1$ or $2$.", "$1$ or $2$"),
        ("<think>The answer is 4.</think>It is done.", None),
        ("the answer is 1.\nNo, the answer is 2.\n", "2"),
        ("**Final answer is** 7", "7"),
        ("The answer is", None),
        ("It is 5", None),
        (r"The answer is 5, \boxed{6", None),
        (r"\boxed{6}; the answer is 5", "6"),
    ],
)
def test_phrase_only_as_fallback(text: str, answer: str | None) -> None:
    assert extract_answer(text, fallback=True).answer == answer
    assert "boxed" in text or extract_answer(text).answer is None


@given(
    st.recursive(
        st.text("ab1 +^_", max_size=5),
        lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    )
)
def test_any_balanced_content_comes_back(content: str) -> None:
    expected = content.strip() if content.strip(" _") else None  # a blank to fill in
    assert extract_answer(rf"{{ \boxed{{{content}}} }}").answer == expected


@given(st.text(r"\{}boxed </think>1", max_size=60))
def test_any_text_is_read(text: str) -> None:
    extraction = extract_answer(text, fallback=True)
    assert extraction.answer is None or (extraction.answer and extraction.answer in text)
    assert extraction.answer is None or not extraction.boxes or extraction.boxes.count(extraction.answer) == 1


@pytest.mark.parametrize(
    "unit",
    [
        "{", "}", r"\boxed{", r"\boxed{1}", r"\{", "\\", "answer is ", "answer: ", "Final Answer\n", "```python\n",
        "<tool_call>", r"\boxed a", r"\boxed{{", "</think>", "{}", r"\boxed{.", r"\boxed\a{",
    ],
)  # fmt: skip
def test_a_megabyte_takes_linear_work(unit: str) -> None:
    # A quadratic scan of these would take hours; the suite's time is the assertion.
    text = unit * (1_000_000 // len(unit))
    for whole in (text, r"\boxed{" + text):
        assert extract_answer(whole, fallback=True).boxes.__class__ is tuple
