"""Plain text about the world as a base model meets it on the web: forums, notebooks, drills. Nothing of the recipe.

No document holds a chat tag, a tool tag, a box or a notice, and every problem is of the ``base`` pool. What a base
model brings along is here (how such problems are worded, which program goes with which, how numbers are copied,
arithmetic with small numbers); what the recipe teaches is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.tags import CODE_END
from nemo_openmath.demo import solver, world
from nemo_openmath.demo.kinds import digit_sum, divisors
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.demo.world import Item

_ASK = ("Problem: {statement}", "{statement}", "Question. {statement}")
_TELL = ("Solution: {steps}", "{steps}", "Answer. {steps}")
_CODE = ("In Python:\n{program}\nIt prints {answer}.", "{program}\n# {answer}", "Code:\n{program}\nOutput:\n{answer}")
_NAMES = ("n", "k", "a", "b", "x", "limit", "total")


def documents(seed: int, *, first: bool = False, pool: str = "base") -> Iterator[str]:
    """Yield documents without end, drawn from the seed.

    ``first``: only those that teach to copy numbers, which a small model had better learn before anything else.
    """
    rng = random.Random(f"corpus:{seed}:{first}")
    copying = (_notebook, _notebook, _notebook, _list, _list, _list, _assignments)
    every = (*4 * (_notebook,), *2 * (_forum,), _drill, _assignments, _list)
    while True:
        yield rng.choice(copying if first else every)(rng, pool)


def _notebook(rng: random.Random, pool: str) -> str:
    """A problem, a program for it, what the program prints; sometimes two programs one after the other."""
    item = world.sample(rng, pool=pool)
    ask = rng.choice(_ASK).format(statement=item.statement)
    if len(item.stages) > 1 and rng.random() < 0.5:
        return "\n".join([ask, *_two_programs(item)])
    program = rng.choice((item.program, item.program, item.stages[0])) if len(item.stages) == 1 else item.program
    return f"{ask}\n{rng.choice(_CODE).format(program=program, answer=item.answer)}"


def _two_programs(item: Item) -> list[str]:
    first, second = item.stages
    if "{unknown}" in second:
        total = str(sum(divisors(item.params[0])))
        return [first, f"# {total}", second.replace("{unknown}", total), f"# {item.answer}"]
    if int(item.answer) < 50:
        return [first, f"# {item.answer}"]
    return [first, "# None", second, f"# {item.answer}"]


def _forum(rng: random.Random, pool: str) -> str:
    """A problem and a solution by hand; mostly easy ones, which is what people solve by hand."""
    item = world.sample(rng, rng.choice((1, 1, 1, 2, 3)), pool=pool)
    ask = rng.choice(_ASK).format(statement=item.statement)
    return f"{ask}\n{rng.choice(_TELL).format(steps=item.steps)}\nThe answer is {item.answer}."


def _drill(rng: random.Random, pool: str) -> str:
    """Lines of small arithmetic."""
    return "\n".join(_fact(rng) for _ in range(8))


def _fact(rng: random.Random) -> str:
    a, b, m = rng.randint(2, 40), rng.randint(2, 9), rng.randint(2, 12)
    choice = rng.randrange(7)
    if choice == 0:
        return f"{a} * {b} = {a * b}"
    if choice == 1:
        return f"{a * b + rng.randrange(b)} // {b} = {a}"
    if choice == 2:
        base, power = rng.randint(2, 9), rng.randint(2, 4)
        return f"{base}^{power} = {base**power}"
    if choice == 3:
        n = rng.randint(3, 99)
        return f"{n} leaves {n % m} modulo {m}"
    if choice == 4:
        n = rng.randint(3, 60)
        return f"The divisors of {n} are {', '.join(map(str, divisors(n)))}. Their sum is {sum(divisors(n))}."
    if choice == 5:
        n = rng.randint(10, 2000)
        return f"The digits of {n} add up to {digit_sum(n)}."
    return f"{a} - {min(a, b)} = {a - min(a, b)}"


def _assignments(rng: random.Random, pool: str) -> str:
    """Numbers that stand in a text and again in code."""
    names = rng.sample(_NAMES, rng.randint(2, 4))
    values = [rng.randint(2, 10 ** rng.randint(1, 4)) for _ in names]
    told = ", ".join(f"{name} is {value}" for name, value in zip(names, values, strict=True))
    code = "\n".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
    at = rng.randrange(len(names))
    return f"Here {told}.\n{code}\nprint({names[at]})\n# {values[at]}"


def _list(rng: random.Random, pool: str) -> str:
    """A list of numbers, twice."""
    text = " ".join(str(rng.randrange(10 ** rng.randint(1, 4))) for _ in range(rng.randint(2, 6)))
    return f"{text}\n{text}"


def recipe_texts(seed: int, count: int) -> Iterator[str]:
    """Yield what the student meets in the recipe: turns of solutions as the stand-in teacher writes them, and what is
    put between them.

    The student's tokenizer is trained on it, never its base checkpoint.
    """
    rng = random.Random(f"recipe-texts:{seed}")
    rates = TeacherConfig(unfinished=0)
    for _ in range(count):
        item = world.sample(rng, pool="base")
        turns = [solver.tir(item, 2, "", rng, rates)]
        if turns[0].endswith(CODE_END):
            turns.append(output_block(item.answer) + notice_block(1))
            turns.append(solver.tir(item, 2, "".join(turns), rng, rates))
        answer = solver.cot(item, rng, rates)
        summaries = [solver.summarize(text, rng, rates) for text in ("".join(turns), answer)]
        candidates = "\n\n".join(f"Solution {at}:\n{text}" for at, text in enumerate(summaries))
        yield "\n".join(("<|im_start|>user", "<|im_start|>system", "<|im_start|>assistant"))
        yield f"{''.join(turns)}\n{answer}\n{candidates}"
        yield solver.genselect(item, candidates, 2, rng, rates)
