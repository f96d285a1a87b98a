"""What a generation said before it was scored again, under one key of its ``extra``. Nothing else writes this key."""

from __future__ import annotations

from typing import Any

from nemo_openmath.core.records import Generation

BEFORE = "before"
UNKNOWN_COUNTS = "counts"
"""Key within the note: the counts of tokens and calls under a limit are not known, and those that stand are bounds."""
_FIELDS = (
    *("expected_answer", "predicted_answer", "verdict", "verdict_reason"),
    *("finish", "completion_tokens", "runner_tokens", "code_calls"),
)


def noted(old: Generation, new: Generation, *, counts_known: bool = True) -> Generation:
    """Return ``new`` with what it says otherwise than ``old``; unchanged where that is nothing."""
    changed: dict[str, Any] = {name: value for name in _FIELDS if (value := getattr(old, name)) != getattr(new, name)}
    if not counts_known:
        changed[UNKNOWN_COUNTS] = "unknown"
    extra = {key: value for key, value in new.extra.items() if key != BEFORE}
    return new.with_(extra=extra | ({BEFORE: changed} if changed else {}))


def before(generation: Generation) -> Generation:
    """Return a generation that was scored again with the answer, verdict and counts that it had before."""
    note = generation.extra.get(BEFORE, {})
    return generation.with_(**{name: value for name, value in note.items() if name in _FIELDS})


def counts_known(generation: Generation) -> bool:
    """Return whether the tokens and calls of a generation that was scored again are its own, and no bounds."""
    return UNKNOWN_COUNTS not in generation.extra.get(BEFORE, {})
