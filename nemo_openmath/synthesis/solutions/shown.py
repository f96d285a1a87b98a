"""Show a solution in one line, to the person who looks at an example of what was dropped."""

from __future__ import annotations

from nemo_openmath.core.records import Generation

_CHARACTERS = 300


def shown(generation: Generation) -> str:
    """Return what was answered, what was expected, and the end of the question, where the problem stands."""
    answered = "no answer" if generation.predicted_answer is None else f"answered {generation.predicted_answer}"
    expected = "" if generation.expected_answer is None else f", expected {generation.expected_answer}"
    messages = generation.transcript.get("messages") or []
    question = " ".join(str(messages[-1].get("content", "")).split()) if messages else generation.problem_id
    cut = question if len(question) <= _CHARACTERS else f"... {question[-_CHARACTERS:]}"
    return f"{answered}{expected}: {cut}"
