"""Proof problems become problems with an answer (paper section 2.1, step 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage, with_discussion

_FORM = re.compile(r"Problem:\s*(?P<problem>.+?)\s*\nAnswer:\s*(?P<answer>\S.*)", re.S)


class ConvertProofs(PromptedStage[PromptedConfig, tuple[Problem, list[str]]]):
    """Proof -> a problem that asks for a value, with its answer; everything else passes unchanged."""

    kind = "problems.convert_proofs"
    prompt = "convert-proof"
    Config = PromptedConfig
    ports = {"problems": "classified problems", "threads": "the threads they came from"}
    takes = {"problems": "Problem", "threads": "Thread"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[str]]]]:
        return with_discussion(context)

    async def process(self, unit: tuple[Problem, list[str]], context: StageContext) -> Result:
        problem, discussions = unit
        if problem.category != "proof":
            return Result([problem], asked=False)
        found, answer = await self.question(
            context, problem.id, parse_conversion, problem=problem.problem, forum_discussions="\n\n".join(discussions)
        )
        if found is None:
            return Result(drops=[Drop("unparsable answer", answer)])
        if not found:
            return Result(drops=[Drop("proof that cannot be converted", problem.problem)])
        converted = Problem.make(
            found[0],
            expected_answer=found[1],
            problem_type="converted_proof",
            category="answer",
            source=problem.source,
            parents=(problem.id, *problem.parents),
        )
        return Result([converted])


def parse_conversion(text: str) -> tuple[str, str] | tuple[()] | None:
    """(problem, answer); () for "Not possible"; None for anything else."""
    if text.rstrip(".").lower() == "not possible":
        return ()
    found = _FORM.fullmatch(text)
    return (found["problem"], found["answer"].strip()) if found else None
