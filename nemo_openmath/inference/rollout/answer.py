"""The answer that a generation gave."""

from __future__ import annotations

from nemo_openmath.chat import Transcript
from nemo_openmath.core.records import Generation
from nemo_openmath.grading import extract_answer


def answer_of(generation: Generation, *, fallback: bool = False) -> str | None:
    """Return the boxed answer of a solution. An unfinished one has none: its box was not its last word.

    ``fallback``: also accept "the final answer is ..." where there is no box.
    """
    if not generation.finished:
        return None
    return extract_answer(Transcript.from_json(generation.transcript, ids=False).said, fallback=fallback).answer
