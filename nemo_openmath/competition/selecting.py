"""GenSelect under a deadline: the model that solved a problem selects among its solutions (paper section 4.3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_openmath.chat import Template
from nemo_openmath.competition.policy import Policy, drawn
from nemo_openmath.competition.trials import Means
from nemo_openmath.competition.waiting import Leftovers, Stopwatch
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.inference.rollout.watch import Watch
from nemo_openmath.synthesis.genselect.candidates import cut, fitted
from nemo_openmath.synthesis.genselect.selecting import Judgment

log = logging.getLogger(__name__)

SUMMARY_CHARS, GROUP_CHARS = 8_000, 60_000  # as genselect.groups


@dataclass(frozen=True)
class Selectors:
    """Asks the model which solution is right, several times at once."""

    means: Means
    settings: RolloutSettings
    template: Template

    async def select(
        self,
        problem: str,
        outcomes: Mapping[int, Outcome],
        policy: Policy,
        *,
        seed: int,
        time: Stopwatch,
        until: float,
        leftovers: Leftovers,
    ) -> list[int | None]:
        """Return the sample that each selection chose; None where it named none, failed or was late."""
        texts = {sample: _shown(outcome) for sample, outcome in outcomes.items()}
        samples = sorted(sample for sample, text in texts.items() if text)
        if len(samples) < 2:
            return []
        draws = drawn(policy, samples, seed)
        tasks = [
            asyncio.ensure_future(self._ask(problem, [texts[s] for s in members], seed, turn, time.began + until))
            for turn, members in enumerate(draws)
        ]
        try:
            await time.all(tasks, until)
        finally:
            for task in tasks:
                task.cancel()
            await time.all(tasks, time.now())
            leftovers.add(tasks)
        return [_chosen(task, members) for task, members in zip(tasks, draws, strict=True)]

    async def _ask(self, problem: str, texts: list[str], seed: int, turn: int, ends_at: float) -> Judgment:
        means = self.means
        shown = fitted([cut(text, SUMMARY_CHARS) for text in texts], GROUP_CHARS)
        messages = self.template.messages(
            num_solutions=len(shown),
            max_idx=len(shown) - 1,
            problem=problem,
            solutions=self.template.listing(shown),
        )
        draw = derive_seed(seed, "select", problem, turn)
        watch = Watch(means.clock, ends_at=ends_at)
        outcome = await roll_out(
            means.engine, means.tokenizer, messages, self.settings, seed=draw, key=f"{draw}", watch=watch
        )
        return Judgment.of(outcome, len(texts))


def _shown(outcome: Outcome) -> str:
    """Return what is shown of a solution: its summary; where it has none, all that it says."""
    return outcome.transcript.summary or outcome.transcript.said.strip()


def _chosen(task: asyncio.Task[Judgment], members: tuple[int, ...]) -> int | None:
    if not task.done() or task.cancelled():
        return None
    if (error := task.exception()) is not None:
        log.warning("a selection failed: %r", error)
        return None
    chosen: Any = task.result().chosen
    return None if chosen is None else members[chosen]
