"""Show a solution in one line, to the person who looks at an example of what was dropped."""

from __future__ import annotations

from nemo_openmath.core.records import Generation
from nemo_openmath.core.records.bodies import loaded

_CHARACTERS = 300


def shown(generation: Generation, *, question: bool = True) -> str:
    """Return what was answered, what was expected, and the end of the question, where the problem stands. Without
    ``question`` its id stands there, and the transcript is not read."""
    answered = "no answer" if generation.predicted_answer is None else f"answered {generation.predicted_answer}"
    expected = "" if generation.expected_answer is None else f", expected {generation.expected_answer}"
    if not question:
        return f"{answered}{expected}: {generation.problem_id}"
    messages = loaded(generation.transcript).get("messages") or []
    asked = " ".join(str(messages[-1].get("content", "")).split()) if messages else generation.problem_id
    cut = asked if len(asked) <= _CHARACTERS else f"... {asked[-_CHARACTERS:]}"
    return f"{answered}{expected}: {cut}"
