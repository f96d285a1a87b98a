"""Open a service: the engine, the sandbox and the grader that its solver works with, and close them again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.batch import sameness
from nemo_openmath.competition.serving.service import SolveService
from nemo_openmath.competition.solver import Solver, SolverSettings
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.core.records import Mode
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.inference.rollout.formats import template_of
from nemo_openmath.sandbox import LocalSandbox

CLOSING_SECONDS = 10.0  # for tasks that did not end when they were cancelled


@dataclass(frozen=True)
class SolveServiceSettings:
    """What a service is opened with."""

    engine: EngineConfig
    """Its ``model`` is a folder, or the name on a server."""
    tokenizer: Path
    """The folder of the model's tokenizer."""
    solver: SolverSettings = field(default_factory=SolverSettings)
    mode: Literal[Mode.COT, Mode.TIR] = Mode.TIR
    prompt: Path | None = None
    base_seconds: float = 350.0
    bank_seconds: float = 210.0
    total_seconds: float | None = None
    """Of all questions together; None: there is no end."""
    reserve_seconds: float = 10.0
    """That each question keeps whatever happened before it, at most its base time."""
    sandbox_workers: int | None = None
    workers: int = 1
    """Processes that compare answers."""
    seed: int = 0
    waiting_most: int = 16


@asynccontextmanager
async def open_service(settings: SolveServiceSettings) -> AsyncIterator[SolveService]:
    """Open a service; what it borrows is closed at the end, even where some of it fails to close.

    Raises UserError where the model or a setting is wrong, and EngineError where no server answers.
    """
    clock = SystemClock()
    bank = TimeBank(
        settings.base_seconds,
        settings.bank_seconds,
        total=settings.total_seconds,
        reserve=settings.reserve_seconds,
    )
    template = template_of(settings.mode, settings.solver.rollout, settings.prompt)
    tokenizer = ChatTokenizer.load(settings.tokenizer)
    async with contextlib.AsyncExitStack() as stack:
        engine = await open_engine(settings.engine)
        stack.push_async_callback(engine.close)
        sandbox = None
        if settings.mode == Mode.TIR:
            sandbox = LocalSandbox(workers=settings.sandbox_workers)
            stack.push_async_callback(sandbox.close)
        grading = GradingPool(workers=settings.workers)
        stack.callback(grading.close)
        solver = Solver(engine, tokenizer, sandbox, template, settings.solver, clock=clock, vote=grading.majority)
        stack.push_async_callback(solver.leftovers.close, clock, CLOSING_SECONDS)
        if line := sameness(solver.means, settings.solver.batch, settings.seed):
            print(line, flush=True)
        yield SolveService(solver, bank, seed=settings.seed, waiting_most=settings.waiting_most)
