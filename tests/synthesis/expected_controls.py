"""What the stand-in's stated rates of errors lead to: how probably each planted case of the tiny world comes out as
each class. Where a stage asks several questions about a unit, its rate is computed of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.synthesis.controls.cases import (
    AnswerCase,
    Case,
    ClassifyCase,
    ConvertCase,
    DecontaminateCase,
    ExtractCase,
    JudgeCase,
)
from nemo_openmath.synthesis.problems.benchmark_problems import BenchmarkProblems, stated
from nemo_openmath.synthesis.problems.choices import may_list_choices
from nemo_openmath.synthesis.problems.classify import QUESTIONS
from nemo_openmath.synthesis.problems.decontaminate import DecontaminateConfig
from nemo_openmath.synthesis.problems.retrievers import OWN, LexicalRetriever

ATTEMPTS = 3


@dataclass(frozen=True)
class Expected:
    """The chance of each planted case, given the rates and the settings of decontamination."""

    rates: TeacherConfig
    config: DecontaminateConfig
    benchmark: BenchmarkProblems

    def value(self, cases: Sequence[Case], name: str, measure: str) -> float:
        """Return the expected sensitivity or specificity for the class ``name``."""
        chance = self._chance(name)
        if measure == "sensitivity":
            return float(np.mean([chance(case) for case in cases if case.known == name]))
        return float(np.mean([1 - chance(case) for case in cases if case.known != name]))

    def _chance(self, name: str) -> Callable[[Case], float]:
        """How probably a case comes out as ``name``."""
        config = self.config
        retriever = LexicalRetriever(
            [problem.text for problem in self.benchmark.problems],
            ngram=config.ngram,
            threshold=config.threshold,
            stand_out=config.stand_out,
        )

        def chance(case: Case) -> float:
            match case:
                case ExtractCase():
                    return 1 - self.rates.extract_error if case.problems else 0.0
                case ClassifyCase():
                    return taken_for(case, name, self.rates.classify_error)
                case ConvertCase():
                    return 0.0 if case.expected_answer is None else 1 - self.rates.convert_error
                case AnswerCase():
                    if case.expected_answer is not None:
                        return 1 - self.rates.answer_error
                    # half of the errors take another answer that stands there, where there are any
                    return self.rates.answer_error / 2 * ("I get" in case.forum_discussions)
                case JudgeCase():
                    return 1 - self.rates.judge_error if case.equal else self.rates.judge_error
                case DecontaminateCase():
                    return self._dropped(case, retriever)
            raise AssertionError(case)

        return chance

    def _dropped(self, case: DecontaminateCase, retriever: LexicalRetriever) -> float:
        """How probably a problem is dropped: by a yes to any of its candidates, in any order that is asked, or, where
        the settings say so, in both."""
        statement, config = stated(case.problem), self.config
        if statement == stated(case.benchmark) or self.benchmark.stating(statement) is not None:
            return 1.0
        orders, error, kept = 2 if config.orders == "both" else 1, self.rates.decontaminate_error, 1.0
        for _, number in retriever.nearest_with(case.problem, case.benchmark, config.candidates):
            says_yes = 1 - error if number == OWN and case.same else error
            kept *= (1 - says_yes) ** orders if config.strictness == "any" else 1 - says_yes**orders
        return 1 - kept


def taken_for(case: ClassifyCase, name: str, error: float) -> float:
    """How probably a problem gets the category ``name``: each question errs, the first yes is the category.

    Where it lists no choices, "multiple choice" is asked about again until it is denied; three errors drop it."""
    share, lists = 1.0, may_list_choices(case.problem)
    for question in QUESTIONS:
        says_yes = 1 - error if question == case.category else error
        says_no = 1 - says_yes
        if question == "multiple-choice" and not lists:
            says_no, says_yes = 1 - says_yes**ATTEMPTS, 0.0
        if question == name:
            return share * says_yes
        share *= says_no
    return share
