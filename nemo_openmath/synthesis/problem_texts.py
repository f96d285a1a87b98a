"""Find the problem that a solution answers. They are joined by id, never by order."""

from __future__ import annotations

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.core.stage import StageContext


class ProblemTexts:
    """Hold the texts of a stage's port ``problems`` by id: of a part of the work, where the port is divided."""

    def __init__(self, context: StageContext):
        self._texts = {problem.id: problem.problem for problem in context.read("problems", Problem)}

    def of(self, generation: Generation) -> str:
        """Return the problem that ``generation`` answers. Raises UserError where no problem file holds it."""
        try:
            return self._texts[generation.problem_id]
        except KeyError:
            raise UserError(
                f"problem {generation.problem_id} of generation {generation.id} is in none of the problem files",
                remedy="give the stage the problems that its generations answer",
            ) from None
