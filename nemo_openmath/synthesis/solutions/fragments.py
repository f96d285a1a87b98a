"""The parts of a solution around its blocks of code, as they are shown to whoever judges the code (paper section 3.2).

    text before the block, at most ``context_chars`` characters and not beyond the block before
    ```python ... ```      the program
    ```output ... ```      what it printed
    text behind it, at most ``context_chars`` characters and not beyond the next block

The program stands in a fence and not in the tags of our protocol, and tags of thinking are left out: whoever judges may
be a model to which they are control tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_openmath.chat import Kind, Transcript
from nemo_openmath.chat.transcript import PROSE
from nemo_openmath.core.tags import THINK_END, THINK_START

_BACKTICKS = re.compile(r"`{3,}")


@dataclass(frozen=True, slots=True)
class Fragment:
    """One block of code with what it printed and the text around it."""

    text: str
    failed: bool
    """Whether the block ended in an error, or was not run: then nobody judges it."""


def is_error(output: str) -> bool:
    """Return whether what a block printed is the message of an error."""
    return "Traceback" in output or "Error:" in output


def fragments_of(transcript: Transcript, context_chars: int) -> list[Fragment]:
    """Return a fragment for each block of code, in their order."""
    segments = transcript.segments()
    prose = [""]  # before the first block, between blocks, and behind the last
    blocks: list[tuple[str, str | None]] = []  # program, output
    for segment in segments:
        if segment.kind is Kind.CODE:
            blocks.append((segment.body, None))
            prose.append("")
        elif segment.kind is Kind.OUTPUT and blocks:
            code, output = blocks[-1]
            blocks[-1] = (code, segment.body if output is None else output + segment.body)
        elif segment.kind in PROSE:
            prose[-1] += segment.text.replace(THINK_START, "").replace(THINK_END, "")
    fragments = []
    for (code, output), before, behind in zip(blocks, prose, prose[1:], strict=False):
        text = _fragment(before[max(0, len(before) - context_chars) :], code, output or "", behind[:context_chars])
        fragments.append(Fragment(text, failed=output is None or is_error(output)))
    return fragments


def _fragment(before: str, code: str, output: str, behind: str) -> str:
    longest = max((len(run) for run in _BACKTICKS.findall(code + "\n" + output)), default=2)
    mark = "`" * (longest + 1)
    parts = (before.strip(), f"{mark}python\n{code}\n{mark}\n\n{mark}output\n{output.strip()}\n{mark}", behind.strip())
    return "\n\n".join(part for part in parts if part)
