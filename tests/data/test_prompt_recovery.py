"""The prompt of rows: recovered byte for byte, of most rows, in spite of odd ones; refused where there is none."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import Template, load_template
from nemo_openmath.chat.prompts import parse_template
from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.data.rows.prompt_recovery import RowQuestion, recover, reproduces, values_of

LONG = """You get {num_solutions} answers to one hard problem. Look at each of them with care.

Format:
Problem: a problem of a contest
Solutions: texts numbered 0-{max_idx}, each of which ends with \\boxed{}

TASK

Problem: {problem}

Solutions:
{solutions}

Steps:

1. Screening
   - group by answers
2. Details
   - up to 16 errors

Finish with exactly this line:
Judgment: [IDX]
where IDX is the number 0-{max_idx} of the best one."""
TAGS = """[system]
You compare.
[user]
<problem>{problem}</problem>
<all>
{solutions}
</all>
Say which of the {num_solutions} it is.
[solution]
<solution id="{index}">
{solution}
</solution>
[between] "\\n"
"""
RULED = """Choose for this: {problem}
---
{solutions}
---
End with Judgment: IDX, up to {max_idx}

[solution]
### Candidate {index}

{solution}
[between] "\\n---\\n"
[end]
"""
INLINE = 'Which one?\n{problem}\n\n{solutions}\n\nAnswer so:\n[solution]\n[{index}] {solution}\n[between] "\\n"\n'
WORDS = [
    "let",
    "find",
    "alpha",
    "$x$",
    "gamma,",
    "delta.",
    "\\frac{1}{2}",
    "17",
    "2",
    "16",
    "{problem}",
    "é",
    "𝒳",
    "日本",
]
Extra = Callable[[random.Random], str]


def template(text: str, name: str = "genselect") -> Template:
    return parse_template(name, text, "t.txt")


def words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def nothing(rng: random.Random) -> str:
    return ""


def ask(
    prompt: Template, rng: random.Random, *, num: int = 0, extra: Extra = nothing, problem: str = ""
) -> RowQuestion:
    """A question of a realistic row: candidates end with their answers."""
    num = num or rng.randint(2, 16)
    solutions = [f"{words(rng, 5, 60)}{extra(rng)} so \\boxed{{{rng.randrange(99)}}}." for _ in range(num)]
    problem = problem or f"{words(rng, 6, 20)}{extra(rng)} {words(rng, 3, 20)}{rng.choice('.?$')}"
    *system, user = prompt.messages(
        problem=problem, solutions=prompt.listing(solutions), num_solutions=num, max_idx=num - 1
    )
    return RowQuestion(user.content, system[0].content if system else None)


def counts(questions: list[RowQuestion], name: str = "genselect") -> list[tuple[str, int]]:
    return [(prompt.template.digest, prompt.rows) for prompt in recover(questions, name).prompts]


@pytest.mark.parametrize("text", [load_template("genselect").to_text(), LONG, TAGS, RULED, INLINE, LONG + "\n\n[end]"])
@pytest.mark.parametrize("rows", [8, 60])
def test_a_prompt_is_recovered_with_its_form_of_solutions(text: str, rows: int) -> None:
    rng, prompt = random.Random(rows), template(text)
    whole = [ask(prompt, rng, problem=f"{words(rng, 6, 30)}.") for _ in range(rows)]
    assert counts(whole) == [(prompt.digest, rows)], "a full stop that all problems end with is theirs"
    assert template(prompt.to_text()) == prompt
    assert counts([ask(prompt, rng) for _ in range(rows)]) == [(prompt.digest, rows)]


@pytest.mark.parametrize(
    "extra",
    [
        lambda rng: rng.choice(["", f"\n\nSolution {rng.randrange(9)}:\nagain"]),
        lambda rng: rng.choice(["", "\n\nSolutions:\nSolution 0:\nhm", "\nSteps:\n\n1. Screening\n"]),
        lambda rng: "".join(f"\nStep {n}: {words(rng, 1, 3)}" for n in range(rng.randrange(6))),
        lambda rng: rng.choice(["", "\u2028x", "\x85y", "\n\n\n", " " * 9_000]),
    ],
)
def test_solutions_may_hold_the_prompts_own_words(extra: Extra) -> None:
    rng, prompt = random.Random(2), template(LONG)
    questions = [ask(prompt, rng, extra=extra) for _ in range(30)]
    assert counts(questions) == [(prompt.digest, 30)]


def test_odd_rows_and_several_prompts_are_counted() -> None:
    rng, prompts = random.Random(3), [template(LONG), load_template("genselect"), template(TAGS)]
    questions = [ask(p, rng) for p, number in zip(prompts, (30, 20, 5), strict=True) for _ in range(number)]
    questions += [RowQuestion(words(rng, 5, 20)) for _ in range(5)]
    rng.shuffle(questions)
    assert counts(questions) == [(p.digest, n) for p, n in zip(prompts, (30, 20, 5), strict=True)]


def test_several_rows_of_a_problem_do_not_make_it_a_part_of_the_prompt() -> None:
    rng, prompt = random.Random(4), template(LONG)
    problems = [words(rng, 6, 30) for _ in range(6)]
    assert counts([ask(prompt, rng, problem=p) for p in problems for _ in range(8)]) == [(prompt.digest, 48)]


@pytest.mark.parametrize(
    ("questions", "reason"),
    [
        (lambda rng: [ask(template(LONG), rng, num=16) for _ in range(20)], "num_solutions is 16 in all rows"),
        (lambda rng: [RowQuestion(words(rng, 5, 20)) for _ in range(20)], "not numbered 0, 1, 2"),
        (lambda rng: [ask(template(LONG), rng, problem="the one")] * 9, "all rows are of one problem"),
        (lambda rng: [ask(template(LONG.replace("\nSol", "\r\nSol")), rng) for _ in range(9)], "lines that a template"),
        (lambda rng: [], ""),
        (lambda rng: [ask(template(LONG), rng)], ""),
    ],
)
def test_nothing_is_recovered_where_nothing_is_common(questions: Any, reason: str) -> None:
    recovery = recover(questions(random.Random(5)), "genselect")
    assert recovery.prompts == []
    assert not reason or any(reason in why for why in recovery.reasons)


@pytest.mark.parametrize("name", ["cot", "tir"])
def test_prompts_of_solutions_are_recovered_too(name: str) -> None:
    rng, prompt = random.Random(6), load_template(name)
    questions = []
    for _ in range(30):
        values = {"problem": words(rng, 5, 20), "total_code_executions": rng.randint(1, 8)}
        (message,) = prompt.messages(**{field: values[field] for field in prompt.fields})
        questions.append(RowQuestion(message.content, budget=int(values["total_code_executions"])))
    assert counts(questions, name) == [(prompt.digest, 30)]
    assert counts([RowQuestion(words(rng, 5, 20), budget=1) for _ in range(30)], name) == []


def test_a_row_counts_where_it_is_rendered_back_byte_for_byte() -> None:
    prompt = template(LONG)
    question = ask(prompt, random.Random(7), num=3)
    values = values_of(prompt, question)
    assert values is not None
    assert values["num_solutions"] == 3
    for change in (("3 answers", "4 answers"), ("Solution 1:", "Solution 7:"), ("TASK", "TASK "), ("0-2 of", "0-3 of")):
        assert not reproduces(prompt, RowQuestion(question.user.replace(*change)))
    assert not reproduces(prompt, RowQuestion(question.user, "You compare."))


@pytest.mark.parametrize("form", ["published", "reference", "rendered"])
def test_rows_of_every_form_become_a_file(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, prompt = random.Random(8), template(TAGS if form == "rendered" else LONG)
    rows: list[dict[str, Any]] = []
    for _ in range(20):
        question, answer = ask(prompt, rng), "The best one. Judgment: 1"
        if form == "published":
            rows.append({"problem": question.user, "generated_solution": answer, "inference_mode": "genselect"})
        elif form == "reference":
            rows.append({"input": question.user, "output": answer})
        else:
            turns = f"<|im_start|>system\n{question.system}<|im_end|>\n<|im_start|>user\n{question.user}<|im_end|>\n"
            rows.append({"input": f"{turns}<|im_start|>assistant\n", "output": answer})
    rows.append(rows[0] | {("problem" if form == "published" else "input"): "What is 1 + 1?"})
    rows.append({"text": "of another form"})
    file, out = tmp_path / "rows.jsonl", tmp_path / "prompt.txt"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["data", "prompt", str(file), "--mode", "genselect", "--output", str(out)]) is ExitCode.OK
    assert load_template("genselect", out) == prompt
    shown = capsys.readouterr()
    assert f"prompt {prompt.digest} reproduces 20 of 21 rows" in shown.out
    assert "1 rows are of no prompt, such as rows.jsonl:byte" in shown.err
    assert "1 rows were not looked at: unknown columns" in shown.err


def test_bare_problems_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, file = random.Random(9), tmp_path / "rows.jsonl"
    row = {"generated_solution": "<think>a</think>\\boxed{1}", "inference_mode": "cot"}
    file.write_text("".join(json.dumps(row | {"problem": words(rng, 5, 20)}) + "\n" for _ in range(20)))
    assert run(["data", "prompt", str(file)]) is ExitCode.USER_ERROR
    assert "no prompt is common to its rows: the questions have nothing in common but" in capsys.readouterr().err
    assert run(["data", "prompt", str(file), "--mode", "tir"]) is ExitCode.USER_ERROR
    assert "there are no tir rows" in capsys.readouterr().err
    mixed = [row | {"problem": "p", "inference_mode": mode} for mode in ("cot", "tir", "tir")]
    file.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    assert run(["data", "prompt", str(file)]) is ExitCode.USER_ERROR
    assert "of several modes (2 tir, 1 cot); choose one: --mode tir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{problem}{solutions}\n[solution]\n{solution}\n", r"\[solution\] has no place for \{index\}"),
        ("{problem}{solutions}\n[solution]\n{index}{solution}\n[between] -\n", r"\[between\] is followed by '-'"),
        ("{solutions} of {num_solutions}", r"no place for \{problem\}"),
    ],
)
def test_wrong_template_files_are_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        template(text)


def test_a_template_is_one_prompt_however_its_file_divides_the_listing() -> None:
    one = template('{problem}\n---\n{solutions}\n[solution]\n{index}: {solution}\n[between] "\\n---\\n"\n')
    other = template('{problem}\n{solutions}\n[solution]\n---\n{index}: {solution}\n[between] "\\n"\n')
    assert one.digest == other.digest != template("{problem}\n{solutions}").digest


def solved(beginnings: dict[str, int], end: str, first: str = "") -> list[RowQuestion]:
    rng = random.Random(11)
    problems = [f"{first}{words(rng, 6, 20)}{rng.choice('.?$')}" for _ in range(sum(beginnings.values()))]
    places = [begin for begin, count in beginnings.items() for _ in range(count)]
    return [RowQuestion(f"{a}{p}{end}", problem=p) for a, p in zip(places, problems, strict=True)]


def unsaid(questions: list[RowQuestion]) -> list[RowQuestion]:
    return [RowQuestion(q.user, q.system, q.budget) for q in questions]


@pytest.mark.parametrize(
    ("beginnings", "end"),
    [
        ({"Be brief.\n": 20, "Be exact.\nUse words.\n": 10}, "\n\nBox the answer."),
        ({"Solve this.\n\nBe brief.\n\n": 20, "Solve this.\n\nShow all steps.\n\n": 20}, ""),
        ({"Be brief. Problem: ": 6, "Show all. Question: ": 4}, "\n\nBox the answer."),
        ({"Solve ": 20, "Compute ": 20}, "\n\nBox the answer."),
        ({"": 20, "Be brief.\n": 20}, "\n\nBox the answer."),
    ],
)
def test_prompts_with_one_ending_are_not_taken_for_one(beginnings: dict[str, int], end: str) -> None:
    """Each has its template where the rows say their problems, or where whole lines differ; else they are refused."""
    questions = solved(beginnings, end)
    right = [(template(f"{a}{{problem}}{end}", "cot").digest, n) for a, n in beginnings.items()]
    assert sorted(counts(questions, "cot")) == sorted(right)
    recovery = recover(unsaid(questions), "cot")
    recovered = [(prompt.template.digest, prompt.rows) for prompt in recovery.prompts]
    if all(begin.endswith("\n") for begin in beginnings):
        assert sorted(recovered) == sorted(right)
    else:
        assert recovered == []
        assert "problems begin with" in next(iter(recovery.doubts))


def test_prompts_with_one_beginning_are_not_taken_for_one() -> None:
    questions = [
        RowQuestion(f"Solve this.\n\n{q.problem}\n\n{end}")
        for end, count in (("Box it.", 20), ("Use no code at all.", 10))
        for q in solved({"": count}, end)
    ]
    right = [template(f"Solve this.\n\n{{problem}}\n\n{end}", "cot") for end in ("Box it.", "Use no code at all.")]
    assert counts(questions, "cot") == [(right[0].digest, 20), (right[1].digest, 10)]
    rng, prompts = (
        random.Random(12),
        [template(LONG.replace("Steps:", f"{word} it.\n\nSteps:")) for word in ("Do", "Try")],
    )
    selections = [ask(prompt, rng) for prompt in prompts for _ in range(20)]
    assert sorted(counts(selections)) == sorted((prompt.digest, 20) for prompt in prompts)


@pytest.mark.parametrize(
    ("begin", "first", "end", "doubt"),
    [
        ("Solve this.\n\n", "Find the ", "\nBox it.", "'Find the' stands beside every problem"),
        ("Solve this.\n\n", "", " Give m + n.", "'Give m + n.' stands beside every problem"),
        ("Solve this.\n\n<p>", "", "</p>\nBox it.", ""),
    ],
)
def test_words_that_may_be_of_all_problems_are_refused(begin: str, first: str, end: str, doubt: str) -> None:
    questions = solved({begin: 20}, end, first)
    right = [(template(f"{begin}{{problem}}{end}", "cot").digest, 20)]
    assert counts(questions, "cot") == right
    recovery = recover(unsaid(questions), "cot")
    assert any(why.startswith(doubt) for why in recovery.doubts) if doubt else counts(unsaid(questions), "cot") == right
    assert bool(recovery.prompts) is not bool(doubt)


def test_problems_that_differ_in_numbers_alone_are_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, texts = tmp_path / "rows.jsonl", [f"What is {n} times {n + 5}?" for n in range(20)]
    rows = [{"input": f"Solve this.\n\n{p}\n\nBox it.", "output": "<think>a</think>\\boxed{1}"} for p in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["data", "prompt", str(file)]) is ExitCode.USER_ERROR
    shown = capsys.readouterr().err
    assert "'What is' stands beside every problem" in shown
    assert "a column problem" in shown
    file.write_text("".join(json.dumps(row | {"problem": p}) + "\n" for row, p in zip(rows, texts, strict=True)))
    assert run(["data", "prompt", str(file)]) is ExitCode.OK
    assert capsys.readouterr().out == "Solve this.\n\n{problem}\n\nBox it.\n"
