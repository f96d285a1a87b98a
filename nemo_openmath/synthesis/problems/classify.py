"""Ask what kind of problem each is, and drop those that no answer can check (paper section 2.1, step 2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import Case, ClassifyCase
from nemo_openmath.synthesis.problems.choices import may_list_choices
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage, Rejected

QUESTIONS = ("invalid", "multiple-choice", "binary", "proof")
CATEGORIES = (*QUESTIONS, "answer")
DOUBTED = "validity_unread"
"""Key in ``extra`` of a problem whose reply to the question "invalid" could not be read: it counts as valid."""
NO_VERDICT = Rejected("the reply is no verdict of yes or no")
NO_CHOICES = Rejected("the verdict is multiple choice, and no choices are listed")
_VERDICT = re.compile(r"[\s*_`>#-]*(?:verdict\s*[*_`]*\s*:)[\s*_`\"']*(yes|no)\b[\s*_`\"'.!]*", re.I)


@dataclass(frozen=True)
class ClassifyConfig(PromptedConfig):
    """Settings of ``problems.classify``."""

    questions: tuple[str, ...] = QUESTIONS
    """What is asked, each with a template of its own, in this order: invalid, multiple-choice, binary, proof. The first
    that is answered with yes is the category, and ends the questions. A problem of none is of the category answer."""
    drop: tuple[str, ...] = ("multiple-choice", "binary", "invalid")
    """Categories that are dropped. The others of proof, multiple-choice, binary, invalid and answer go on. Paper
    section 2.1."""
    invalid_prompt: Path | None = None
    """A template file of the user's own for the question whether a problem is invalid. null: the shipped one,
    classify-invalid."""
    multiple_choice_prompt: Path | None = None
    """The same for the question whether it is multiple choice. null: classify-multiple-choice."""
    binary_prompt: Path | None = None
    """The same for the question whether its answer is yes or no. null: classify-binary."""
    proof_prompt: Path | None = None
    """The same for the question whether it asks for a proof. null: classify-proof."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.drop) - set(CATEGORIES):
            raise ValueError(f"drop: unknown category {sorted(unknown)[0]!r}; known: {', '.join(CATEGORIES)}")
        if unknown := set(self.questions) - set(QUESTIONS):
            raise ValueError(f"questions: unknown category {sorted(unknown)[0]!r}; known: {', '.join(QUESTIONS)}")
        if not self.questions or len(set(self.questions)) < len(self.questions):
            raise ValueError(f"questions: name each at most once, and at least one of {', '.join(QUESTIONS)}")


class Classify(PromptedStage[ClassifyConfig, Problem]):
    """Give each problem its category, and drop the categories that the recipe names.

    The reason of such a drop is the category. A verdict that a problem is multiple choice is asked for again where it
    lists nothing that could be choices (choices.py). Whether a problem is invalid is in doubt answered with no: where
    the replies to that question cannot be read the problem goes on, marked in ``extra``, and is counted in the metrics.
    """

    kind = "problems.classify"
    case = ClassifyCase
    version = 3  # 2: one question a category; 3: no choice among nothing
    Config = ClassifyConfig
    ports = {"problems": "extracted problems"}
    takes = {"problems": "Problem"}
    record = Problem

    def prompts(self) -> Mapping[str, Path | None]:
        own = {name: getattr(self.config, f"{name.replace('-', '_')}_prompt") for name in self.config.questions}
        return {f"classify-{name}": path for name, path in own.items()}

    def tells(self, case: Case) -> bool:
        return isinstance(case, ClassifyCase) and case.category in (*self.config.questions, "answer")

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for problem in context.read("problems", Problem))

    def outcome(self, result: Result) -> str:
        record = next(iter(result.records), None)
        return record.category or "kept" if isinstance(record, Problem) else super().outcome(result)

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        parts = (read_file(file, Problem) for file in context.own_files())
        context.metrics[DOUBTED] = sum(DOUBTED in problem.extra for part in parts for problem in part)

    async def process(self, unit: Problem, context: StageContext) -> Result:
        category, problem = "answer", unit
        for name in self.config.questions:
            parse = partial(_choosing, unit.problem) if name == "multiple-choice" else parse_verdict
            verdict, reply = await self.question(
                context, f"{unit.id}:{name}", parse, f"classify-{name}", problem=unit.problem
            )
            if isinstance(verdict, Rejected):
                if name != "invalid":
                    return Result(drops=[Drop(verdict.reason, f"{name}: {reply}")])
                problem = replace(problem, extra=problem.extra | {DOUBTED: True})
            elif verdict:
                category = name
                break
        if category in self.config.drop:
            return Result(drops=[Drop(category, unit.problem)])
        return Result([problem.with_(category=category)])


def _choosing(problem: str, reply: str) -> bool | Rejected:
    verdict = parse_verdict(reply)
    return NO_CHOICES if verdict is True and not may_list_choices(problem) else verdict


def parse_verdict(text: str) -> bool | Rejected:
    """Return whether the reply ends with the line ``Verdict: yes``, or is this one word. Any other verdict in it makes
    it none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and (word := lines[0].strip(" \t*_`.!\"'").lower()) in ("yes", "no"):
        return word == "yes"
    verdicts = [match[1].lower() for line in lines if (match := _VERDICT.fullmatch(line))]
    if not verdicts or _VERDICT.fullmatch(lines[-1]) is None or len(set(verdicts)) > 1:
        return NO_VERDICT
    return verdicts[-1] == "yes"
