"""One solver for many questions: one at a time in the order in which they came, a time bank over all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.events import SamplingEnded, SolutionBegun, SolutionEnded, SolverEvent
from nemo_openmath.competition.solver import Answer, Solver

KEPT = 20  # answered questions that the page shows
SHOWN_CHARS = 160  # of what a solution has written last
OnMessage = Callable[[str, dict[str, Any]], object]


class QueueFull(Exception):
    """So many questions wait already that no more are taken."""


@dataclass
class CurrentQuestion:
    """The question that is being answered, as the page shows it."""

    id: str
    problem: str
    began: float
    allowed: float
    solutions: dict[int, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""

    def read(self, sample: int, text: str) -> None:
        """Take over what a solution that runs has written since."""
        solution = self.solutions.get(sample)
        if solution is not None and solution["state"] == "runs":
            solution["written"] += len(text)
            solution["end"] = (solution["end"] + text)[-SHOWN_CHARS:]

    def hear(self, event: SolverEvent) -> None:
        """Take over what happened."""
        if isinstance(event, SolutionBegun):
            begun = {"sample": event.sample, "state": "runs", "answer": None, "at": event.at, "written": 0, "end": ""}
            self.solutions[event.sample] = begun
        elif isinstance(event, SolutionEnded):
            state = "lost" if event.lost else "ended" if event.whole else "cut off"
            self.solutions[event.sample] = asdict(event) | {"state": state}
        elif isinstance(event, SamplingEnded):
            self.reason = event.reason


class SolveService:
    """Answers questions by one solver.

    - ``bank``: the time of all questions.
    - ``waiting_most``: questions that may wait; one more is refused.
    """

    def __init__(self, solver: Solver, bank: TimeBank, *, seed: int = 0, waiting_most: int = 16):
        self.solver, self.bank, self.seed, self.waiting_most = solver, bank, seed, waiting_most
        if solver.told is None:
            solver.told = self._read
        self.current: CurrentQuestion | None = None
        self.answered: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._queue: deque[asyncio.Event] = deque()

    async def solve(
        self,
        problem: str,
        *,
        seconds: float | None = None,
        question: str = "",
        others: int = 0,
        on_message: OnMessage | None = None,
    ) -> dict[str, Any]:
        """Return the answer and how it came about, once it is this question's turn.

        The time of a question begins with its turn: what the bank allows, and no more than ``seconds``. ``others``:
        questions that are still to come, for a bank with a total. Cancelling gives the turn up.
        Raises QueueFull.
        """
        async with self._turn(on_message):
            allowed = self.bank.allowance(others)
            allowed = allowed if seconds is None else min(allowed, seconds)
            clock = self.solver.clock
            current = self.current = CurrentQuestion(question, problem, clock.now(), allowed)

            def hear(event: SolverEvent) -> None:
                current.hear(event)
                if on_message is not None:
                    on_message(_NAMES[type(event)], asdict(event))

            try:
                if on_message is not None:
                    on_message("begun", {"id": question, "allowed": allowed, "bank": self.bank.saved})
                answer = await self.solver.solve(problem, seconds=allowed, seed=self.seed, on_event=hear)
            finally:  # a client that went away has used the time all the same
                self.bank.spend(max(0.0, clock.now() - current.began))
                self.current = None
            body = answer_body(answer, question, allowed, self.bank.saved)
            self.answered.appendleft(body | {"problem": problem[:200]})
            return body

    @asynccontextmanager
    async def _turn(self, on_message: OnMessage | None) -> AsyncIterator[None]:
        """Wait for the turn, in order. The first of the queue is the one whose turn it is."""
        if len(self._queue) > self.waiting_most:
            raise QueueFull(f"{self.waiting_most} questions wait already")
        mine = asyncio.Event()
        self._queue.append(mine)
        try:
            if self._queue[0] is not mine:
                if on_message is not None:
                    on_message("waiting", {"before": len(self._queue) - 1})
                await mine.wait()
            yield
        finally:
            first = self._queue[0] is mine
            self._queue.remove(mine)
            if first and self._queue:
                self._queue[0].set()

    def _read(self, sample: int, text: str) -> None:
        if self.current is not None:
            self.current.read(sample, text)

    def state(self) -> dict[str, Any]:
        """Return what the page shows."""
        current, bank = self.current, self.bank
        shown: dict[str, Any] = {
            "bank": {"saved": bank.saved, "base": bank.base, "most": bank.most, "spent": bank.spent},
            "waiting": max(0, len(self._queue) - 1),
            "current": None,
            "answered": list(self.answered),
        }
        if current is not None:
            shown["current"] = {
                "id": current.id,
                "problem": current.problem,
                "seconds": max(0.0, self.solver.clock.now() - current.began),
                "allowed": current.allowed,
                "reason": current.reason,
                "solutions": [current.solutions[n] for n in sorted(current.solutions)],
            }
        return shown


_NAMES: dict[type[SolverEvent], str] = {
    SolutionBegun: "solution_begun",
    SolutionEnded: "solution_ended",
    SamplingEnded: "decision",
}


def answer_body(answer: Answer, question: str, allowed: float, saved: float) -> dict[str, Any]:
    """Return an answer as the server gives it."""
    return {
        "id": question,
        "answer": answer.answer,
        "votes": answer.votes,
        "finished": answer.finished,
        "reason": str(answer.reason),
        "seconds": round(answer.seconds, 3),
        "allowed": round(allowed, 3),
        "weight": round(answer.weight, 4),
        "second": answer.second,
        "second_weight": round(answer.second_weight, 4),
        "selected": answer.selected,
        "samples": len(answer.trials),
        "partial": answer.partial,
        "lost": answer.failed,
        "tokens": answer.completion_tokens,
        "bank": round(saved, 3),
    }
