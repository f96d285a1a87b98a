"""The blocks between the model's own words: program output, notices of the code budget, and judgments.

The wording is that of the released OpenMath-Nemotron models and of nvidia/OpenMathReasoning. The models were trained
on these texts and the data contains them: changing one makes both unusable.
"""

from __future__ import annotations

import re

_REMAINING = (
    "Remaining code executions: {n}. You will not be able to call code when you run out of executions, so use it "
    "wisely. Note that you can still continue solving the problem without code after that."
)
_EXHAUSTED = (
    "You have run out of code executions! You can no longer write or execute code. Now you should continue solving "
    "the problem by relying on your mathematical reasoning and analytical skills."
)
_REMAINING_PATTERN = re.compile(r"Remaining code executions: ([0-9]{1,9})\.")
JUDGMENT = re.compile(r"(?i:judge?ment)[*_]{0,3}:[\s*_]{0,8}\[?([0-9]+)\]?")  # emphasis does not matter


def output_block(output: str) -> str:
    """Return what the tool writes after a code block: the program's output in a fence.

    It starts with the newline that closes the tag's line. The model's own ids end at the tag, which is a single token
    in Qwen2.5, and "\\n\\n" then is the token that a tokenizer makes of the whole text.
    """
    if output and not output.endswith("\n"):
        output += "\n"
    return f"\n\n```output\n{output}```\n"


def notice_block(remaining: int) -> str:
    """Return the block that tells the model how many executions it has left."""
    return f"```system\n{notice(remaining)}\n```\n"


def notice(remaining: int) -> str:
    """Return what the model is told of the executions that it has left."""
    return _REMAINING.format(n=remaining) if remaining > 0 else _EXHAUSTED


def budget_of(text: str) -> int | None:
    """Return the execution budget that a stored TIR solution was generated under; None where it holds no notice."""
    first = _REMAINING_PATTERN.search(text)
    exhausted = text.find(_EXHAUSTED)
    if first is not None and (exhausted < 0 or first.start() < exhausted):
        return int(first.group(1)) + 1
    return 1 if exhausted >= 0 else None


def judgment_of(text: str) -> int | None:
    """Return the index that a GenSelect answer chose: the last ``Judgment: IDX``, with or without brackets."""
    judgments = JUDGMENT.findall(text)
    return int(judgments[-1]) if judgments and len(judgments[-1]) < 10 else None


def final_judgment_of(text: str) -> int | None:
    """Return the index that a GenSelect answer chose, where its judgments are all the same and nothing but emphasis and
    a full stop stands behind the last; None otherwise."""
    judgments = list(JUDGMENT.finditer(text))
    agree = len({judgment[1] for judgment in judgments}) == 1
    return judgment_of(text) if agree and not text[judgments[-1].end() :].strip(" \t\r\n*_.`") else None
