"""Known cases of the tiny world, for stages that ask the stand-in teacher: it understands no other problems.

``python -m nemo_openmath.demo.controls FILE [--seed N] [--cases N]`` writes a bank (synthesis/controls/bank.py).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.demo import forms
from nemo_openmath.demo.forms import Posed
from nemo_openmath.demo.world import Item, make_item, make_problems, sample

Row = dict[str, Any]

_TALK = (
    "Does anybody have the scores of round {n}?",
    "My copy of the book has no page {n}. Is yours the same?",
    "Thanks to the {n} people who came to the math circle!",
    "Sorry, I posted this in the wrong section {n} times.",
)


def make_cases(seed: int, count: int) -> list[Row]:
    """Return ``count`` cases for each stage that asks a model. All differ; none is of a problem of the forum or the
    benchmark (they are of the pool ``base``)."""
    rng = random.Random(f"controls:{seed}")
    items = iter(make_problems(seed, 12 * count, pool="base"))
    rows: list[Row] = []
    for stage, draw in _STAGES.items():
        texts: set[str] = set()
        while len(texts) < count:
            row = draw(len(texts), items, rng)
            if (text := str(row)) not in texts:
                texts.add(text)
                rows.append({"stage": stage, "id": f"tiny-{len(texts):04d}", **row})
    return rows


def write_cases(file: Path, seed: int, count: int) -> None:
    """Write a bank of :func:`make_cases`."""
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in make_cases(seed, count)))


def _extract(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    if number % 2:
        return {"forum_post": rng.choice(_TALK).format(n=rng.randint(2, 9999)), "problems": []}
    texts = [next(items).statement for _ in range(rng.choice((1, 1, 2)))]
    body = texts if len(texts) == 1 else [f"{at}) {text}" for at, text in enumerate(texts, 1)]
    return {"forum_post": "\n".join(["Hi all!", *body, "Thanks!"]), "problems": texts}


def _classify(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    draws: tuple[Callable[[], Posed], ...] = (
        lambda: forms.ask(next(items)),
        lambda: forms.as_proof(next(items), rng),
        lambda: forms.as_choice(next(items), rng),
        lambda: forms.as_question(next(items), rng),
        lambda: forms.broken(next(items), rng),
    )
    posed = draws[number % len(draws)]()
    return {"problem": posed.text, "category": str(posed.form)}


def _convert(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    posed = forms.beyond(rng) if number % 2 else forms.as_proof(next(items), rng)
    answer = None if posed.item is None else posed.item.answer
    return {"problem": posed.text, "forum_discussions": "Post 1:\nNice problem!", "expected_answer": answer}


def _answer(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    item = next(items)
    wrong = str(int(item.answer) + rng.randint(1, 9))
    if number % 2:
        replies = ["Nice problem!"] if number % 4 == 1 else [f"I get {wrong}.", f"I get {item.answer}."]
    else:
        replies = [f"I get {wrong}.", f"No, you missed a case. It is {item.answer}."]
    discussion = "\n\n".join(f"Post {at}:\n{reply}" for at, reply in enumerate(replies, 1))
    answer = None if number % 2 else item.answer
    return {"problem": item.statement, "forum_discussions": discussion, "expected_answer": answer}


def _decontaminate(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    item = next(items)
    if number % 2 == 0:
        return {"problem": item.statement, "benchmark": item.reworded().statement, "same": True}
    other = item
    while other.key == item.key:
        other = sample(rng, kind=item.kind, pool="base")
    statement = make_item(item.kind, item.params).statement
    return {"problem": statement, "benchmark": make_item(other.kind, other.params).statement, "same": False}


def _judge(number: int, items: Iterator[Item], rng: random.Random) -> Row:
    item = next(items)
    other = item.answer if number % 2 == 0 else str(int(item.answer) + rng.randint(1, 9))
    return {
        "problem": item.statement,
        "predicted_answer": f"${other}$",
        "expected_answer": item.answer,
        "equal": number % 2 == 0,
    }


_STAGES: Mapping[str, Callable[[int, Iterator[Item], random.Random], Row]] = {
    "problems.extract": _extract,
    "problems.classify": _classify,
    "problems.convert_proofs": _convert,
    "problems.extract_answers": _answer,
    "problems.decontaminate": _decontaminate,
    "judging.judge": _judge,
}


def main(arguments: list[str] | None = None) -> int:
    """Write a bank: ``python -m nemo_openmath.demo.controls FILE [--seed N] [--cases N]``."""
    parser = argparse.ArgumentParser(prog="python -m nemo_openmath.demo.controls", description=__doc__)
    parser.add_argument("file", type=Path, help="where the cases are written")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=48, help="cases for each stage")
    options = parser.parse_args(arguments)
    try:
        write_cases(options.file, options.seed, options.cases)
    except OSError as error:
        print(UserError(f"cannot be written ({error.strerror})", file=options.file), file=sys.stderr)
        return int(UserError.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
