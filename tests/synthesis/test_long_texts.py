"""Texts that only a broken model writes, 200,000 characters long and more: every reading of them takes linear time.

Sizes are such that a reading which begins anew at each sign would take minutes. The bound is one of processor time.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nemo_openmath.chat import Author, Kind, Span, Transcript, load_template
from nemo_openmath.chat.blocks import budget_of, final_judgment_of, notice_block
from nemo_openmath.chat.fences import read_fences
from nemo_openmath.core.engine import ToolCall
from nemo_openmath.core.records import Generation
from nemo_openmath.grading import extract_answer
from nemo_openmath.grading.judgement import parse_judgement
from nemo_openmath.inference.rollout.tool_calls import begun, read_call
from nemo_openmath.synthesis.solutions.filters import RULES, FilterConfig
from nemo_openmath.synthesis.solutions.filters.early_answer import states_answer
from nemo_openmath.synthesis.solutions.filters.fences import fences_in
from nemo_openmath.synthesis.solutions.filters.rule import RuleSettings, Solution
from nemo_openmath.synthesis.solutions.fragments import fragments_of
from nemo_openmath.synthesis.solutions.output_row import generation_of, solution_of
from nemo_openmath.synthesis.solutions.votes import VoteQuestion

SIZE = 200_000
MOST_CPU_S = 60
VOTES = VoteQuestion("novelty", load_template("classify-novelty"), {"novel": "novel", "verification": "verification"})


@pytest.fixture(autouse=True)
def bound() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise AssertionError(f"more than {MOST_CPU_S} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def read(text: str) -> None:
    """Read a text in every way in which a model's text is read."""
    transcript = Transcript.from_text((), f"{text}<tool_call>\n1\n</tool_call>\n```output\n1\n```\n{text}")
    for cut in (False, True):
        row = Generation(
            id="g", problem_id="p", mode="tir", model="m", sample=0, transcript=transcript.to_json(),
            finish="stop", code_calls=1, predicted_answer="1",
        )  # fmt: skip
        solution = Solution(row, cut=cut)
        for rule in RULES.values():
            rule.judge(solution, RuleSettings(FilterConfig()))
    fragments_of(transcript, 1500)
    extract_answer(text, fallback=True)
    parse_judgement(text)
    final_judgment_of(text)
    VOTES.parse(text)
    for ended in (False, True):
        read_fences(text, ended=ended, ran=["x = 1\n" * 100] * 10, outputs=["1 2\n" * 100] * 10)
    call = ToolCall("c", "python", text)
    read_call(call), begun(call)
    fields = {"problem": "p", "generation": text, "judgement": text}
    solution_text = solution_of(fields, None)
    assert not isinstance(solution_text, str)
    templates: dict[Any, Any] = {mode: load_template(mode) for mode in ("cot", "tir")}
    generation_of(fields, solution_text, templates, model="m", seed=0, budget=8)


@pytest.mark.parametrize(
    "sign",
    ["```", "```output\n", "<tool_call>", "\\boxed{", "**Final Answer**", "$", "1 ", "Judgement: ", "</tool_call>\n"],
)
def test_one_sign_for_ever(sign: str) -> None:
    read(sign * (SIZE // len(sign)))


BLOCK = "</tool_call>\n```output\n"


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        (BLOCK * 40_000, 0),
        (f"{BLOCK}```\n" * 20_000 + f"```\n```system\n{'x' * 2 * SIZE}", 20_000),  # one notice, that never ends
        (f"{BLOCK}```\n<tool_call>" * 20_000 + notice_block(1), 20_000),  # one notice, behind all calls
        (f"{BLOCK}1\n```\n{notice_block(1)}" * 2000, 2000),
    ],
)
def test_blocks_of_output(text: str, tool: int) -> None:
    assert sum(span.author is Author.TOOL for span in Transcript.from_text((), text).spans) == tool


def test_an_output_of_notices() -> None:
    text = "```system\n" * 100_000
    (segment,) = Transcript((), (Span(Author.TOOL, text),)).segments()
    assert (segment.kind, segment.text) == (Kind.OUTPUT, text)
    assert budget_of(f"Remaining code executions: {'9' * 5000}.") is None


PAIRS: tuple[tuple[Callable[[str], object], str, object], ...] = (
    (lambda text: fences_in(text), "~" * SIZE + "`", []),
    (lambda text: fences_in(text), "```" + "a" * SIZE + "`", []),
    (lambda text: fences_in(text)[0].shows_output, "It prints:\n```\n" + "\n" * SIZE + "```\n", True),
    (lambda text: fences_in(text)[0].shows_output, "It prints:\n```\n" + "\n" * SIZE + "for x in y:\n```\n", False),
    (lambda text: read_fences(text, ended=True).call, "```python\ns = '''\n" + "x```\n" * (SIZE // 5), None),
    (parse_judgement, "$" * SIZE + "x", None),
    (parse_judgement, "Judgement: yes\nfinal" + " " * SIZE + "x", None),
    (VOTES.parse, "$" * SIZE + "x", None),
    (VOTES.parse, "so" + " " * SIZE + "x", None),
    (lambda text: states_answer(text, "1", "p"), "1 " * SIZE, False),
    (lambda text: states_answer(text, "1", "p"), "1 " * SIZE + "x = 1", True),
    (lambda text: states_answer(text, "13", "p"), "13x" * SIZE, False),
    (lambda text: states_answer(text, "1" * (SIZE // 2), "p"), "1" * SIZE + "x", False),
    (lambda text: read_call(ToolCall("c", "python", text)).code == text, "```" + " " * SIZE + "x", True),
    (lambda text: read_call(ToolCall("c", "python", text)).code == "1", "```\n1" + " " * SIZE + "```", True),
)


@pytest.mark.parametrize(("reading", "text", "result"), PAIRS, ids=map(str, range(len(PAIRS))))
def test_a_long_run(reading: Callable[[str], object], text: str, result: object) -> None:
    assert reading(text) == result
