"""The settings of the solver from the few choices of a command line, over those of a policy's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.competition.solver import SolverSettings
from nemo_openmath.core.build import Builder, Key, Origin
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError

BATCH, AGREE = 16, 4  # paper section 6.3.3
TEMPERATURE = 0.7
"""Of solutions. The paper's are greedy, on an engine that left something to chance (section 6.3.2); on one that leaves
nothing, greedy solutions of a batch are copies."""
SOLVER_OPTIONS = {
    "batch": "--batch",
    "agree": "--agree",
    "answers": "--modulo",
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.max_tokens": "--tokens",
    "rollout.budgets": "--code-calls",
    "rollout.tool_format": "--tool-format",
}
"""What the command line calls settings of the solver."""


@dataclass(frozen=True)
class SolverChoices:
    """What a command line says of the solver. None: what the policy's file says, or else the paper."""

    policy: Path | None = None
    """A YAML file with settings of the solver, such as ``openmath contest search`` writes."""
    batch: int | None = None
    agree: int | None = None
    modulo: int | None = None
    """Answers are whole numbers from 0 to below this; others are taken modulo it."""
    rollout: dict[str, Any] = field(default_factory=dict)
    """How solutions are sampled; other settings are the policy's, or else the paper's."""

    def content(self) -> dict[str, Any]:
        """Return the section ``solver`` of a recipe's stage. Raises UserError for a file or settings that are wrong."""
        content = dict(self._of_file())
        content["batch"] = self.batch or content.get("batch", BATCH)
        content["agree"] = self.agree or min(content.get("agree", AGREE), content["batch"])
        if content["agree"] > content["batch"]:
            problem = f"{content['agree']} solutions that agree cannot be in a batch of {content['batch']}"
            raise UserError(problem, remedy="choose --agree from 1 to --batch")
        if self.modulo is not None:
            content["answers"] = {"integers": True, "modulo": self.modulo, "most": self.modulo - 1}
        content["rollout"] = {"temperature": TEMPERATURE} | content.get("rollout", {}) | self.rollout
        self._build(content)
        return content

    def settings(self) -> SolverSettings:
        """Return the same as the solver takes it."""
        return self._build(self.content())

    def _of_file(self) -> dict[str, Any]:
        if self.policy is None:
            return {}
        source = Source.read(self.policy)
        Builder(source.origin, taken_out=source.taken_out).build(SolverSettings, source.data)  # names file and line
        return source.data

    def _build(self, content: dict[str, Any]) -> SolverSettings:
        def origin(key: Key) -> Origin:
            names = (".".join(key[:n]) for n in range(len(key), 0, -1))
            return Origin(next((SOLVER_OPTIONS[name] for name in names if name in SOLVER_OPTIONS), "the command line"))

        return Builder(origin).build(SolverSettings, content)
