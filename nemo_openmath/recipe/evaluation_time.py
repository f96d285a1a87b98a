"""What is looked at before an evaluation begins: whether the servers answer, and how long it will take.

How long: by what stages of the run have measured, where they have made some solutions; else by a short measurement of
the model's speed, which knows neither how long solutions are nor how long their programs run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from nemo_openmath.chat.prompts import load_template
from nemo_openmath.core.engine import Engine, EngineError, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode, read_manifest
from nemo_openmath.core.records.store import count_tokens, count_units
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.evaluation.reports.formats import seconds_text
from nemo_openmath.inference.asking import prompt_for
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.services import RecipeServices
from nemo_openmath.recipe.stage_folder import seconds_of_work

log = logging.getLogger(__name__)

PROBE_TOKENS = 32
"""Tokens of each answer of the measurement."""
PROBE_REQUESTS = 16
"""Answers at once. More at once are faster; so the time that is said is rather too long."""
LEAST_LEARNED = 8
"""Solutions from which on what was measured is believed."""
CODE_FACTOR = 3
"""How much longer than its tokens a solution with code took where this was measured, on a busy machine: its programs
run, and each of their outputs is read before the model goes on."""
_TYPICAL = 1000
_QUESTION = "What is the sum of all whole numbers from 1 to 100?"


@dataclass(frozen=True, slots=True)
class Work:
    """What one stage is to generate."""

    mode: str
    solutions: int
    max_tokens: int
    engine: str

    def seconds(self, tokens_per_second: float) -> tuple[float, float]:
        """Return the seconds that it takes at a measured speed: of solutions of a usual length, and at most."""
        slower = CODE_FACTOR if self.mode == Mode.TIR else 1
        least = self.solutions * min(_TYPICAL, self.max_tokens) / tokens_per_second
        return least, slower * self.solutions * self.max_tokens / tokens_per_second


@dataclass(frozen=True, slots=True)
class Learned:
    """What the solutions of a stage have taken."""

    solutions: int
    tokens: int
    seconds: float

    def line(self, work: Work) -> str:
        """Return how long more solutions of this kind take."""
        each, told = self.seconds / self.solutions, seconds_text(work.solutions * self.seconds / self.solutions)
        return (
            f"{work.mode}: about {told} for {work.solutions:,} solutions, as the {self.solutions:,} that are there "
            f"took: {each:,.2f} s and {self.tokens / self.solutions:,.0f} tokens each"
        )


def time_lines(works: Iterable[Work], tokens_per_second: float, at_once: int) -> list[str]:
    """Return what is said before anything is generated whose like was measured: a range for each mode."""
    lines = [f"measured: {tokens_per_second:,.0f} tokens/s with {at_once} at once; at this speed:"]
    for work in works:
        least, most = map(seconds_text, work.seconds(tokens_per_second))
        each = min(_TYPICAL, work.max_tokens)
        code = ", and programs run long" if work.mode == Mode.TIR else ""
        lines.append(
            f"{work.mode}: {least} to {most} for {work.solutions:,} solutions: of {each:,} tokens, or of all "
            f"{work.max_tokens:,} that they may have{code}"
            if least != most
            else f"{work.mode}: at most {most} for {work.solutions:,} solutions of at most {work.max_tokens:,} tokens"
        )
    return lines


SMALLER = (
    "to make it smaller: fewer --samples (wider intervals), --limit N (fewer problems), fewer --tokens; what "
    "is made is kept, and larger numbers later add to it (not --tokens); a server or a GPU with more at once is faster"
)


async def look_ahead(run: Run, stages: Sequence[str], wait_s: float) -> None:
    """See that every server that open ``stages`` ask answers within ``wait_s`` seconds, and say how long those take
    that generate solutions. What they read must be there. A model of this process is loaded where its speed is to be
    measured.

    Raises UserError where a server does not answer, or does not have the model.
    """
    works = list(_works(run, stages))
    learned = {work: taken for work in works if (taken := _learned(run, work)) is not None}
    unknown = [work for work in works if work not in learned]
    speed = 0.0
    recipe = replace(
        run.recipe,
        student=replace(run.recipe.student, patience_s=min(wait_s, run.recipe.student.patience_s)),
        teacher=replace(run.recipe.teacher, patience_s=min(wait_s, run.recipe.teacher.patience_s)),
    )
    services = RecipeServices(recipe, run.output)
    try:
        for name in _asked_servers(run, stages):
            await services.engine(name)
        if unknown:
            engine, tokenizer = await services.engine(unknown[0].engine)
            speed = await measured_speed(engine, tokenizer)
    except EngineError as error:
        remedy = "start it (openmath serve), check its address, or give it longer to start with --wait SECONDS"
        raise UserError(f"no answer in {wait_s:g} s: {error}", remedy=remedy) from error
    finally:
        await services.close()
    lines = [measured.line(work) for work, measured in learned.items()]
    lines += time_lines(unknown, speed, PROBE_REQUESTS) if unknown else []
    for line in [*lines, *([SMALLER] if lines else [])]:
        log.info("%s", line)


def _asked_servers(run: Run, stages: Sequence[str]) -> list[str]:
    """Return the engines of these stages that are servers, each once: a judge that is away is known before the hours of
    generating."""
    names = dict.fromkeys(name for stage in stages for name in run.recipe.stages[stage].stage.engines())
    return [name for name in names if name == "teacher" or run.recipe.student.kind == "http"]


def _works(run: Run, stages: Sequence[str]) -> Iterator[Work]:
    for name in stages:
        entry = run.recipe.stages[name]
        if not isinstance(entry.stage, Generate):
            continue
        config = entry.stage.config
        (read,) = entry.inputs["problems"]
        problems = read_manifest(run.folder(read) if isinstance(read, str) else read)
        number = 0 if problems is None else problems.counts["records"]
        wanted = (min(number, config.limit) if config.limit else number) * config.samples
        if (left := wanted - count_units(run.folder(name))) > 0:
            yield Work(str(config.mode), left, config.max_tokens, config.engine)


def _learned(run: Run, work: Work) -> Learned | None:
    """Return what the solutions of this mode and length took that are there; None where they are too few."""
    solutions, tokens, seconds = 0, 0, 0.0
    for name, entry in run.recipe.stages.items():
        folder = run.folder(name)
        if not isinstance(entry.stage, Generate) or not folder.is_dir():
            continue
        config = entry.stage.config
        if (str(config.mode), config.max_tokens, config.engine) == (work.mode, work.max_tokens, work.engine):
            solutions += count_units(folder)
            tokens += count_tokens(folder) or 0
            seconds += seconds_of_work(folder)
    return Learned(solutions, tokens, seconds) if solutions >= LEAST_LEARNED and seconds > 0 else None


async def measured_speed(engine: Engine, tokenizer: Tokenizer) -> float:
    """Return tokens per second of an engine that answers ``PROBE_REQUESTS`` at once, the first answer left out."""
    messages = load_template("cot").messages(problem=_QUESTION)
    prompt = await prompt_for(engine, tokenizer, messages, tokenizer.prompt(messages))
    sampling = Sampling(max_tokens=PROBE_TOKENS, temperature=0.6, top_p=0.95, seed=0)
    await engine.complete(Request(prompt, replace(sampling, max_tokens=1)))
    begun = time.monotonic()
    requests = (engine.complete(Request(prompt, replace(sampling, seed=n))) for n in range(PROBE_REQUESTS))
    completions = await asyncio.gather(*requests)
    tokens = sum(len(c.token_ids) or c.usage.completion_tokens for c in completions)
    return max(tokens, 1) / max(time.monotonic() - begun, 1e-6)
