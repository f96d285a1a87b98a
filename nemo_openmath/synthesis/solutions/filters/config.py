"""Settings of ``solutions.filter``: which rules, in which order, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from nemo_openmath.core.bounds import NonNegativeInt, Share

RuleName = Literal[
    "finished",
    "answer",
    "correct",
    "length",
    "thinking",
    "code",
    "uncalled_code",
    "blocks",
    "over_budget",
    "box_before_code",
    "answer_before_code",
    "final_answer",
    "invented_output",
    "code_errors",
]
DEFAULT_RULES: tuple[RuleName, ...] = (
    "finished",
    "answer",
    "correct",
    "length",
    "thinking",
    "code",
    "blocks",
    "box_before_code",
)


@dataclass(frozen=True)
class FilterConfig:
    """Settings of ``solutions.filter``."""

    rules: tuple[RuleName, ...] = DEFAULT_RULES
    """The rules that a solution must pass, in the order in which they are asked: the first that drops it is its
    reason."""
    think: Literal["auto", "required", "optional"] = "auto"
    """Of the rule ``thinking``: which solutions must think (<think> ... </think>) before they answer. "auto": those of
    a model and mode of which at least half of the finished solutions think; the whole text of other models is the
    answer. "required": all. "optional": none. Thinking that was begun must have ended in any case."""
    max_blocks: NonNegativeInt = 0
    """Of the rule ``blocks``: most code blocks of a TIR solution; two in stage 0 of the paper. 0: any number. Paper
    section 3.2."""
    max_tokens: NonNegativeInt = 0
    """Of the rule ``length``: longest solution, in tokens that the model wrote. 0: any length."""
    cut_after_answer: bool = False
    """Cut what follows the box behind the words "Final Answer", before the rules look at the solution. One that has
    none stays whole; the rule ``final_answer`` drops it."""
    per_problem: NonNegativeInt = 0
    """Most solutions of a problem, chosen by a hash of their ids. 0: all."""
    easy: Share = 1.0
    """A problem is easy where a larger share of its samples than this passes the rules."""
    easy_per_problem: NonNegativeInt = 0
    """Most solutions of an easy problem, so that harder problems keep more. 0: as ``per_problem`` says."""

    retired: ClassVar[Mapping[str, str]] = {
        "correct": "it is the rule correct; to do without it, give rules: without correct",
        "code": "it is the rule code; to do without it, give rules: without code",
        "answer_after_code": "it is the rule box_before_code; to do without it, give rules: without box_before_code",
        "error_free": "it is the rule code_errors; name it in rules:",
    }
    """Settings that there are no more -> what to write."""

    def __post_init__(self) -> None:
        if twice := next((name for at, name in enumerate(self.rules) if name in self.rules[:at]), None):
            raise ValueError(f"rules: {twice!r} stands there twice")
        for setting, of in (("max_blocks", "blocks"), ("max_tokens", "length")):
            if getattr(self, setting) and of not in self.rules:
                raise ValueError(f"{setting} is set, and the rule {of!r} is not among rules: add it, or leave it out")
        if self.think != "auto" and "thinking" not in self.rules:
            raise ValueError("think is set, and the rule 'thinking' is not among rules: add it, or leave it out")
