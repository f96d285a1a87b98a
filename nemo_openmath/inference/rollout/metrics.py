"""What a run of rollouts measures: tokens, seconds and counts, for the stage's manifest and for the progress line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from nemo_openmath.core.records import Generation
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.records.types import UNTRIED
from nemo_openmath.core.stage import StageContext
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.inference.rollout.outcome import Cost, Outcome


class RolloutMetrics:
    """The counts of one run of a stage. ``tool_format``: how its solutions call code; None where they may not."""

    def __init__(self, tool_format: str | None):
        self.samples_saved = 0
        """Samples that were not made, because the problem was easy or its answers agreed."""
        self.problems_ended_early = 0
        self._tool_format, self._tools = tool_format, tool_format is not None
        self._cost = Cost()
        self._solutions = self._in_flight = self._with_uncalled_code = 0
        self._began = time.monotonic()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a solution as in flight while the block runs."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def add(self, outcome: Outcome, context: StageContext) -> None:
        """Count a solution, and show the rates. Rates, prompt tokens and code are of this run alone."""
        self._cost += outcome.cost
        self._solutions += 1
        if self._tools and not outcome.cost.code_calls:
            self._with_uncalled_code += outcome.transcript.has_uncalled_code
        cost = self._cost
        rate = cost.completion_tokens / (time.monotonic() - self._began)
        cached = cost.cached_tokens / max(1, cost.cached_tokens + cost.computed_tokens)
        context.metrics.update(
            completion_tokens=cost.completion_tokens,
            tokens_per_second=round(rate, 1),
            cached_prompt_tokens=cost.cached_tokens,
            computed_prompt_tokens=cost.computed_tokens,
        )
        note = f"{rate:.0f} tokens/s, {cached:.0%} of prompts cached, {self._in_flight} in flight"
        if self._tools:
            context.metrics |= {"code_seconds": round(cost.code_seconds, 1), "blocks_run": cost.code_calls}
            if cost.invented_outputs:
                context.metrics["invented_outputs"] = cost.invented_outputs
            note += f", {cost.code_seconds / self._solutions:.2f} s of code a solution"
        context.progress.advance(0, note)

    def report_savings(self, rule: str, context: StageContext) -> None:
        """Report the samples that ``rule`` saved. Saved tokens are an estimate: what these samples would have taken at
        the mean of those made now."""
        mean = self._cost.completion_tokens / self._solutions if self._solutions else 0.0
        tokens = round(self.samples_saved * mean)
        context.metrics.update(samples_saved=self.samples_saved, tokens_saved_estimate=tokens)
        if rule == "agreement":
            context.metrics["problems_ended_early"] = self.problems_ended_early
        context.progress.log(f"{self.samples_saved} samples saved by {rule}, about {tokens} tokens")

    def report_uncalled_code(self, context: StageContext) -> None:
        """Report solutions that wrote Python which nothing ran, and outputs that they made up, where there are any."""
        if count := self._cost.invented_outputs:
            context.progress.log(f"{count} outputs were begun by the model itself and cut away")
        if not self._with_uncalled_code:
            return
        context.metrics["solutions_with_uncalled_code"] = self._with_uncalled_code
        how = "fences that stay open, or stand in a quotation, are not run"
        if self._tool_format == "tool_calls":
            how = "the model is to call the tool; is the server's parser of tool calls the model's?"
        if self._tool_format == "tags":
            how = (
                f"what stands between {CODE_START} and {CODE_END} is run, ```python is not; tool_format: fences runs "
                "it, for models that do not know the tags, or your own prompt (prompt:) can show them"
            )
        context.progress.log(
            f"{self._with_uncalled_code} of {self._solutions} solutions wrote Python that nothing ran: {how}"
        )

    def report_all_attempts(self, files: Iterable[Path], context: StageContext) -> None:
        """Report the tokens of all attempts, which ``files`` hold, and what of them this run made."""
        context.metrics["completion_tokens_of_this_run"] = self._cost.completion_tokens
        stored = (g for file in files if file.exists() for g in read_file(file, Generation))
        context.metrics["completion_tokens"] = sum(generation.completion_tokens for generation in stored)


# in a record's JSON no text holds these: quotes are escaped there
_UNTRIED_MARKS = tuple(b'"finish":"%s"' % finish.encode() for finish in UNTRIED)


def note_untried(context: StageContext) -> None:
    """Count the generations of this process that could not be tried, and name an example."""
    count, example = 0, ""
    for file in context.own_files():
        for line in file.open("rb") if file.exists() else ():
            if not any(mark in line for mark in _UNTRIED_MARKS):
                continue
            generation = orjson.loads(line)
            if generation["finish"] in UNTRIED:
                count += 1
                reason = generation["extra"].get("untried", "none of its solutions")
                example = example or f"problem {generation['problem_id']}: {reason}"
    if count:
        context.metrics |= {"untried": count, "untried_example": example}
        context.progress.log(f"{count} could not be tried and count nowhere, for example {example}")
