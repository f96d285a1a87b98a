"""What a rule of ``solutions.filter`` is, and the solution that it looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

from nemo_openmath.chat import Author, Kind, Template, Transcript, load_template
from nemo_openmath.chat.transcript import PROSE
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.synthesis.solutions.filters.config import FilterConfig
from nemo_openmath.synthesis.solutions.filters.fences import Fence, fences_in
from nemo_openmath.synthesis.solutions.filters.final_answer import cut_after_answer


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What rules are set by: the stage's settings, and what it knows of all solutions together."""

    config: FilterConfig
    thinkers: frozenset[tuple[str, str]] = frozenset()
    """The (model, mode) pairs whose solutions must think, where ``think`` is auto."""


class Solution:
    """A generation as rules see it. What is derived from its text is derived once, where a rule asks for it.

    With ``cut`` its text ends where its final answer does.
    """

    def __init__(self, generation: Generation, *, cut: bool = False):
        self.generation, self._cut = generation, cut

    @cached_property
    def transcript(self) -> Transcript:
        whole = Transcript.from_json(self.generation.transcript, ids=False)
        return (cut_after_answer(whole, self.generation.predicted_answer) or whole) if self._cut else whole

    @cached_property
    def code_calls(self) -> int:
        """Blocks of code that were run, in what is left of the text."""
        if not self._cut:
            return self.generation.code_calls
        return min(self.generation.code_calls, len(self.transcript.code_blocks()))

    @cached_property
    def before_code(self) -> str:
        """What the model wrote before its first block of code."""
        parts: list[str] = []
        for segment in self.transcript.segments():
            if segment.kind is Kind.CODE:
                break
            if segment.kind in PROSE:
                parts.append(segment.text)
        return "".join(parts)

    @cached_property
    def fences(self) -> list[Fence]:
        """The fences of Markdown in the model's own words: neither the code that it called nor what that printed."""
        return fences_in(self.transcript.prose)

    @cached_property
    def printed(self) -> str:
        """All that the tool wrote."""
        return "".join(span.text for span in self.transcript.spans if span.author is Author.TOOL)

    @cached_property
    def problem(self) -> str:
        """The problem's text; the whole question where it was asked with another prompt than the shipped one."""
        question = "\n".join(message.content for message in self.transcript.messages)
        fields = _tir_prompt().match(question)
        return question if fields is None else fields["problem"]


@cache
def _tir_prompt() -> Template:
    return load_template("tir")


Judge = Callable[[Solution, RuleSettings], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One reason or several to drop a solution."""

    name: str
    reasons: tuple[str, ...]
    """What it counts drops under; ``...`` stands for what only a run knows."""
    judge: Judge
    """Returns the reason to drop a solution, None to keep it."""
    only_tir: bool

    @property
    def meaning(self) -> str:
        """The docstring of its function."""
        return self.judge.__doc__ or ""

    def reason(self, solution: Solution, settings: RuleSettings) -> str | None:
        """Return why the rule drops a solution, None where it does not."""
        if self.only_tir and solution.generation.mode is not Mode.TIR:
            return None
        return self.judge(solution, settings)


RULES: dict[str, Rule] = {}
"""The rules by their names."""


def rule(name: str, *reasons: str, only_tir: bool = False) -> Callable[[Judge], Judge]:
    """Make a function a rule. With ``only_tir`` solutions of other modes pass it."""

    def add(judge: Judge) -> Judge:
        RULES[name] = Rule(name, reasons, judge, only_tir)
        return judge

    return add
