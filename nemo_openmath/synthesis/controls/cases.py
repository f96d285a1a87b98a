"""What a known case is, for each stage that asks a model: its unit, and what the stage should make of it.

A case is one line of a bank (bank.py). Its fields have the names that they have in records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, Thread
from nemo_openmath.core.stage import Result, Services
from nemo_openmath.synthesis.problems.statement import Statement

BENCHMARK = "control_benchmark"
"""Key in ``extra`` of a planted problem of ``problems.decontaminate``: what the benchmark has for it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(ABC):
    """A known case. Raises ValueError where its fields make none."""

    id: str
    """Its name in the bank."""
    sort: str = ""
    """What makes it hard, in words, such as ``wrong answer first``."""

    stage: ClassVar[str]
    """The kind of stage that it is for."""
    classes: ClassVar[tuple[str, ...]]
    """The classes whose sensitivity and specificity are told."""

    @property
    @abstractmethod
    def known(self) -> str:
        """The class that it is of."""

    @abstractmethod
    def unit(self, key: str) -> Any:
        """Return the payload of a unit of the stage, whose id is ``key``."""

    @abstractmethod
    async def class_of(self, result: Result, services: Services) -> str:
        """Return the class that the stage took it for, by what it left that is no drop; or what it left instead."""

    async def outcome(self, result: Result, services: Services) -> str:
        """Return the class that the stage took it for, or what it left instead: of a drop, its reason."""
        return await self.class_of(result, services) if result.records else result.drops[0].reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractCase(Case):
    """A post, and the problems that it poses."""

    forum_post: str
    problems: tuple[str, ...]
    """Empty where it poses none."""

    stage = "problems.extract"
    classes = ("problem",)

    @property
    def known(self) -> str:
        return "problem" if self.problems else "no problem"

    def unit(self, key: str) -> Thread:
        return Thread(id=key, forum_post=self.forum_post)

    async def class_of(self, result: Result, services: Services) -> str:
        texts = [record.problem for record in result.records if isinstance(record, Problem)]
        return "problem" if not self.problems or same_statements(texts, self.problems) else "another statement"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyCase(Case):
    """A problem, and its category."""

    problem: str
    category: str

    stage = "problems.classify"
    classes = ("proof", "multiple-choice", "binary", "invalid", "answer")

    def __post_init__(self) -> None:
        if self.category not in self.classes:
            raise ValueError(f"category {self.category!r} is unknown; known: {', '.join(self.classes)}")

    @property
    def known(self) -> str:
        return self.category

    def unit(self, key: str) -> Problem:
        return Problem(id=key, problem=self.problem)

    async def class_of(self, result: Result, services: Services) -> str:
        return _problem(result).category or "no category"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertCase(Case):
    """A proof with its discussion, and the answer of the problem that it becomes."""

    problem: str
    forum_discussions: str
    expected_answer: str | None
    """null where no problem with an answer can be made of it."""

    stage = "problems.convert_proofs"
    classes = ("converted",)

    @property
    def known(self) -> str:
        return "not convertible" if self.expected_answer is None else "converted"

    def unit(self, key: str) -> tuple[Problem, list[str]]:
        return Problem(id=key, problem=self.problem, category="proof"), [self.forum_discussions]

    async def class_of(self, result: Result, services: Services) -> str:
        return await _answered(result, self.expected_answer, "converted", services)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCase(Case):
    """A problem with its discussion, and the answer that this settles on."""

    problem: str
    forum_discussions: str
    expected_answer: str | None
    """null where it settles on none."""

    stage = "problems.extract_answers"
    classes = ("answer",)

    @property
    def known(self) -> str:
        return "no answer" if self.expected_answer is None else "answer"

    def unit(self, key: str) -> tuple[Problem, list[str]]:
        return Problem(id=key, problem=self.problem), [self.forum_discussions]

    async def class_of(self, result: Result, services: Services) -> str:
        return await _answered(result, self.expected_answer, "answer", services)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecontaminateCase(Case):
    """A problem and a problem of a benchmark of its own, and whether they are the same."""

    problem: str
    benchmark: str
    same: bool

    stage = "problems.decontaminate"
    classes = ("same",)

    @property
    def known(self) -> str:
        return "same" if self.same else "different"

    def unit(self, key: str) -> Problem:
        return Problem(id=key, problem=self.problem, extra={BENCHMARK: self.benchmark})

    async def class_of(self, result: Result, services: Services) -> str:
        return "different"

    async def outcome(self, result: Result, services: Services) -> str:
        if not result.records and result.drops[0].reason.startswith("in the benchmark"):
            return "same"
        return await super(DecontaminateCase, self).outcome(result, services)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCase(Case):
    """Two answers to a problem, and whether they mean the same. Two that are written alike are decided without asking,
    and are none."""

    problem: str
    predicted_answer: str
    expected_answer: str
    equal: bool

    stage = "judging.judge"
    classes = ("equal",)

    def __post_init__(self) -> None:
        if self.predicted_answer.strip() == self.expected_answer.strip():
            raise ValueError("the two answers are written alike, so no judge is asked")

    @property
    def known(self) -> str:
        return "equal" if self.equal else "not equal"

    def unit(self, key: str) -> tuple[Generation, str]:
        generation = Generation(
            id=key,
            problem_id=key,
            mode=Mode.COT,
            model="",
            sample=0,
            transcript={},
            finish=Finish.STOP,
            expected_answer=self.expected_answer,
            predicted_answer=self.predicted_answer,
            verdict=Verdict.UNKNOWN,
        )
        return generation, self.problem

    async def class_of(self, result: Result, services: Services) -> str:
        (generation,) = result.records
        assert isinstance(generation, Generation)
        names = {Verdict.EQUAL: "equal", Verdict.NOT_EQUAL: "not equal"}
        return names.get(generation.verdict or Verdict.UNKNOWN, "undecided")


CASES: dict[str, type[Case]] = {
    cls.stage: cls for cls in (ExtractCase, ClassifyCase, ConvertCase, AnswerCase, DecontaminateCase, JudgeCase)
}
"""The cases by the kind of their stage."""


def same_statements(texts: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether two lists of problems state the same, in any order (problems/statement.py)."""
    open_ones = [Statement.of(text) for text in known]
    for statement in map(Statement.of, texts):
        match = next((other for other in open_ones if _same(statement, other)), None)
        if match is None:
            return False
        open_ones.remove(match)
    return not open_ones


def _same(first: Statement, second: Statement) -> bool:
    short, long = sorted((first, second), key=lambda statement: len(statement.tokens))
    return long.states(short)


def _problem(result: Result) -> Problem:
    (problem,) = result.records
    assert isinstance(problem, Problem)
    return problem


async def _answered(result: Result, expected: str | None, name: str, services: Services) -> str:
    """Return ``name`` where the one problem has the expected answer, or any where none is expected."""
    answer = _problem(result).expected_answer
    if answer is None:
        return f"no {name}"
    if expected is None:
        return name
    grade = await (await services.grading()).grade(answer, expected)
    return name if grade.is_equal else "another answer"
