"""SFT rows for tests: problems of a sum, solved with and without code, of very different lengths."""

from __future__ import annotations

import random
from pathlib import Path

from nemo_openmath.chat import Author, Message, Span, Transcript
from nemo_openmath.core.records import SftRow
from nemo_openmath.core.records.store import record_lines, write_records
from nemo_openmath.core.records.types import Problem


def make_rows(count: int, seed: int = 0, longest: int = 40) -> list[SftRow]:
    """``longest``: sentences of reasoning at most (of about 12 tokens each)."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        a, b = rng.randrange(1000), rng.randrange(1000)
        problem = Problem.make(f"({i}) What is {a} + {b}? größer 数学 😀")
        reasoning = "<think> " + f"First, note that {a} + {b} = {a + b}. " * rng.randrange(1, longest)
        answer = f"</think> The answer is \\boxed{{{a + b}}}."
        mode = rng.choice(["cot", "cot", "tir", "genselect"])
        if mode == "tir":
            pieces = (
                Span(Author.MODEL, f"{reasoning}<tool_call>\nprint({a} + {b})\n</tool_call>"),
                Span(Author.TOOL, f"\n\n```output\n{a + b}\n```\n"),
                Span(Author.MODEL, answer),
            )
        else:
            pieces = (Span(Author.MODEL, reasoning + answer),)
        transcript = Transcript((Message("user", f"Solve the following math problem.\n\n{problem.problem}"),), pieces)
        rows.append(SftRow.make(problem, problem_id=problem.id, mode=mode, transcript=transcript.to_json()))
    return rows


def store_rows(folder: Path, rows: list[SftRow]) -> Path:
    write_records(folder, rows)
    return folder


def read_lines(folder: Path) -> list[bytes]:
    """The lines of all records of a folder, as they are stored."""
    return [line for _, _, line in record_lines([folder])]
