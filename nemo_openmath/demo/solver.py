r"""The stand-in's part in making solutions: reasoning by hand, with code, choosing among candidates, summaries.

A solution is ``<think>reasoning</think>summary`` and its summary ends with ``\boxed{answer}``. Tool-integrated
solutions are written turn by turn: a turn ends at ``</tool_call>``, and the next one starts from what was put
behind it, which is read and not known in advance.
"""

from __future__ import annotations

import random
import re

from nemo_openmath.chat import Kind, Transcript
from nemo_openmath.chat.blocks import judgment_of
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.demo import world
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.demo.world import Item

_OPENINGS = ("Let me compute this.", "I write a program.", "Code can count this.")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_CANDIDATE = re.compile(r"^\W*Solution\s+(\d+)\b[^\n]*$", re.M)
_LEAP = re.compile(r"repeat|so on|Written|\d{3,}")  # what the steps of a solution skip, or cannot do in the head
_NUMBER = re.compile(r"-?\d+")
_TALK = "Wait, let me think again. " * 400


def cot(item: Item | None, rng: random.Random, config: TeacherConfig) -> str:
    """Write a solution by hand. Its last number is wrong at the stated rate, which is higher where the steps leap."""
    if rng.random() < config.unfinished:
        return THINK_START + _TALK
    if item is None:
        return _guess(rng)
    error = config.cot_error_hard if _LEAP.search(item.steps) else config.cot_error
    steps, answer = item.steps, item.answer
    if rng.random() < error:
        answer = _near(answer, rng)
        steps = answer.join(steps.rsplit(item.answer, 1))
    return f"{THINK_START}{steps}\n{_end(answer)}"


def tir(item: Item | None, budget: int, so_far: str, rng: random.Random, config: TeacherConfig) -> str:
    """Write the next turn of a tool-integrated solution, up to ``</tool_call>`` or the end."""
    if rng.random() < config.unfinished:
        return _TALK if so_far else THINK_START + _TALK
    segments = Transcript.from_text((), so_far).segments()
    codes = [s.body for s in segments if s.kind is Kind.CODE]
    if item is None:
        return _guess(rng)
    if codes:
        outputs = [s.body.strip() for s in segments if s.kind is Kind.OUTPUT]
        return _after_output(item, codes[-1], outputs[-1] if outputs else "", budget - len(codes), rng, config)
    if budget < 1 or rng.random() < config.no_code:
        return cot(item, rng, config)
    return f"{THINK_START}{rng.choice(_OPENINGS)}{_call(_first_program(item, budget, rng, config))}"


def _first_program(item: Item, budget: int, rng: random.Random, config: TeacherConfig) -> str:
    u = rng.random()
    if u < config.wrong_code:
        return rng.choice(item.wrong_programs)
    if u < config.wrong_code + config.broken_code:
        return item.program.removesuffix(")")
    several = len(item.stages) > 1
    if rng.random() < (config.staged if several else config.reworded_code) and budget >= len(item.stages):
        return item.stages[0]
    return item.program


def _after_output(item: Item, code: str, output: str, left: int, rng: random.Random, config: TeacherConfig) -> str:
    """Read the output: an answer, the first of two steps, nothing found, or an error."""
    if left <= 0 and rng.random() < config.over_budget:
        return f"Let me check.{_call(item.program)}"
    number = _NUMBER.fullmatch(output)
    first_of_two = len(item.stages) > 1 and code == item.stages[0]
    if number and first_of_two and "{unknown}" in item.stages[1]:
        if left > 0:
            return f"So s = {output}.{_call(item.stages[1].replace('{unknown}', output))}"
        return f"So s = {output}, and the rest I must guess.\n{_end(_near(item.answer, rng))}"
    if number:
        answer = _near(output, rng) if rng.random() < config.ignored_output else output
        return f"So it is {answer}.\n{_end(answer)}"
    if left <= 0:
        return f"No program is left, so I must guess.\n{_end(_near(item.answer, rng))}"
    if first_of_two:
        return f"None found, so I search further.{_call(item.stages[1])}"
    return f"This did not work, so I try again.{_call(item.program)}"


def summarize(solution: str, rng: random.Random, config: TeacherConfig) -> str:
    """Write how the answer was found, and the answer."""
    boxes = _BOX.findall(solution)
    if not boxes:
        return "The solution comes to no answer."
    answer = boxes[-1]
    segments = Transcript.from_text((), solution).segments()
    outputs = [s.body.strip() for s in segments if s.kind is Kind.OUTPUT]
    if not outputs:
        how = "Solved by hand"
    elif outputs[-1] != answer:
        how = "A program did not settle it"
    else:
        how = rng.choice(("A program printed it", "Computed by a program"))
        if len(outputs) > 1:
            how = rng.choice((f"Found by program {len(outputs)}", f"Computed by {len(outputs)} programs"))
    if rng.random() < config.summarize_error:
        answer = _near(answer, rng)
    return f"{how}. The answer is \\boxed{{{answer}}}."


def summarize_comparison(comparison: str, rng: random.Random, config: TeacherConfig) -> str:
    """Write what was compared, and the judgment; an error gives another one."""
    chosen = judgment_of(comparison)
    if chosen is None:
        return "The comparison comes to no judgment."
    if rng.random() < config.summarize_error:
        chosen += rng.choice((1, 2))
    answers = re.search(r"Answers: [^\n]*", comparison)
    return f"{answers.group(0) if answers else 'The candidates were compared.'}\nJudgment: {chosen}"


def genselect(item: Item | None, solutions: str, count: int, rng: random.Random, config: TeacherConfig) -> str:
    """List the candidates' answers and choose the first right one, where there is one and no error strikes."""
    answers = _answers(solutions, count)
    right = [i for i, answer in enumerate(answers) if item is not None and answer == item.answer]
    chosen = rng.choice(right) if right and rng.random() >= config.genselect_error else rng.randrange(len(answers))
    chosen = answers.index(answers[chosen])  # of equal answers the first: a choice that can be learnt
    listed = " ".join(f"{i}: {answer or 'none'}." for i, answer in enumerate(answers))
    return f"{THINK_START}Answers: {listed} I trust {chosen}.\n{THINK_END}Judgment: {chosen}"


def _answers(solutions: str, count: int) -> list[str | None]:
    """The last boxed answer of each candidate; candidates start at a line "Solution IDX"."""
    heads = list(_CANDIDATE.finditer(solutions))
    if not heads:
        boxes = _BOX.findall(solutions)
        return [*boxes, *[None] * (count - len(boxes))] if boxes else [None] * max(count, 1)
    ends = [head.start() for head in heads[1:]] + [len(solutions)]
    parts = [_BOX.findall(solutions[head.end() : end]) for head, end in zip(heads, ends, strict=True)]
    return [part[-1] if part else None for part in parts]


def find_item(problem: str) -> Item | None:
    """Return the problem of the world that a prompt's problem text poses."""
    item = world.parse(problem)
    if item is not None:
        return item
    statements = world.find(problem)
    return statements[0][2] if statements else None


def _call(code: str) -> str:
    return f"\n{CODE_START}\n{code}\n{CODE_END}"


def _end(answer: str) -> str:
    return f"{THINK_END}The answer is \\boxed{{{answer}}}."


def _near(answer: str, rng: random.Random) -> str:
    return str(int(answer) + rng.choice((-2, -1, 1, 2, 3, 10))) if _NUMBER.fullmatch(answer) else "0"


def _guess(rng: random.Random) -> str:
    return f"{THINK_START}I do not know how to read this problem, so I guess.\n{_end(str(rng.randint(0, 20)))}"
