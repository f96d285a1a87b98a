"""Convert proofs into problems with an answer (paper section 2.1, step 3)."""

from __future__ import annotations

import re

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ConvertCase
from nemo_openmath.synthesis.problems.prompted import Discussed, DiscussedStage, Rejected

_FORM = re.compile(r"Problem:\s*(?P<problem>.+?)\s*\nAnswer:\s*(?P<answer>\S.*)", re.S)


class ConvertProofs(DiscussedStage):
    """Convert each proof into a problem that asks for a value, with its answer. Other problems pass unchanged.

    The reply is read strictly: an answer in a box in place of the line ``Answer:`` is asked for again and then dropped,
    for where the problem ends in such a reply would be a guess.
    """

    kind = "problems.convert_proofs"
    case = ConvertCase
    prompt = "convert-proof"
    ports = {"problems": "classified problems", "threads": "the threads they came from"}

    def asks_about(self, problem: Problem) -> bool:
        return problem.category == "proof"

    async def process(self, unit: Discussed, context: StageContext) -> Result:
        problem, discussions = unit
        if not self.asks_about(problem):
            return Result([problem], asked=False)
        conversion, reply = await self.question(
            context, problem.id, parse_conversion, problem=problem.problem, forum_discussions="\n\n".join(discussions)
        )
        if isinstance(conversion, Rejected):
            return Result(drops=[Drop(conversion.reason, reply)])
        if not conversion:
            return Result(drops=[Drop("proof that cannot be converted", problem.problem)])
        text, answer = conversion
        converted = Problem.make(
            text,
            expected_answer=answer,
            problem_type="converted_proof",
            category="answer",
            source=problem.source,
            parents=(problem.id, *problem.parents),
        )
        return Result([converted])


def parse_conversion(text: str) -> tuple[str, str] | tuple[()] | Rejected:
    """Return the problem and its answer, () for "Not possible"."""
    if text.rstrip(".").lower() == "not possible":
        return ()
    form = _FORM.fullmatch(text)
    return (form["problem"], form["answer"].strip()) if form else Rejected("the reply is no problem with an answer")
