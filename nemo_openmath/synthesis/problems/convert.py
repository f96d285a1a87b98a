"""Convert proofs into problems with an answer (paper section 2.1, step 3)."""

from __future__ import annotations

from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ConvertCase
from nemo_openmath.synthesis.problems.checks import (
    OF_CONVERTED,
    ConvertedProblem,
    bare_answer,
    first_failed,
    plain_labels,
)
from nemo_openmath.synthesis.problems.prompted import Discussed, DiscussedConfig, DiscussedStage, Rejected


class ConvertProofs(DiscussedStage[DiscussedConfig]):
    """Convert each proof into a problem that asks for a value, with its answer. Other problems pass unchanged.

    The reply is read strictly: an answer in a box in place of the line ``Answer:`` is asked for again and then dropped,
    for where the problem ends in such a reply would be a guess. Problem and answer must pass the checks of a converted
    problem (checks.py).
    """

    kind = "problems.convert_proofs"
    version = (
        5  # 2: what is converted is checked; 3: and compared with the prompt's examples; 4: and its proof; 5: bold
    )
    case = ConvertCase
    prompt = "convert-proof"
    ports = {"problems": "classified problems", "threads": "the threads they came from"}

    def asks_about(self, problem: Problem) -> bool:
        return problem.category == "proof"

    async def process(self, unit: Discussed, context: StageContext) -> Result:
        problem, discussions = unit
        if not self.asks_about(problem):
            return Result([problem], asked=False)

        def parse(reply: str) -> tuple[str, str] | tuple[()] | Rejected:
            parts = parse_conversion(reply)
            if isinstance(parts, Rejected) or not parts:
                return parts
            converted = ConvertedProblem(parts[0], parts[1], problem.problem, discussion, self.asked_text())
            return first_failed(OF_CONVERTED, converted) or parts

        discussion = await self.shown(discussions)
        conversion, reply = await self.question(
            context, problem.id, parse, problem=problem.problem, forum_discussions=discussion
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
    """Return the problem and its answer, which stands on the last line; () for "Not possible"."""
    text = plain_labels(text)
    if text.strip(" \t\n.*`").lower() == "not possible":
        return ()
    problem, _, last = text.strip().rpartition("\n")
    if not problem.startswith("Problem:") or not last.startswith("Answer:") or "\nAnswer:" in problem:
        return Rejected("the reply is no problem with an answer")
    statement, answer = problem.removeprefix("Problem:").strip(), bare_answer(last.removeprefix("Answer:"))
    return (statement, answer) if statement and answer else Rejected("the reply is no problem with an answer")
