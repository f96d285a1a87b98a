"""The rules of solutions.filter: what each drops, what none may drop, and that order, files and size change nothing."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest

from nemo_openmath.chat import Author, Message, Span, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.build import OVERRIDE, Builder
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, SftRow, read_drops, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.data.rows.formatting import Formatter
from nemo_openmath.data.rows.selection import FormatRules
from nemo_openmath.synthesis.solutions.filters import RULES, Filter, FilterConfig
from nemo_openmath.synthesis.solutions.filters.config import DEFAULT_RULES, RuleName
from nemo_openmath.synthesis.solutions.filters.early_answer import states_answer
from nemo_openmath.synthesis.solutions.filters.final_answer import cut_after_answer
from nemo_openmath.synthesis.solutions.filters.rule import RuleSettings, Solution
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from tests.support.services import run_stage, stage_context

PROBLEM = "How many primes lie below 20 of the form 4k + 1?"
ALL: tuple[RuleName, ...] = get_args(RuleName)


def call(code: str = "print(3)", output: str = "3", left: int = 7) -> str:
    return f"<tool_call>\n{code}\n</tool_call>{output_block(output)}{notice_block(left)}"


LIMO = (
    "Okay, so I need to count these primes. Step 3 will be the check. Let me write a program.\n"
    f"{call()}"
    "The program counts 5, 13 and 17.\n\n**Final Answer**\n\n\\boxed{3}"
)
"""As LIMO-Qwen-32B writes, once its fences are tags: no think tags, and at the end a final answer in a box."""


def generation(text: str, name: str = "g", **values: Any) -> Generation:
    transcript = Transcript.from_text((Message("user", PROBLEM),), text)
    given = {
        "mode": "tir",
        "finish": "stop",
        "verdict": "equal",
        "predicted_answer": "3",
        "budget": 8,
        "completion_tokens": 40,
    } | values
    return Generation(
        id=name, problem_id=given.pop("problem_id", "p"), model="m", sample=0,
        transcript=transcript.to_json(), code_calls=len(transcript.code_blocks()), **given,
    )  # fmt: skip


async def kept_and_dropped(folder: Path, config: FilterConfig, *rows: Generation) -> tuple[list[Generation], list[str]]:
    outcome = await run_stage(Filter(config), folder, generations=rows)
    return outcome.records, outcome.reasons


STAGE_0 = FilterConfig(ALL, max_blocks=2, max_tokens=50_000, cut_after_answer=True)


async def test_what_limo_writes_becomes_a_row(tmp_path: Path) -> None:
    """Through the strictest stage 0, the row, the format rules and a file of other tools."""
    kept, reasons = await kept_and_dropped(tmp_path, STAGE_0, generation(LIMO))
    assert reasons == []
    assert kept == [generation(LIMO)], "there is nothing behind the answer"
    await run_stage(MakeRows(RowsConfig()), tmp_path / "rows", generations=kept)
    (row,) = read_records(tmp_path / "rows" / "out", SftRow)
    assert FormatRules().reject(row) is None
    published = {"problem": PROBLEM, "generated_solution": LIMO, "inference_mode": "tir"}
    assert FormatRules().reject(Formatter().format(published)) is None


END = "Final answer: \\boxed{3}"
PY = "```python\nprint(3)\n```"
EXAMPLES: list[tuple[str, str, str, dict[str, Any]]] = [
    # rule, reason, text, fields
    ("finished", "unfinished (length)", LIMO, {"finish": "length"}),
    ("answer", "no boxed answer", LIMO, {"predicted_answer": None}),
    ("correct", "wrong answer", LIMO, {"verdict": "not_equal"}),
    ("correct", "verdict unknown", LIMO, {"verdict": "unknown"}),
    ("length", "too long", LIMO, {"completion_tokens": 50_001}),
    ("length", "length not known", LIMO, {"completion_tokens": 0}),
    ("thinking", "no summary after the reasoning", f"<think>{LIMO}", {}),
    ("thinking", "think tags out of order", f"<think>a</think><think>b</think>{LIMO}", {}),
    ("code", "no code was run", "**Final Answer**\n\\boxed{3}", {}),
    ("uncalled_code", "a code block was not run", "<tool_call>\nprint(3)\n</tool_call>\n" + END, {}),
    ("uncalled_code", "some of its code was not called", f"{call()}Check:\n```py\nx = 4\n```\n{END}", {}),
    ("blocks", "too many code blocks", f"{call() * 3}{END}", {}),
    ("over_budget", "over the code budget", f"{call() * 2}{END}", {"budget": 1}),
    ("over_budget", "over the code budget", f"{call(left=0) * 2}{END}", {"budget": None}),
    ("box_before_code", "answer before the first code", f"I guess \\boxed{{4}}. {LIMO}", {}),
    ("answer_before_code", "predicted answer before the first code", f"There are 3 of them. {LIMO}", {}),
    ("final_answer", "no final answer", f"{call()}It is \\boxed{{3}}.", {}),
    ("final_answer", "no final answer", f"{call()}**Final Answer** \\boxed{{4}}. No, it is \\boxed{{3}}.", {}),
    ("invented_output", "invented output", f"{call()}```output\n4\n```\n{END}", {}),
    ("invented_output", "invented output", f"{call()}**Output:**\n```\n4\n```\n{END}", {}),
    ("invented_output", "invented output", f"{call()}Run, it prints\n\n~~~text\n4\n~~~\n{END}", {}),
    ("invented_output", "invented output", f"{call()}Output: ```4```\n{END}", {}),
    ("invented_output", "invented output", f"{call()}```system\n2 left\n```\n{END}", {}),
    ("code_errors", "a code block failed", f"{call(output='NameError: x')}{END}", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reason", "text", "fields"), EXAMPLES)
def test_what_a_rule_drops_all_others_pass(name: str, reason: str, text: str, fields: dict[str, Any]) -> None:
    solution = Solution(generation(text, **fields))
    settings = RuleSettings(FilterConfig(ALL, max_blocks=2, max_tokens=50_000))
    assert {rule.name: why for rule in RULES.values() if (why := rule.reason(solution, settings))} == {name: reason}
    assert any(declared.removesuffix("...)").removesuffix("...") in reason for declared in RULES[name].reasons)


def test_every_name_is_a_rule_with_words_for_a_reader() -> None:
    assert set(ALL) == set(RULES)
    assert set(DEFAULT_RULES) < set(ALL)
    assert all(rule.meaning.startswith("Drop") and rule.reasons for rule in RULES.values())
    assert {name for name, *_ in EXAMPLES} == set(ALL)


KEPT = {
    "a quote of what was printed": f"{call()}Output:\n```\n3\n```\n{END}",
    "code that was called is shown again": f"{call()}The code was\n{PY}\n{END}",
    "a fence of plain text": f"Plan:\n```\n1. count\n2. print\n```\n{call()}{END}",
    "a program that prints the word": f"{call('print(1)  # ```output', 'Output: 3')}{END}",
    "a formula around the box": f"{call()}## Final Answer:\n\\[\n\\boxed{{3}}\n\\]",
    "in a sentence": f"{call()}The final answer is **\\boxed{{3}}**.",
    "the answer behind the thinking": f"<think>So {call()}. Final answer \\boxed{{4}}? No.</think>\n{END}",
    "a restated problem": f"We count primes 4k + 1 below 20. {LIMO}",
    "lists and steps": f"**Step 3:** count.\n3. Then equation (3) follows.\n\nCase 3 is x^3 + 13. {LIMO}",
    "a mention of the box": f"I will put it into \\boxed{{}}. {LIMO}",
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
async def test_nothing_else_is_dropped(name: str, tmp_path: Path) -> None:
    _, reasons = await kept_and_dropped(tmp_path, STAGE_0, generation(KEPT[name]))
    assert reasons == []


@pytest.mark.parametrize(
    ("text", "answer", "stated"),
    [
        # a token of its own
        ("so 42 of them", "42", True), ("x = 42.", "42", True), ("$42$", "42", True), ("it is (42)", "42", True),
        ("42", "42", True), ("is **42**.", "42", True), ("it is\n42", "42", True), ("x is -42", "-42", True),
        (r"it is \frac{1}{2}", r"\frac{1}{2}", True), ("x+1", "x+1", True), ("größer als ４２", "４２", True),
        # a part of something else
        ("42.5 or 2.42 or 142 or 421", "42", False), ("-42", "42", False), ("−42", "42", False),
        ("42/5", "42", False), ("1,420", "420", False), ("x-42", "-42", False), ("42 + n", "42", False),
        (r"\frac{42}{5}, \frac{5}{42}, \sqrt{42}", "42", False), ("x^42, x^{42}, a_42, 42x, 42!, 42^2", "42", False),
        (r"n \leq 42", "42", False), (r"42 \times 2, 7 * 42, n - 42, n > 42", "42", False),
        (r"it is 3\frac{1}{2}", r"\frac{1}{2}", False),
        # the number of a step
        ("Step 42", "42", False), ("step 42: so 42", "42", True), ("42. First", "42", False), ("#42", "42", False),
        ("Steps:\n  **42.** count\n42) go", "42", False),
        # a digit, as what something is
        ("there are 3 of them", "3", True), ("x = 3.", "3", True), (r"it is \( 3 \)", "3", True),
        ("from 1 to 80", "1", False), ("n = 1 to 80", "1", False), ("they are 1, 3 and 9", "1", False),
        ("1, 3, and 9", "3", False), ("in 3 cases", "3", False), (r"n(n + 1)", "1", False),
        # words, and what the problem states
        ("at the start", "A", False), ("A man", "A", False), ("The answer is A", "A", True),
        ("the answer is: $25$", "25", True), ("25 apples, 25 = 25", "25", False),
        ("", "3", False), ("so  ", "$ $", False),
    ],
)  # fmt: skip
def test_where_an_answer_stands_as_a_value(text: str, answer: str, stated: bool) -> None:
    assert states_answer(text, answer, "There are 25 apples. Step A.") is stated


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("**Final Answer**\n\\boxed{3}\n\nBut wait, \\boxed{3}.", "**Final Answer**\n\\boxed{3}"),
        ("Final answer: \\[ x = \\boxed{3}. \\]\nOr not.", "Final answer: \\[ x = \\boxed{3}. \\]"),
        ("**Final answer: $\\boxed{3}$.** Or $4$.", "**Final answer: $\\boxed{3}$.**"),
        ("Final answer \\boxed{3} $x$ $y$", "Final answer \\boxed{3}"),
        ("Final answer \\boxed{4}. Final answer \\boxed{3}! More", "Final answer \\boxed{4}. Final answer \\boxed{3}!"),
        ("Final answer \\boxed{\\text{3}}. Really \\boxed{3}.", None),  # the answer is not the one behind the words
        ("Final answer \\boxed{4}. No, it is \\boxed{3}. Yes", None),
        ("\\boxed{3} is it. Final answer above.", None),
        ("Final answer" + " " * 300 + "\\boxed{3} x", None),
    ],
)
def test_cut_behind_the_final_answer(text: str, left: str | None) -> None:
    before = (
        Span(Author.MODEL, "<tool_call>\nprint(3)\n</tool_call>", (1, 2)),
        Span(Author.TOOL, output_block("3"), (3,)),
    )
    whole = Transcript((), (*before, Span(Author.MODEL, text, (4, 5)), Span(Author.MODEL, "\n", (6,))), True, "t")
    cut = cut_after_answer(whole, "3")
    assert (cut is None) == (left is None)
    assert cut is None or cut.spans == (*before, Span(Author.MODEL, left)), (
        "what is cut has no ids; what stays keeps them"
    )


async def test_a_solution_is_judged_as_it_is_cut(tmp_path: Path) -> None:
    """What it does behind its answer is neither trained on nor held against it."""
    row = generation(f"{LIMO}\nNow another one.\n{call() * 3}```output\n9\n```\n")
    (kept,), reasons = await kept_and_dropped(tmp_path, STAGE_0, row)
    assert reasons == []
    assert Transcript.from_json(kept.transcript).text == LIMO
    assert (kept.code_calls, kept.extra, kept.id) == (1, {"cut": True}, row.id)
    _, reasons = await kept_and_dropped(tmp_path / "whole", FilterConfig((*DEFAULT_RULES,), max_blocks=2), row)
    assert reasons == ["too many code blocks"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"correct": True}, r"correct: there is no such setting any more.*rule correct"),
        ({"code": False}, "rule code"),
        ({"answer_after_code": False}, "rules: without box_before_code"),
        ({"error_free": True}, "rule code_errors; name it in rules:"),
        ({"rules": ["code", "blocs"]}, "did you mean 'blocks'"),
        ({"rules": ["code", "code"]}, "'code' stands there twice"),
        ({"rules": ["code"], "max_blocks": 2}, "max_blocks is set, and the rule 'blocks' is not among rules"),
        ({"rules": ["code"], "max_tokens": 2}, "rule 'length' is not among rules"),
        ({"rules": ["code"], "think": "required"}, "rule 'thinking' is not among rules"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Builder(lambda _: OVERRIDE).build(FilterConfig, settings)


async def test_the_order_of_rules_decides_the_reason(tmp_path: Path) -> None:
    row = generation("no box", verdict="not_equal", predicted_answer=None)
    for rules in (("answer", "correct"), ("correct", "answer")):
        _, reasons = await kept_and_dropped(tmp_path / rules[0], FilterConfig(rules), row)
        assert reasons == [{"answer": "no boxed answer", "correct": "wrong answer"}[rules[0]]]
    kept, _ = await kept_and_dropped(tmp_path / "none", FilterConfig(()), row)
    assert kept == [row]


async def test_files_and_their_order_change_nothing(tmp_path: Path) -> None:
    """Among them an empty file, one class alone, equal solutions, 200,000 characters, and Unicode."""
    texts = [text for *_, text, _ in EXAMPLES] + list(KEPT.values())
    texts += [LIMO] * 32 + ["∑ " * 100_000 + LIMO, "🧮 " + LIMO.replace("Final Answer", "FINAL  ANSWER"), "", "\0"]
    rows = [generation(text, f"g{number}", problem_id=f"p{number % 7}") for number, text in enumerate(texts)]
    config = FilterConfig(ALL, max_blocks=2, cut_after_answer=True, per_problem=3)
    outcomes = []
    for turn in range(3):
        shuffled = random.Random(turn).sample(rows, len(rows))
        folders = [tmp_path / f"{turn}-{part}" for part in range(3)]
        for folder, part in zip(folders, (shuffled[: turn * 9], [], shuffled[turn * 9 :]), strict=True):
            write_records(folder, part)
        out = tmp_path / f"out{turn}"
        await Filter(config).run(stage_context({"generations": folders}, out))
        kept = {g.id: g for g in read_records(out, Generation)}
        outcomes.append((kept, {(unit, drop.reason) for unit, drop in read_drops(out)}))
        assert len(kept) + len(outcomes[-1][1]) == len(rows)
        assert max(sum(g.problem_id == f"p{n}" for g in kept.values()) for n in range(7)) == 3
    assert outcomes[0] == outcomes[1] == outcomes[2]
